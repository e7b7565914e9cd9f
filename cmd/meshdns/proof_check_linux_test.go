package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The world of a gateway: this sandbox's own network namespace has a root server, a parent zone and whoever looks; the
// namespace vps has the gateway, one link away, with one address of each family.
const (
	worldZone   = "foo-bar.example.org"
	worldRoot   = "198.41.0.4" // where every resolver begins
	worldParent = "198.51.100.2"
	worldOurs   = "203.0.113.5"
	worldOurs6  = "2001:db8::5"
	worldWidely = "198.51.100.53" // a resolver

	worldRoot6   = "2001:503:ba3e::2:30"
	worldParent6 = "2001:db8:53::2"

	worldGood = worldZone + `. NS ns1.` + worldZone + `.
` + worldZone + `. NS ns2.` + worldZone + `.
ns1.` + worldZone + `. A ` + worldOurs + `
ns2.` + worldZone + `. AAAA ` + worldOurs6 + "\n"
)

// world is the parent's side.
type world struct {
	root   *daemon // Knot
	named  *daemon
	serial int
}

// newWorld brings up everything but the gateway.
func newWorld(t *testing.T) *world {
	t.Helper()
	for line := range strings.Lines(`ip netns add vps
ip link add w0 type veth peer name v0 netns vps
ip addr add 203.0.113.1/24 dev w0
ip addr add 2001:db8::1/64 dev w0 nodad
ip link set w0 up
ip -n vps addr add ` + worldOurs + `/24 dev v0
ip -n vps addr add ` + worldOurs6 + `/64 dev v0 nodad
ip -n vps link set v0 up
ip -n vps link set lo up
ip -n vps route add default via 203.0.113.1
ip -n vps -6 route add default via 2001:db8::1
ip addr add ` + worldRoot + `/32 dev lo
ip addr add 198.51.100.1/32 dev lo
ip addr add ` + worldParent + `/32 dev lo
ip addr add ` + worldWidely + `/32 dev lo
ip addr add ` + worldRoot6 + `/128 dev lo nodad
ip addr add ` + worldParent6 + `/128 dev lo nodad
`) {
		must(t, strings.Fields(line)...)
	}
	writeFile(t, "/tmp/named/root.zone", "$TTL 60\n. SOA ns.root. h.root. 1 3600 600 86400 60\n. NS ns.root.\nns.root. A "+worldRoot+"\norg. NS ns.org.\nns.org. A 198.51.100.1\nns.org. AAAA "+worldParent6+"\n")
	w := &world{root: knot(t, nil, "[ "+worldRoot+"@53, "+worldRoot6+"@53 ]", ".", "root.zone")}
	writeFile(t, "/tmp/named/org.zone", "$TTL 60\norg. SOA ns.org. h.org. 1 3600 600 86400 60\norg. NS ns.org.\nns.org. A 198.51.100.1\nns.org. AAAA "+worldParent6+"\nexample.org. NS ns.example.org.\nns.example.org. A "+worldParent+"\nns.example.org. AAAA "+worldParent6+"\n")
	writeFile(t, "/tmp/named/named.conf", `
options {
  directory "/tmp/named";
  pid-file none;
  session-keyfile none;
  listen-on { 198.51.100.1; `+worldParent+`; };
  listen-on-v6 { `+worldParent6+`; };
  recursion no;
  dnssec-validation no;
};
controls { };
zone "org" { type primary; file "org.zone"; };
zone "example.org" { type primary; file "example.zone"; };
`)
	w.write(t, worldGood)
	w.named = background(t, "named", "-g", "-c", "/tmp/named/named.conf")
	w.await(t)
	return w
}

// knot runs Knot, which gives out cookies, under another program: each zone is a name and a file of named's directory.
func knot(t *testing.T, under []string, listen string, zones ...string) *daemon {
	t.Helper()
	dir := t.TempDir()
	var text strings.Builder
	text.WriteString("server:\n  listen: " + listen + "\n  rundir: " + dir + "\ndatabase:\n  storage: " + dir + "\nmod-cookies:\n  - id: default\n    secret-lifetime: 3600\n" +
		"template:\n  - id: default\n    global-module: mod-cookies/default\nzone:\n")
	for i := 0; i < len(zones); i += 2 {
		text.WriteString("  - domain: " + zones[i] + "\n    file: /tmp/named/" + zones[i+1] + "\n")
	}
	writeFile(t, dir+"/knot.conf", text.String())
	return background(t, append(under, "knotd", "-c", dir+"/knot.conf")...)
}

// write changes the parent zone.
func (w *world) write(t *testing.T, records string) {
	t.Helper()
	w.serial++
	writeFile(t, "/tmp/named/example.zone", fmt.Sprintf("$TTL 60\nexample.org. SOA ns.example.org. h.example.org. %d 3600 600 86400 60\nexample.org. NS ns.example.org.\nns.example.org. A %s\nns.example.org. AAAA %s\n%s", w.serial, worldParent, worldParent6, records))
}

