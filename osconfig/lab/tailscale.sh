#!/bin/bash
# tailscale.sh up|down: a real tailscaled, logged in to a real Headscale, in the sandbox of 44-vpn-direct.sh; both are /mnt's.
# tailscale.sh build DIR: builds tailscaled, tailscale and headscale from the module proxy, once; two minutes.
set -eu
dir=/tmp/tailscale here=198.51.100.77
wait_for() { local i; for i in $(seq 200); do "$@" >/dev/null 2>&1 && return 0; sleep .05; done; echo "tailscale.sh: waited in vain for: $*" >&2; return 1; }
case $1 in
  build)
    [ ! -e "$2/ok" ] || exit 0
    mkdir -p "$2"
    GOBIN=$2 CGO_ENABLED=0 go install tailscale.com/cmd/tailscaled@v1.92.5 tailscale.com/cmd/tailscale@v1.92.5
    # By its own directory: the list of its versions, which `go install` wants, is not served everywhere.
    mod=$(cd "$2" && go mod download -json github.com/juanfont/headscale@v0.28.0 | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    src=$(mktemp -d); trap 'chmod -R u+w "$src"; rm -rf "$src"' EXIT
    cp -r "$mod/." "$src"; chmod -R u+w "$src"
    (cd "$src" && CGO_ENABLED=0 GOFLAGS=-mod=mod go build -o "$2/headscale" ./cmd/headscale)
    touch "$2/ok" ;;
  up)
    mkdir -p $dir; cd $dir
    if [ ! -e key ]; then
      cat >derp.yaml <<E
regions: {900: {regionid: 900, regioncode: x, regionname: x, nodes: [{name: 900a, regionid: 900, hostname: derp.invalid, ipv4: 198.51.100.78, stunport: 0, derpport: 8443}]}}
E
      cat >config.yaml <<E
server_url: http://$here:8080
listen_addr: $here:8080
metrics_listen_addr: 127.0.0.1:9090
grpc_listen_addr: 127.0.0.1:50443
grpc_allow_insecure: true
noise: {private_key_path: $dir/noise.key}
prefixes: {v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48", allocation: sequential}
derp: {server: {enabled: false}, urls: [], paths: [$dir/derp.yaml], auto_update_enabled: false, update_frequency: 24h}
disable_check_updates: true
database: {type: sqlite, sqlite: {path: $dir/db.sqlite}}
log: {level: warn}
policy: {mode: file, path: ""}
dns: {magic_dns: true, base_domain: tail.test, override_local_dns: false, nameservers: {global: [], split: {}}, search_domains: []}
unix_socket: $dir/headscale.sock
unix_socket_permission: "0770"
E
      ip addr replace $here/32 dev lo
      /mnt/headscale -c config.yaml serve >headscale.log 2>&1 & echo $! >headscale.pid
      wait_for test -S headscale.sock
      /mnt/headscale -c config.yaml users create lab >/dev/null 2>&1
      /mnt/headscale -c config.yaml preauthkeys create -u 1 --reusable 2>/dev/null | tail -1 >key
    fi
    /mnt/tailscaled --state=$dir/state --socket=$dir/tailscaled.sock --port=0 >tailscaled.log 2>&1 & echo $! >pid
    wait_for test -S tailscaled.sock
    timeout 20 /mnt/tailscale --socket=$dir/tailscaled.sock up --login-server=http://$here:8080 --authkey="$(cat key)" --hostname=tsnode --accept-dns=true
    wait_for grep -q 100.100.100.100 /etc/resolv.conf ;;
  down)
    [ -e $dir/pid ] || exit 0
    # All of it: the next one is a new tailnet with a new node, which has the first address again.
    for pid in $(cat $dir/pid $dir/headscale.pid); do kill "$pid"; wait_for bash -c "! kill -0 $pid"; done
    rm -r $dir ;;
esac
