package osconfig

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// fakeNM is a NetworkManager with one connection. It reads its configuration when it is told to, and writes the file.
type fakeNM struct {
	*busObject
	bus *privateBus
	rig *rig
}

func newNM(t *testing.T) *fakeNM {
	t.Helper()
	n := stoppedNM(t)
	n.start()
	return n
}

// stoppedNM is one that does not run yet.
func stoppedNM(t *testing.T) *fakeNM {
	t.Helper()
	n := &fakeNM{bus: newBus(t), busObject: newBusObject(t), rig: newRig(t)}
	n.rig.opt.machine.bus = nil // the test's
	n.rig.write("etc/resolv.conf", upstreamConf)
	n.did = func(method string, _ []any) {
		if method == "Reload" {
			n.reload()
		}
	}
	n.set(nmPath, "", "ActiveConnections", []dbus.ObjectPath{nmPath + "/ActiveConnection/1"})
	n.set(nmPath, "", "GlobalDnsConfiguration", map[string]dbus.Variant{})
	n.set(nmPath+"/DnsManager", ".DnsManager", "Mode", "default")
	n.set(nmPath+"/DnsManager", ".DnsManager", "RcManager", "file")
	n.set(nmPath+"/ActiveConnection/1", ".Connection.Active", "Ip4Config", nmPath+"/IP4Config/1")
	n.set(nmPath+"/ActiveConnection/1", ".Connection.Active", "Ip6Config", dbus.ObjectPath("/"))
	n.set(nmPath+"/IP4Config/1", ".IP4Config", "NameserverData", []map[string]dbus.Variant{{"address": dbus.MakeVariant("192.0.2.53")}})
	n.set(nmPath+"/IP4Config/1", ".IP4Config", "Searches", []string{"corp.example"})
	return n
}

// start has it on the bus, and returns its connection.
func (n *fakeNM) start() *dbus.Conn {
	conn := n.bus.join(nmName)
	for _, path := range []dbus.ObjectPath{"/DnsManager", "/ActiveConnection/1", "/ActiveConnection/2", "/IP4Config/1", "/IP4Config/2", "/IP6Config/1"} {
		n.export(conn, nmPath+path, "org.example.None", nil)
	}
	n.export(conn, nmPath, nmName, map[string]any{"Reload": func(flags uint32) *dbus.Error { return n.called("Reload", flags) }})
	return conn
}

// set sets a property; kind is what its interface has behind NetworkManager's name.
func (n *fakeNM) set(path dbus.ObjectPath, kind, name string, value any) {
	n.has(func() {
		object := string(path) + " " + nmName + kind
		if n.props[object] == nil {
			n.props[object] = map[string]any{}
		}
		n.props[object][name] = value
	})
}

// global sets the servers of the global DNS configuration, in the form of NetworkManager.
func (n *fakeNM) global(servers ...string) {
	config := map[string]dbus.Variant{}
	if servers != nil {
		every := map[string]dbus.Variant{"servers": dbus.MakeVariant(servers)}
		config["searches"] = dbus.MakeVariant([]string{"foo-bar.ts.net"})
		config["domains"] = dbus.MakeVariant(map[string]dbus.Variant{"*": dbus.MakeVariant(every)})
	}
	n.set(nmPath, "", "GlobalDnsConfiguration", config)
}

// reload does what NetworkManager does with the file of ours.
func (n *fakeNM) reload() {
	_, servers, ours := strings.Cut(n.rig.read(nmConfig), "[global-dns-domain-*]\nservers=")
	if !ours {
		n.global()
		n.rig.replace("etc/resolv.conf", upstreamConf)
		return
	}
	list := strings.Split(strings.TrimSpace(servers), ",")
	n.global(list...)
	n.rig.replace("etc/resolv.conf", "nameserver "+strings.Join(list, "\nnameserver ")+"\n")
}

// reloads is how often it was told to read its configuration, with which flags.
func (n *fakeNM) reloads() string {
	return strings.Join(slices.DeleteFunc(strings.Split(n.said(), "\n"), func(s string) bool { return !strings.HasPrefix(s, "Reload") }), "\n")
}

func (n *fakeNM) wantNothingOfOurs(t *testing.T) {
	t.Helper()
	if got := n.rig.read(nmConfig); !strings.HasPrefix(got, "error: ") {
		t.Errorf("the file is left: %q", got)
	}
	if j, err := loadJournal(n.rig.opt.StateDir); j != nil || err != nil {
		t.Errorf("the journal is left: %+v, %v", j, err)
	}
	n.rig.wantServers("192.0.2.53")
}

