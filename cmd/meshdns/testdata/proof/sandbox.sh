#!/bin/bash
# sandbox.sh CMD ARG...: runs CMD as root in a sandbox of the lab (osconfig/lab/README.md): own mounts, network, processes
# and a throw-away root that has name servers installed.
. "$(dirname "$0")/lab.inc" || exit 1
lab_enter servers "unbound knot bind9 dnsperf" "$@"
"$@"
exit $?
