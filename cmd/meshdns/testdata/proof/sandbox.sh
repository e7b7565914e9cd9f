#!/bin/bash
# sandbox.sh CMD ARG...: runs CMD as root in a sandbox of the lab (osconfig/lab/README.md): own mounts, network, processes
# and a throw-away root that has name servers installed. LAB_BIND is /mnt inside, and holds the lab's files in lab/.
if [ -n "${LAB_INSIDE:-}" ]; then
  . /mnt/lab/lib.sh || exit 1
else
  osconfig=$(cd "$(dirname "$0")/../../../../osconfig" && pwd)
  LAB_BIND=${LAB_BIND:-$osconfig}
  . "$osconfig/lab/lib.sh" || exit 1
fi
lab_enter servers "unbound knot bind9 dnsperf" "$@"
"$@"
exit $?
