#!/bin/bash
# A machine with a browser: what believes a certificate, and what does not.
# Run: 47-browser.sh | 47-browser.sh CMD...
. "$(dirname "$0")/lib.sh"; lab_enter browser "unbound chromium libnss3-tools ca-certificates openssl" "$@"
[ $# -gt 0 ] && { "$@"; exit $?; }
check "chromium" chromium --version
check "certutil" certutil -N -d sql:/tmp --empty-password
finish
