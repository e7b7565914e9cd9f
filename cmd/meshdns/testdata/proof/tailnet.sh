#!/bin/bash
# tailnet.sh CMD ARG...: runs CMD in a sandbox of the lab (osconfig/lab/README.md) that has a small internet in it: a gateway,
# and hosts behind NATs of two kinds. Each is a network namespace with /etc, /run and /var/lib/meshdns of its own;
# `nsenter -t $(cat /hosts/NAME/pid) -a CMD` runs something there.
#
#   gw     203.0.113.5, 2001:db8::5
#   alfa   192.168.1.2  behind 203.0.113.10, which gives a host's port one port of its own, whoever it speaks to
#   beta   192.168.1.3  beside alfa, without IPv6
#   carl   192.168.1.2  behind 203.0.113.20, a NAT of the same kind, in a network with the same addresses
#   dora   172.16.3.2   behind 203.0.113.30, which draws a port for each address and port that a host speaks to
#   emil   172.16.4.2   behind 203.0.113.40, a NAT of the same kind
#   fred   2001:db8::f  no IPv4
#   greg   203.0.113.60, 2001:db8::60
if [ -n "${LAB_INSIDE:-}" ]; then
  . /mnt/lab/lib.sh || exit 1
else
  osconfig=$(cd "$(dirname "$0")/../../../../osconfig" && pwd)
  LAB_BIND=${LAB_BIND:-$osconfig}
  . "$osconfig/lab/lib.sh" || exit 1
fi
lab_enter tailnet "nftables" "$@"
set -e

sysctl() { nsenter -t "$(cat "/hosts/$1/pid")" -n sh -c "echo $3 >/proc/sys/net/$2"; } # HOST KEY VALUE

# host NAME: a machine of its own, without a network.
host() {
  mkdir -p "/hosts/$1/etc" "/hosts/$1/lib" /var/lib/meshdns
  cp -a /etc/. "/hosts/$1/etc"
  unshare -n -m -u --propagation private sh -c '
    hostname "$1"
    mount --bind "/hosts/$1/etc" /etc; mount --bind "/hosts/$1/lib" /var/lib/meshdns
    mount -t tmpfs -o mode=755 run /run; mount -t sysfs sysfs /sys
    ip link set lo up
    exec sleep infinity' sh "$1" &
  echo $! >"/hosts/$1/pid"
  wait_for 10 nsenter -t $! -n -m sh -c 'ip link show lo up | grep -q UP && mountpoint -q /sys'
  nsenter -t $! -n sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad'
}

# wire HOST LINK ROUTER PORT [ADDRESS...]: a cable from a host's link to a port of the bridge "lan" of a router.
wire() {
  local host=$1 link=$2 router=$3 port=$4 a
  shift 4
  ip link add "$link" netns "$(cat "/hosts/$host/pid")" type veth peer name "$port" netns "$(cat "/hosts/$router/pid")"
  nsenter -t "$(cat "/hosts/$router/pid")" -n ip link set "$port" master lan up
  for a; do nsenter -t "$(cat "/hosts/$host/pid")" -n ip addr add "$a" dev "$link"; done
  nsenter -t "$(cat "/hosts/$host/pid")" -n ip link set "$link" up
}

on() { local h=$1; shift; nsenter -t "$(cat "/hosts/$h/pid")" -a "$@"; }

lan() { # HOST ADDRESS...
  local h=$1 a
  shift
  on "$h" ip link add lan type bridge
  for a; do on "$h" ip addr add "$a" dev lan; done
  on "$h" ip link set lan up
}

public() { # HOST ADDRESS...
  wire "$1" wan internet "$@"
  case "$*" in *203.0.113.*) on "$1" ip route add default via 203.0.113.254 ;; esac
  case "$*" in *2001:db8:*) on "$1" ip route add default via 2001:db8::fe ;; esac
}

# nat NAME PUBLIC LAN: a router that lets nothing in that was not asked for. The rules for what goes out come on stdin.
nat() {
  host "$1"
  public "$1" "$2/24"
  lan "$1" "$3"
  sysctl "$1" ipv4/ip_forward 1
  { cat <<END
table inet router {
  chain input { type filter hook input priority filter; iifname "wan" ct state new drop; }
  chain forward { type filter hook forward priority filter; iifname "wan" ct state new drop; }
  chain out {
    type nat hook postrouting priority srcnat
END
    cat; printf '}\n}\n'; } | on "$1" nft -f -
}

inside() { # HOST ROUTER ADDRESS
  host "$1"
  wire "$1" eth0 "$2" "$1" "$3/24"
  on "$1" ip route add default via "${3%.*}.1"
}

host internet
lan internet 203.0.113.254/24 2001:db8::fe/64
host gw; public gw 203.0.113.5/24 2001:db8::5/64
nat cone1 203.0.113.10 192.168.1.1/24 <<'END'
oifname "wan" ip saddr 192.168.1.2 udp sport 41642 snat ip to 203.0.113.10:51002
oifname "wan" ip saddr 192.168.1.3 udp sport 41642 snat ip to 203.0.113.10:51003
oifname "wan" masquerade
END
nat cone2 203.0.113.20 192.168.1.1/24 <<'END'
oifname "wan" ip saddr 192.168.1.2 udp sport 41642 snat ip to 203.0.113.20:52002
oifname "wan" masquerade
END
nat random1 203.0.113.30 172.16.3.1/24 <<<'oifname "wan" masquerade random,fully-random'
nat random2 203.0.113.40 172.16.4.1/24 <<<'oifname "wan" masquerade random,fully-random'
inside alfa cone1 192.168.1.2
inside beta cone1 192.168.1.3
inside carl cone2 192.168.1.2
inside dora random1 172.16.3.2
inside emil random2 172.16.4.2
host fred; public fred 2001:db8::f/64
host greg; public greg 203.0.113.60/24 2001:db8::60/64
sysctl beta ipv6/conf/all/disable_ipv6 1
install -d -o 1000 -g 1000 /home/carl
for h in alfa beta carl dora emil greg; do on "$h" ping -c 1 -w 10 -q 203.0.113.5 >/dev/null || { echo "$h does not reach the gateway"; exit 1; }; done
on fred ping -c 1 -w 10 -q 2001:db8::5 >/dev/null || { echo "fred does not reach the gateway"; exit 1; }
set +e
"$@"
exit $?
