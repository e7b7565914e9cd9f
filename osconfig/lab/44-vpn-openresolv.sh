#!/bin/bash
# The same with openresolv, to which wg-quick's -m 0 -x means that only its name servers are to be asked.
# Run: 44-vpn-openresolv.sh | 44-vpn-openresolv.sh CMD...
. "$(dirname "$0")/lib.sh"; lab_enter vpnopenresolv "openresolv wireguard-tools wireguard-go openvpn" "$@"
. /lab/vpn.inc
vpn_machine
printf 'nameserver 192.0.2.53\nsearch lan.example\n' | resolvconf -a eth0
[ $# -gt 0 ] && { "$@"; exit $?; }
show() { grep -v '^#' /etc/resolv.conf | tr '\n' ';'; }
for k in wg openvpn; do
  note "before $k: $(show)"; check "$k comes up" /lab/vpn.sh $k up; note "with $k: $(show)"
  check "names of the VPN through the C library" bash -c 'getent ahostsv4 www.corp.test | grep -q 10.9.0.7'
  check "$k goes" /lab/vpn.sh $k down; note "after $k: $(show)"
  check "names of the network again" bash -c 'getent ahostsv4 www.outside.test | grep -q 192.0.2.99'
done
finish
