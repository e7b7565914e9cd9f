#!/bin/bash
# A server that has its own services already: nginx, dnsmasq, a firewall; and the name servers of a world around it.
# Run: 46-gateway.sh | 46-gateway.sh CMD...
. "$(dirname "$0")/lib.sh"; lab_enter gateway "knot bind9 unbound nginx-light nftables faketime openssl" "$@"
[ $# -gt 0 ] && { "$@"; exit $?; }
check "nginx" nginx -v
check "nftables" nft list ruleset
check "a clock an hour ahead" bash -c '[ $(($(faketime -f +1h date +%s) - $(date +%s))) -gt 3500 ]'
finish
