#!/bin/bash
# funnel.sh CMD ARG...: runs CMD on a visitor's machine, in a sandbox of the lab (osconfig/lab/README.md) that has a small internet in it:
# a gateway, the visitor, and a NAT with the node behind it that shows something. hosts.inc says what a host is.
#
#   gw       203.0.113.5, 2001:db8::5
#   visitor  203.0.113.60, 2001:db8::60: the network of CMD
#   nas      192.168.1.2  behind 203.0.113.10; meshdns runs there without root
. "$(dirname "$0")/lab.inc" || exit 1
lab_enter funnel "nftables chromium libnss3-tools ca-certificates openssl" "$@"
set -e
. "$(dirname "$0")/hosts.inc"

host visitor; public visitor 203.0.113.60/24 2001:db8::60/64
nat home 203.0.113.10 192.168.1.1/24 <<<'oifname "wan" masquerade'
inside nas home 192.168.1.2
install -d -o 1000 -g 1000 /home/nas
on nas ping -c 1 -w 10 -q 203.0.113.5 >/dev/null || { echo "nas does not reach the gateway"; exit 1; }
on visitor ping -c 1 -w 10 -q 2001:db8::5 >/dev/null || { echo "the visitor does not reach the gateway"; exit 1; }
set +e
nsenter -t "$(cat /hosts/visitor/pid)" -n "$@"
exit $?
