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
. "$(dirname "$0")/lab.inc" || exit 1
lab_enter tailnet "nftables" "$@"
set -e
. "$(dirname "$0")/hosts.inc"

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
