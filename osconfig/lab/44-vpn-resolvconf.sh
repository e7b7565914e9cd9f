#!/bin/bash
# VPN clients that tell Debian's resolvconf of their name servers: wg-quick with DNS =, OpenVPN with update-resolv-conf.
# Run: 44-vpn-resolvconf.sh | 44-vpn-resolvconf.sh CMD...
. "$(dirname "$0")/lib.sh"; lab_enter vpnresolvconf "resolvconf wireguard-tools wireguard-go openvpn" "$@"
. /lab/vpn.inc
rm -f /etc/resolv.conf; ln -s ../run/resolvconf/resolv.conf /etc/resolv.conf
mkdir -p /run/resolvconf/interface; resolvconf --enable-updates; vpn_machine
printf 'nameserver 192.0.2.53\nsearch lan.example\n' | resolvconf -a eth0.dhclient
[ $# -gt 0 ] && { "$@"; exit $?; }
show() { grep -v '^#' /etc/resolv.conf | tr '\n' ';'; }
for k in wg openvpn; do
  note "before $k: $(show)"; check "$k comes up" /lab/vpn.sh $k up; note "with $k: $(show)"
  check "names of the VPN through the C library" bash -c 'getent ahostsv4 www.corp.test | grep -q 10.9.0.7'
  check "$k goes" /lab/vpn.sh $k down; note "after $k: $(show)"
  check "names of the network again" bash -c 'getent ahostsv4 www.outside.test | grep -q 192.0.2.99'
done
finish