func TestNetworkManagerIsToldAndForgets(t *testing.T) {
	n := newNM(t)
	m := n.rig.open()
	if s := m.Status(); s.Mode != modeNM || !slices.Contains(s.Trace, "NetworkManager's DNS mode is default, and it writes /etc/resolv.conf as file") {
		t.Fatalf("mode %s: %q", s.Mode, s.Trace)
	}
	for range 2 {
		n.rig.must(m.Apply(t.Context(), stubConfig()))
		if got := n.reloads(); got != "Reload 0" {
			t.Errorf("reloads: %q", got)
		}
		want := "# Written by meshdns. To undo it: meshdns dns restore\n[global-dns]\nsearches=foo-bar.ts.net,corp.example\n\n" +
			"[global-dns-domain-*]\nservers=127.0.0.77\n"
		if got := n.rig.read(nmConfig); got != want {
			t.Errorf("the file is %q, want %q", got, want)
		}
		n.rig.wantServers("127.0.0.77")
	}
	j, err := loadJournal(n.rig.opt.StateDir)
	if err != nil || j == nil || j.Mode != modeNM || j.Path != nmConfig {
		t.Errorf("the journal: %+v, %v", j, err)
	}
	if b, err := m.Base(t.Context()); err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) {
		t.Errorf("base: %+v, %v", b, err)
	}
	// By another process: the journal alone says what to undo.
	if report := n.rig.restore(); !report.Changed || report.Detail != "NetworkManager has forgotten us" {
		t.Errorf("report: %+v", report)
	}
	if got := n.reloads(); got != "Reload 0" {
		t.Errorf("reloads: %q", got)
	}
	n.wantNothingOfOurs(t)
	n.rig.must(m.Close())
	n.wantNothingOfOurs(t)
}

func TestNetworkManagersOwnConfigurationIsNotReplaced(t *testing.T) {
	n := newNM(t)
	n.global("192.0.2.99")
	m := n.rig.open()
	err := m.Apply(t.Context(), stubConfig())
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "192.0.2.99") {
		t.Errorf("got %v", err)
	}
	if got := n.reloads(); got != "" || m.Status().Active {
		t.Errorf("reloads: %q, status %+v", got, m.Status())
	}
	n.wantNothingOfOurs(t)
	n.global("127.0.0.77") // left of us by another life is no other's
	n.rig.must(m.Apply(t.Context(), stubConfig()))
}

func TestWhatNetworkManagerDoesNotDoIsUndone(t *testing.T) {
	for name, tt := range map[string]struct {
		make func(n *fakeNM)
		why  string
	}{
		"it takes another file's":    {func(n *fakeNM) { n.did = nil }, "another file of its configuration"},
		"it refuses":                 {func(n *fakeNM) { n.err["Reload"] = dbus.MakeFailedError(errors.New("denied")) }, "denied"},
		"it does not say its config": {func(n *fakeNM) { delete(n.props[string(nmPath)+" "+nmName], "GlobalDnsConfiguration") }, "GlobalDnsConfiguration"},
		"it does not say its links":  {func(n *fakeNM) { delete(n.props[string(nmPath)+" "+nmName], "ActiveConnections") }, "ActiveConnections"},
		"its config is of no known form": {
			func(n *fakeNM) {
				n.props[string(nmPath)+" "+nmName]["GlobalDnsConfiguration"] = map[string]dbus.Variant{"domains": dbus.MakeVariant("*")}
			}, "global DNS configuration",
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNM(t)
			n.has(func() { tt.make(n) })
			err := n.rig.open().Apply(t.Context(), stubConfig())
			if err == nil || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("got %v, want %q", err, tt.why)
			}
			if got := n.rig.read(nmConfig); !strings.HasPrefix(got, "error: ") {
				t.Errorf("the file is left: %q", got)
			}
			n.has(func() { n.err = map[string]*dbus.Error{}; n.did = nil })
			n.global()
			n.rig.restore() // where it could not say that it had forgotten us
			n.wantNothingOfOurs(t)
		})
	}
}

func TestNetworkManagerThatIsGoneHasNothingToForget(t *testing.T) {
	n := newNM(t)
	n.rig.applied()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+n.rig.root+"/none")
	want := []string{"/etc/resolv.conf names 127.0.0.77 still: systemctl restart NetworkManager"}
	if report := n.rig.restore(); !report.Changed || !slices.Equal(report.Left, want) {
		t.Errorf("the report: %+v, want left %q", report, want)
	}
	if j, err := loadJournal(n.rig.opt.StateDir); j != nil || err != nil {
		t.Errorf("the journal is left: %+v, %v", j, err)
	}
	if got := n.rig.read(nmConfig); !strings.HasPrefix(got, "error: ") {
		t.Errorf("the file is left: %q", got)
	}
}

// The file is gone at once, and the journal stays until NetworkManager can say that it has read that.
func TestNetworkManagerThatHangsIsUndoneLater(t *testing.T) {
	n := newNM(t)
	n.rig.applied()
	n.has(func() { n.hang["Reload"] = true })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if report, err := Restore(ctx, n.rig.opt); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %+v, %v", report, err)
	}
	if got := n.rig.read(nmConfig); !strings.HasPrefix(got, "error: ") {
		t.Errorf("the file is left: %q", got)
	}
	if j, err := loadJournal(n.rig.opt.StateDir); j == nil || err != nil {
		t.Errorf("the journal is gone: %v", err)
	}
	n.has(func() { n.hang["Reload"] = false })
	n.rig.restore()
	n.wantNothingOfOurs(t)
}

