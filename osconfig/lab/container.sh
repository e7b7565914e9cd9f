#!/bin/bash
# container.sh NAME [NETWORK]: starts a container of the engine that this machine of 45-containers.sh has.
case ${2:-default} in
  default) network=bridge; [ -e /usr/bin/podman ] && network=podman;;
  *) network=$2;;
esac
if [ -e /usr/bin/podman ]; then
  exec podman run -d --name "$1" --cgroups=disabled --network "$network" --rootfs /tmp/rootfs /bin/sleep 10000
fi
exec docker run -d --name "$1" --network "$network" lab /bin/sleep 10000
