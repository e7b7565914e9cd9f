#!/bin/bash
# The same with systemd-resolved: wg-quick through its resolvconf alias, OpenVPN with update-systemd-resolved, vpnc-script with resolvectl.
# Run: 44-vpn-resolved.sh | 44-vpn-resolved.sh CMD...
. "$(dirname "$0")/lib.sh"; lab_enter vpnresolved "systemd-resolved libnss-resolve wireguard-tools wireguard-go openvpn openvpn-systemd-resolved vpnc-scripts iptables nftables" "$@"
. /lab/vpn.inc
rm -f /etc/resolv.conf; ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf; start_dbus
mkdir -p /run/systemd/resolve; chown systemd-resolve: /run/systemd /run/systemd/resolve
/lib/systemd/systemd-resolved & wait_for 5 bus_up org.freedesktop.resolve1; vpn_machine
resolvectl dns eth0 192.0.2.53; resolvectl domain eth0 lan.example
export OPENVPN_SCRIPT=/etc/openvpn/update-systemd-resolved
[ $# -gt 0 ] && { "$@"; exit $?; }
show() { grep -v '^#' /etc/resolv.conf | tr '\n' ';'; }
for k in wg openvpn vpnc; do
  note "before $k: $(show)"; check "$k comes up" /lab/vpn.sh $k up; note "with $k: $(show)"
  check "names of the VPN through the C library" bash -c 'getent ahostsv4 www.corp.test | grep -q 10.9.0.7'
  check "$k goes" /lab/vpn.sh $k down; note "after $k: $(show)"
  check "names of the network again" bash -c 'getent ahostsv4 www.outside.test | grep -q 192.0.2.99'
done
finish