func TestAFileThatADeadProcessWasWritingIsRemoved(t *testing.T) {
	n := newNM(t)
	n.rig.applied()
	n.rig.write("run/NetworkManager/conf.d/.meshdns.conf.meshdns", "half")
	n.rig.write("run/NetworkManager/conf.d/other.conf", "theirs")
	n.rig.restore()
	entries, err := os.ReadDir(n.rig.path("run/NetworkManager/conf.d"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "other.conf" {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestTheBaseOfNetworkManager(t *testing.T) {
	n := newNM(t)
	n.set(nmPath, "", "ActiveConnections", []dbus.ObjectPath{nmPath + "/ActiveConnection/1", nmPath + "/ActiveConnection/2", nmPath + "/ActiveConnection/9"})
	n.set(nmPath+"/ActiveConnection/1", ".Connection.Active", "Ip6Config", nmPath+"/IP6Config/1")
	n.set(nmPath+"/ActiveConnection/2", ".Connection.Active", "Ip4Config", nmPath+"/IP4Config/2")
	address := func(s string) map[string]dbus.Variant { return map[string]dbus.Variant{"address": dbus.MakeVariant(s)} }
	n.set(nmPath+"/IP4Config/2", ".IP4Config", "NameserverData",
		[]map[string]dbus.Variant{address("192.0.2.53"), address("198.51.100.2"), address("127.0.0.77"), address("no address"), {}})
	n.set(nmPath+"/IP4Config/2", ".IP4Config", "Domains", []string{"~routed.example", "bad domain\n", "~.", "corp.example"})
	n.set(nmPath+"/IP6Config/1", ".IP6Config", "Nameservers", [][]byte{netip.MustParseAddr("2001:db8::1").AsSlice(), {1}})
	m := &networkManager{servers: stubConfig().addrs()}
	b, err := m.base(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := serverWords(b.Servers); !slices.Equal(got, []string{"192.0.2.53:53", "[2001:db8::1]:53", "198.51.100.2:53"}) {
		t.Errorf("servers %q", got)
	}
	if !slices.Equal(b.Search, []string{"corp.example", "routed.example"}) {
		t.Errorf("search %q", b.Search)
	}
}

func TestAConnectionsServersAreLearntWhereNetworkManagerLeavesTheFileAlone(t *testing.T) {
	n := newNM(t)
	n.set(nmPath+"/DnsManager", ".DnsManager", "Mode", "none")
	n.rig.write("etc/resolv.conf", "# by hand\n")
	m := n.rig.open()
	if s := m.Status(); s.Mode != modeDirect {
		t.Fatalf("mode %s: %q", s.Mode, s.Trace)
	}
	n.rig.must(m.Apply(t.Context(), stubConfig()))
	if b, err := m.Base(t.Context()); err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) {
		t.Errorf("base: %+v, %v", b, err)
	}
	if got := n.reloads(); got != "" {
		t.Errorf("it was told: %q", got)
	}
	n.rig.must(m.Close())
	if got := n.rig.read("etc/resolv.conf"); got != "# by hand\n" {
		t.Errorf("after Close: %q", got)
	}
}

// A manager that has just appeared may not be ready: it is told again, and nothing is forgotten over that.
func TestTheMachinesDNSMovesToAManagerAndBack(t *testing.T) {
	n := stoppedNM(t)
	w := watch(t, func(r *rig) { *r = *n.rig })
	if got := w.Status().Mode; got != modeDirect {
		t.Fatalf("the mode is %s", got)
	}
	n.has(func() { n.err["Get"] = dbus.MakeFailedError(errors.New("starting up")) })
	conn := n.start()
	w.until("the failure to be told", func() bool { return strings.Contains(strings.Join(w.Status().Problems, " "), "starting up") })
	w.wantServers("192.0.2.53") // the direct change was undone before
	n.has(func() { n.err["Get"] = nil })
	w.until("NetworkManager to be told again", func() bool {
		s := w.Status()
		return s.Active && s.Mode == modeNM && len(s.Problems) == 0
	})
	w.wantServers("127.0.0.77")
	conn.Close()
	w.until("the file to be ours", func() bool { s := w.Status(); return s.Active && s.Mode == modeDirect })
	if got := w.read(nmConfig); !strings.HasPrefix(got, "error: ") {
		t.Errorf("NetworkManager will be told when it starts: %q", got)
	}
	w.oursAgain()
	w.must(w.Close())
	if got := w.read("etc/resolv.conf"); strings.Contains(got, "127.0.0.77") {
		t.Errorf("after Close: %q", got)
	}
}

func TestTheFileOfNetworkManagerNamesNothingElse(t *testing.T) {
	c := stubConfig()
	c.Servers = append(c.Servers, Server{AddrPort: netip.MustParseAddrPort("[fd7a::1]:53")})
	got := globalDNS(c, []string{"a.example", "b.example"})
	if !bytes.Contains(got, []byte("\nsearches=a.example,b.example\n")) || !bytes.HasSuffix(got, []byte("\nservers=127.0.0.77,fd7a::1\n")) {
		t.Errorf("got %q", got)
	}
}
