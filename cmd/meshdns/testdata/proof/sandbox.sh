#!/bin/bash
# sandbox.sh CMD ARG...: runs CMD as root in a sandbox of the lab (osconfig/lab/README.md): own mounts, network, processes
# and a throw-away root that has name servers installed. LAB_BIND is /mnt inside and must hold lib.sh as lab/lib.sh.
here=$(cd "$(dirname "$0")" && pwd)
if [ -n "${LAB_INSIDE:-}" ]; then
  . /mnt/lab/lib.sh
else
  . "$here/../../../../osconfig/lab/lib.sh"
fi
lab_enter servers "unbound knot bind9 dnsperf" "$@"
"$@"
exit $?
