#!/bin/bash
# VPN clients that overwrite /etc/resolv.conf by themselves: vpnc-script (vpnc, openconnect). tailscale.sh brings a real Tailscale up in it.
# Run: 44-vpn-direct.sh | 44-vpn-direct.sh CMD...
. "$(dirname "$0")/lib.sh"; lab_enter vpndirect "vpnc-scripts iptables nftables procps" "$@"
. /lab/vpn.inc
vpn_machine; printf 'nameserver 192.0.2.53\nsearch lan.example\n' >/etc/resolv.conf
[ $# -gt 0 ] && { "$@"; exit $?; }
show() { grep -v '^#' /etc/resolv.conf | tr '\n' ';'; }
for k in vpnc; do
  note "before $k: $(show)"; check "$k comes up" /lab/vpn.sh $k up; note "with $k: $(show)"
  check "names of the VPN through the C library" bash -c 'getent ahostsv4 www.corp.test | grep -q 10.9.0.7'
  check "$k goes" /lab/vpn.sh $k down; note "after $k: $(show)"
  check "names of the network again" bash -c 'getent ahostsv4 www.outside.test | grep -q 192.0.2.99'
done
finish
