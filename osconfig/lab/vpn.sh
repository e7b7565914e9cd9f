#!/bin/bash
# vpn.sh KIND up|down: a real VPN client in the sandbox of a 44-vpn-*.sh script. See vpn.inc for the machine around it.
#   wg       wg-quick with DNS =, over Debian's wireguard-go (no kernel here has WireGuard)
#   openvpn  a point-to-point tunnel whose scripts are $OPENVPN_SCRIPT: update-resolv-conf or update-systemd-resolved
#   vpnc     vpnc-script, as vpnc and openconnect run it: it backs resolv.conf up, overwrites it, and writes the backup back
set -eu
dir=/tmp/vpn; mkdir -p $dir
wait_for() { local i; for i in $(seq 200); do "$@" >/dev/null 2>&1 && return 0; sleep .05; done; echo "vpn.sh: waited in vain for: $*" >&2; return 1; }
answers() { dig +short +time=1 +tries=1 @10.9.0.1 www.corp.test | grep -qx 10.9.0.7; }
wg_keys() {
  [ -e $dir/corp.key ] && return
  umask 077; wg genkey >$dir/corp.key; wg genkey >$dir/here.key
  mkdir -p /etc/wireguard
  cat >/etc/wireguard/wg0.conf <<END
[Interface]
PrivateKey = $(cat $dir/here.key)
Address = 10.9.0.2/32
DNS = 10.9.0.1, corp.test
[Peer]
PublicKey = $(wg pubkey <$dir/corp.key)
Endpoint = 198.51.100.1:51820
AllowedIPs = 10.9.0.0/24
END
  ip netns exec corp wireguard-go wgcorp >$dir/wgcorp.log 2>&1
  ip netns exec corp wg set wgcorp private-key $dir/corp.key listen-port 51820 peer "$(wg pubkey <$dir/here.key)" allowed-ips 10.9.0.2/32
  ip -n corp link set wgcorp up; ip -n corp route add 10.9.0.2 dev wgcorp
}
openvpn_start() {
  local net=$1 dev=$2 here=$3 there=$4 log=$5; shift 5
  $net openvpn --dev "$dev" --dev-type tun --ifconfig "$here" "$there" --disable-dco --cipher none --auth none --data-ciphers none --proto udp --port 1194 \
    --persist-key --ping 5 --writepid "$log.pid" --log "$log" --daemon "ovpn-$dev" "$@"
}
[ "$2" = up ] || ip link show "$(case $1 in wg) echo wg0;; openvpn) echo tun0;; *) echo vpn0;; esac)" >/dev/null 2>&1 || exit 0
case $1-$2 in
  wg-up) wg_keys; WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go wg-quick up wg0; wait_for answers ;;
  wg-down) wg-quick down wg0 ;;
  openvpn-up)
    if [ ! -e $dir/corp.log.pid ]; then
      openvpn_start "ip netns exec corp" tuncorp 10.9.0.3 10.9.0.4 $dir/corp.log --local 198.51.100.1
      wait_for ip -n corp addr show tuncorp
    fi
    openvpn_start "" tun0 10.9.0.4 10.9.0.3 $dir/here.log --remote 198.51.100.1 --route 10.9.0.1 --script-security 2 \
      --up "${OPENVPN_SCRIPT:-/etc/openvpn/update-resolv-conf}" --down "${OPENVPN_SCRIPT:-/etc/openvpn/update-resolv-conf}" --up-restart --down-pre \
      --dhcp-option DNS 10.9.0.1 --dhcp-option DOMAIN corp.test
    wait_for answers ;;
  openvpn-down) pid=$(cat $dir/here.log.pid); kill "$pid"; wait_for bash -c "! kill -0 $pid" ;;
  vpnc-up|vpnc-down)
    export reason=connect VPNGATEWAY=198.51.100.1 TUNDEV=vpn0 VPNPID=4711 INTERNAL_IP4_ADDRESS=10.9.0.5 INTERNAL_IP4_DNS=10.9.0.1 CISCO_DEF_DOMAIN=corp.test \
      CISCO_SPLIT_INC=1 CISCO_SPLIT_INC_0_ADDR=10.9.0.1 CISCO_SPLIT_INC_0_MASK=255.255.255.255 CISCO_SPLIT_INC_0_MASKLEN=32
    if [ $2 = up ]; then
      python3 /lab/tunpair.py vpn0 $dir/a $dir/b >$dir/vpnc.log 2>&1 & echo $! >$dir/vpnc.pid
      if [ ! -S $dir/b ]; then ip netns exec corp python3 /lab/tunpair.py vpncorp $dir/b $dir/a >$dir/vpncorp.log 2>&1 & fi
      wait_for ip link show vpn0; wait_for ip -n corp link show vpncorp
      ip -n corp link set vpncorp up; ip -n corp route replace 10.9.0.5 dev vpncorp
      /usr/share/vpnc-scripts/vpnc-script; wait_for answers
    else
      reason=disconnect /usr/share/vpnc-scripts/vpnc-script; kill "$(cat $dir/vpnc.pid)"; wait_for bash -c '! ip link show vpn0'
    fi ;;
  *) echo "vpn.sh: what is $1 $2?" >&2; exit 2 ;;
esac
