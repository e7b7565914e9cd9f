package main_test

import (
	"strings"
	"testing"
)

// What the guest's scripts have in common.
const powerCommon = `
journal=/var/lib/meshdns/dns-journal.json program=/usr/local/bin/meshdns
original='search corp.example
nameserver 192.0.2.53
options timeout:1'
yes() { if "$@" 2>/dev/null; then echo yes; else echo no; fi; }
# Is there a journal, does resolv.conf name the stub, is its next form ready beside it?
facts() { echo "$(yes test -e $journal) $(yes grep -q 'nameserver 127.0.0.77' /etc/resolv.conf) $(yes test -e /etc/.resolv.conf.meshdns)"; }
asis() { [ "$(cat /etc/resolv.conf)" = "$original" ] && [ "$(stat -c %a /etc/resolv.conf)" = 640 ] && [ ! -e $journal ] && [ ! -e /etc/.resolv.conf.meshdns ]; }
finds() { timeout 10 getent ahostsv4 "$1" | grep -q "^$2 "; }
ready() { timeout 60 bash -c "until $program status --check >/dev/null 2>&1; do sleep .1; done"; }
# The program stands still before or after a system call, the n-th of its kind that concerns a file.
held() { strace -f -qq -o /dev/null -P "$1" -e "inject=$2" $program up & }
# Power is cut at a moment that lasts.
await() {
  for i in $(seq 600); do [ "$(facts)" = "$1" ] && break; sleep .1; done
  sleep 1
  echo "LAB at the moment: $(facts)"
  echo "` + cutPower + `"
  sleep 600
}
`

// powerPrepare installs the program as a service that is not started at boot, and a name server that comes with the
// network; it notes whether names are found by then.
const powerPrepare = `
systemctl disable -q --now systemd-resolved
rm -f /etc/resolv.conf; echo "$original" >/etc/resolv.conf; chmod 640 /etc/resolv.conf
cat >/usr/local/sbin/early <<'S'
#!/bin/bash
ip link set lo up; ip addr add 192.0.2.53/32 dev lo
dnsmasq -C /dev/null --no-resolv --no-hosts --user=root --bind-interfaces --listen-address=192.0.2.53 --except-interface=lo0 --address=/#/192.0.2.99 --pid-file=/run/early.pid
timeout 10 getent ahostsv4 www.example.org >/run/early
cat /etc/resolv.conf >>/run/early
S
chmod 755 /usr/local/sbin/early
cat >/etc/systemd/system/early.service <<'S'
[Unit]
DefaultDependencies=no
After=local-fs.target network-pre.target
Wants=network-pre.target
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/early
[Install]
WantedBy=sysinit.target
S
systemctl daemon-reload; systemctl enable -q --now early
mkdir -p /etc/meshdns; printf 'node: laptop\ntunnel: off\n' >/etc/meshdns/meshdns.yaml
printf 'zone: foo-bar.ts.net\nnodes:\n  laptop: {addresses: [100.64.0.1]}\n  nas: {addresses: [100.64.0.2]}\n' >/etc/meshdns/map.yaml
install -m 755 /meshdns $program; $program service install; ready && echo "LAB the service works"
systemctl disable -q --now meshdns; asis && finds www.example.org 192.0.2.99 && echo "LAB is prepared"
`

// powerAfter looks at the machine after the power came back: before the service, without it, and with it.
const powerAfter = `
systemctl start early # which may be at it still
grep -q '^192.0.2.99 ' /run/early && ! grep -q 127.0.0.77 /run/early && echo "LAB names are found as the network comes up"
[ "$(systemctl is-active meshdns)" = inactive ] && asis && finds www.example.org 192.0.2.99 && echo "LAB names are found without the service"
systemctl start meshdns; ready; finds www.example.org 192.0.2.99 && finds nas.foo-bar.ts.net 100.64.0.2 && finds nas 100.64.0.2 && echo "LAB names are found with the service"
systemctl stop meshdns; asis && echo "LAB is as it was"
`

// powerMoment is when the power is cut.
type powerMoment struct {
	name  string
	do    string // what leads to it
	facts string // what is so then, as facts prints it
}

func powerMoments() []powerMoment {
	const (
		rename = "renameat,renameat2,rename"
		unlink = "unlinkat,unlink"
		before = ":delay_enter=900s:when=1"
		after  = ":delay_exit=900s:when=1"
	)
	return []powerMoment{
		{"journal written, file not yet", "held /etc/resolv.conf " + rename + before, "yes no yes"},
		{"right after the rename", "held /etc/resolv.conf " + rename + after, "yes yes no"},
		{"taken over", "$program up & ready", "yes yes no"},
		{"given back, journal still there", "held $journal " + unlink + before + "; ready; kill $(pidof meshdns)", "yes no no"},
		{"recovery of the next start", "$program up & ready; kill -9 $!; wait $!; held /etc/resolv.conf " + rename + before, "yes yes yes"},
	}
}

// TestLabPowerCut takes a real kernel's power away at five moments around a takeover. At the next boot names are found
// before the service runs, without it and with it.
func TestLabPowerCut(t *testing.T) {
	g := newGuest(t)
	script, what := powerPrepare, "prepared"
	wants := []string{"LAB the service works", "LAB is prepared"}
	for _, m := range append(powerMoments(), powerMoment{}) {
		if m.name != "" {
			script += "\nsync\n" + m.do + "\nawait '" + m.facts + "'\n"
			wants = append(wants, "LAB at the moment: "+m.facts, cutPower)
		}
		out := g.run(powerCommon + script)
		g.wants(what, out, wants...)
		if strings.Contains(out, cutPower) == (m.name == "") || t.Failed() {
			t.Fatalf("%q ends the test", what)
		}
		script, what = powerAfter, "after a power cut: "+m.name
		wants = []string{
			"LAB names are found as the network comes up", "LAB names are found without the service",
			"LAB names are found with the service", "LAB is as it was",
		}
	}
}
