#!/bin/bash
# Docker and Podman, really installed, run containers of one file system of busybox's; nothing is pulled from anywhere.
# Run: 45-containers.sh docker|podman | 45-containers.sh docker|podman CMD...    (a container: /lab/container.sh NAME [NETWORK])
. "$(dirname "$0")/lib.sh"; lab_enter containers "docker.io podman netavark aardvark-dns crun iptables unbound" "$@"
engine=$1; shift
T0=$(date +%s%N)
root=/tmp/rootfs; mkdir -p $root/bin $root/etc $root/proc $root/sys $root/dev $root/tmp
cp /bin/busybox $root/bin/; for a in sh cat sleep nslookup; do ln -s busybox $root/bin/$a; done
[ ! -e /mnt/lookup-musl ] || cp /mnt/lookup-musl $root/bin/lookup
if [ "$engine" = docker ]; then
  rm /usr/bin/podman                                    # one engine a machine
  dockerd --storage-driver=vfs >/tmp/dockerd.log 2>&1 & # overlay does not go on the sandbox's own overlay
  wait_for 20 docker version || { tail -5 /tmp/dockerd.log; exit 1; }
  tar -C $root -c . | docker import - lab >/dev/null
else
  printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers"\ngraphroot = "/var/lib/containers"\n' >/etc/containers/storage.conf
  printf '[network]\nnetwork_backend = "netavark"\n[engine]\nhelper_binaries_dir = ["/usr/lib/podman"]\n' >/etc/containers/containers.conf
fi
note "ready in $(ms $T0) ms: $($engine --version)"
[ $# -gt 0 ] && { "$@"; exit $?; }
$engine network create lab >/dev/null
for network in default lab; do
  check "a container on the network $network" /lab/container.sh c-$network $network
  note "it has: $($engine exec c-$network cat /etc/resolv.conf | tr '\n' ';')"
done
note "bridges: $(ip -br link show type bridge | awk '{print $1}' | tr '\n' ' ')"
finish