// await waits until the parent serves what was written.
func (w *world) await(t *testing.T) {
	t.Helper()
	eventually(t, readyTimeout, "the parent zone", func() error {
		r, _, err := (&dns.Client{Timeout: time.Second}).Exchange(new(dns.Msg).SetQuestion("example.org.", dns.TypeSOA), worldParent+":53")
		if err != nil {
			return err
		}
		if len(r.Answer) != 1 || !strings.Contains(r.Answer[0].String(), " "+strconv.Itoa(w.serial)+" ") {
			return fmt.Errorf("got %v", r.Answer)
		}
		return nil
	})
}

// says has the parent zone hold other records.
func (w *world) says(t *testing.T, records string) {
	t.Helper()
	w.write(t, records)
	if err := w.named.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	w.await(t)
}

// onVPS is a command in the gateway's namespace.
func onVPS(args ...string) []string { return append([]string{"ip", "netns", "exec", "vps"}, args...) }

// gatewayFlags are where the gateway has its files.
func gatewayFlags() []string {
	return []string{"--config", "/tmp/vps/meshdns.yaml", "--state-dir", "/tmp/vps/state", "--socket", "/tmp/vps/s"}
}

// startWorldGateway makes the gateway and starts it.
func startWorldGateway(t *testing.T) *daemon {
	t.Helper()
	if _, err := os.Stat("/tmp/vps/meshdns.yaml"); err != nil {
		writeFile(t, "/tmp/vps/meshdns.yaml", "node: edge\ndns: {os: \"off\", stub: \"127.0.0.77:5300\"}\n")
		must(t, onVPS(append([]string{program, "gateway", "init", "--zone", worldZone, "--public", worldOurs + "," + worldOurs6}, gatewayFlags()...)...)...)
	}
	d := background(t, onVPS(append([]string{program, "up"}, gatewayFlags()...)...)...)
	ready(t, d, "/tmp/vps/s")
	eventually(t, readyTimeout, "all parts of the gateway", func() error { // its socket answers before
		if log := d.log.String(); !strings.Contains(log, "meshdns: ready\n") {
			return errors.New(log)
		}
		return nil
	})
	return d
}

// checkRun is what a check printed.
type checkRun struct {
	State    string
	From     string
	Parent   string
	Findings []checkFinding
	code     int
	text     string
}

type checkFinding struct {
	Name, State, Detail, Hint string
	Records                   []struct{ Name, Type, Data string }
}

// look runs a check.
func look(t *testing.T, args ...string) checkRun {
	t.Helper()
	var run checkRun
	run.text, run.code = output(t, args...)
	start := strings.Index(run.text, "{\n")
	if err := json.Unmarshal([]byte(run.text[max(0, start):]), &run); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, run.text)
	}
	return run
}

// fromOutside is a check by somebody with no part in the tailnet.
func fromOutside(t *testing.T, args ...string) checkRun {
	t.Helper()
	return look(t, append([]string{program, "gateway", "check", "--json"}, args...)...)
}

// wants fails unless exactly these findings fail, each given as "NAME: words of its detail | words of its hint and records".
func (r checkRun) wants(t *testing.T, fails ...string) {
	t.Helper()
	var failed []string
	for _, f := range r.Findings {
		if f.State != "fail" {
			continue
		}
		records := []string{f.Hint}
		for _, one := range f.Records {
			records = append(records, one.Name+" "+one.Type+" "+one.Data)
		}
		failed = append(failed, f.Name+": "+f.Detail+" | "+strings.Join(records, " "))
	}
	for _, want := range fails {
		name, rest, _ := strings.Cut(want, ": ")
		detail, hint, _ := strings.Cut(rest, " | ")
		if !slices.ContainsFunc(failed, func(got string) bool {
			left, right, _ := strings.Cut(got, " | ")
			return strings.HasPrefix(got, name+": ") && strings.Contains(left, detail) && strings.Contains(right, hint)
		}) {
			t.Errorf("no failure %q", want)
		}
	}
	wantCode := 0
	if len(fails) > 0 {
		wantCode = 6
	}
	if len(failed) != len(fails) || r.code != wantCode {
		t.Errorf("exit code %d, failures\n%s\nwant %d and\n%s", r.code, strings.Join(failed, "\n"), wantCode, strings.Join(fails, "\n"))
	}
	if t.Failed() {
		t.Log(r.text)
	}
}

// has is nil if a finding is there.
func (r checkRun) has(name, state, detail string) error {
	for _, f := range r.Findings {
		if f.Name == name && f.State == state && strings.Contains(f.Detail, detail) {
			return nil
		}
	}
	return errors.New("no " + state + " " + name + " with " + detail + " in\n" + r.text)
}

// proveGatewayIsChecked: what a parent zone can have wrong is found from outside, and told with the record that mends it.
func proveGatewayIsChecked(t *testing.T) {
	w := newWorld(t)
	gateway := startWorldGateway(t)
	ours := []string{worldZone, "--public", worldOurs + "," + worldOurs6}
	t.Run("all is well", func(t *testing.T) {
		run := fromOutside(t, ours...)
		run.wants(t)
		if run.Parent != "example.org" || run.From != "outside" || run.State != "ok" {
			t.Errorf("%+v", run)
		}
		for _, want := range [][3]string{
			{"delegation", "ok", "ns1." + worldZone}, {"glue", "ok", worldOurs6}, {"ds", "ok", "no DS"}, {"udp", "ok", worldOurs}, {"tcp", "ok", worldOurs6},
			{"443", "ok", "the gateway answers, with the key "}, {"wireguard", "skip", "41642/udp"}, {"relay", "skip", "41643/udp"}, {"clock", "ok", "is right within"},
		} {
			if err := run.has(want[0], want[1], want[2]); err != nil {
				t.Error(err)
			}
		}
		fromOutside(t, "--zone", worldZone).wants(t) // not even the addresses are known
	})
	t.Run("people read it", func(t *testing.T) {
		out := must(t, append([]string{program, "gateway", "check"}, ours...)...)
		if !strings.Contains(out, "\nok    tcp         "+worldOurs+" answers for "+worldZone) {
			t.Errorf("printed\n%s", out)
		}
	})
	for _, row := range []struct{ name, parent, want string }{
		{"no NS", "", "delegation: example.org does not delegate " + worldZone + " | foo-bar NS ns1." + worldZone + ". foo-bar NS ns2." + worldZone + ". ns1.foo-bar A " + worldOurs + " ns2.foo-bar AAAA " + worldOurs6},
		{"wrong glue", strings.Replace(worldGood, worldOurs, "203.0.113.1", 1), "glue: at 203.0.113.1, and it is at " + worldOurs + " | ns1.foo-bar A " + worldOurs},
		{"no glue", strings.Replace(worldGood, "ns2."+worldZone+". AAAA "+worldOurs6+"\n", "", 1), "glue: names ns2." + worldZone + ". and not its address | ns2.foo-bar AAAA " + worldOurs6},
		{"a stale DS", worldGood + worldZone + ". DS 12345 13 2 " + strings.Repeat("AB", 32) + "\n", "ds: has a DS record | remove from the zone example.org, at its DNS provider or registrar foo-bar DS 12345 13 2 ABAB"},
		{"a lame server", worldGood + worldZone + ". NS old.example.org.\nold.example.org. A 203.0.113.1\n", "delegation: names old.example.org., which does not serve | foo-bar NS old.example.org."},
	} {
		t.Run(row.name, func(t *testing.T) {
			w.says(t, row.parent)
			run := fromOutside(t, ours...)
			run.Findings = slices.DeleteFunc(run.Findings, func(f checkFinding) bool { // what follows from it
				return strings.Contains(f.Detail, "203.0.113.1 port")
			})
			run.wants(t, row.want)
		})
	}
	w.says(t, worldGood)
	t.Run("a resolver finds the parent", func(t *testing.T) {
		writeFile(t, "/tmp/hints", ". 3600000 NS ns.root.\nns.root. 3600000 A "+worldRoot+"\n")
		writeFile(t, "/tmp/wide.conf", "server:\n  interface: "+worldWidely+"\n  outgoing-interface: "+worldWidely+"\n  access-control: 0.0.0.0/0 allow\n  do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  directory: /tmp\n  use-syslog: no\n  module-config: iterator\n  root-hints: /tmp/hints\n  do-ip6: no\nremote-control:\n  control-enable: no\n")
		background(t, "unbound", "-d", "-c", "/tmp/wide.conf")
		eventually(t, readyTimeout, "the resolver to find the gateway", func() error { return asks(worldWidely+":53", "ns1."+worldZone, worldOurs) })
		must(t, "ip", "route", "add", "blackhole", "192.0.2.0/24")
		fromOutside(t, append(ours, "--resolver", worldWidely)...).wants(t)
	})
	t.Run("on the gateway", func(t *testing.T) {
		run := look(t, onVPS(append([]string{program, "gateway", "check", "--json"}, gatewayFlags()...)...)...)
		run.wants(t)
		if err := run.has("node", "ok", "listening at "+worldOurs); err != nil || run.From != "gateway" {
			t.Error(run.From, err)
		}
	})
	t.Run("on a node", func(t *testing.T) { proveNodeChecks(t) })
	gateway.end(t, syscall.SIGTERM)
	t.Run("no gateway runs", func(t *testing.T) {
		run := fromOutside(t, worldZone, "--public", worldOurs)
		for _, name := range []string{"udp", "tcp", "443", "wireguard", "relay"} {
			if err := run.has(name, "fail", "nothing listens there"); err != nil {
				t.Error(err)
			}
		}
		if run.code != 6 {
			t.Errorf("exit code %d", run.code)
		}
	})
}

// proveNodeChecks: a machine that has joined knows what strangers are not told.
func proveNodeChecks(t *testing.T) {
	flags, d := joinWorld(t, "nas", "", worldNode)
	var run checkRun
	eventually(t, readyTimeout, "handshakes with the gateway and its relay", func() error {
		run = look(t, append([]string{program, "gateway", "check", "--json"}, flags...)...)
		return errors.Join(run.has("wireguard", "ok", "last handshake"), run.has("relay", "ok", "last handshake"))
	})
	run.wants(t)
	if run.From != "node" {
		t.Errorf("from %s", run.From)
	}
	d.end(t, syscall.SIGTERM)
}
