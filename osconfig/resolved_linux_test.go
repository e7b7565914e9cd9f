package osconfig

import (
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

const linkPath = resolvedPath + "/link/_342"

// fakeLink is the backend with a link of number 42, which the kernel knows nothing of.
func fakeLink(t *testing.T) *resolved {
	return &resolved{open: func() (*tunLink, error) {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return &tunLink{file: f, index: 42}, nil
	}}
}

// resolvedMethods are those of systemd-resolved that we call.
func resolvedMethods(o *busObject) map[string]any {
	word := func(method string) any {
		return func(index int32, word string) *dbus.Error { return o.called(method, index, word) }
	}
	return map[string]any{
		"SetLinkDNSEx":        func(index int32, s []linkServer) *dbus.Error { return o.called("SetLinkDNSEx", index, s) },
		"SetLinkDomains":      func(index int32, d []linkDomain) *dbus.Error { return o.called("SetLinkDomains", index, d) },
		"SetLinkDefaultRoute": func(index int32, on bool) *dbus.Error { return o.called("SetLinkDefaultRoute", index, on) },
		"SetLinkLLMNR":        word("SetLinkLLMNR"),
		"SetLinkMulticastDNS": word("SetLinkMulticastDNS"),
		"SetLinkDNSSEC":       word("SetLinkDNSSEC"),
		"SetLinkDNSOverTLS":   word("SetLinkDNSOverTLS"),
		"FlushCaches":         func() *dbus.Error { return o.called("FlushCaches") },
		"RevertLink":          func(index int32) *dbus.Error { return o.called("RevertLink", index) },
		"GetLink":             func(index int32) (dbus.ObjectPath, *dbus.Error) { return linkPath, o.called("GetLink", index) },
		"ResolveRecord": func(index int32, name string, class, kind uint16, flags uint64) *dbus.Error {
			return o.called("ResolveRecord", index, name, class, kind, flags)
		},
	}
}

// newResolved1 is a systemd-resolved of a version that lacks some methods.
func newResolved1(t *testing.T, lacking ...string) *busObject {
	t.Helper()
	conn := newBus(t).join(resolvedName)
	o := newBusObject(t)
	methods := resolvedMethods(o)
	for _, name := range lacking {
		delete(methods, name)
	}
	o.export(conn, resolvedPath, resolvedName+".Manager", methods)
	o.export(conn, linkPath, resolvedName+".Link", nil)
	return o
}

func TestWhatSystemdResolvedIsTold(t *testing.T) {
	split := stubConfig()
	split.Match = []string{"foo-bar.ts.net", "64.100.in-addr.arpa"}
	split.Servers = []Server{
		{AddrPort: netip.MustParseAddrPort("127.0.0.77:5335")},
		{AddrPort: netip.MustParseAddrPort("[fd7a::1]:53"), Name: "dns.example"},
	}
	const quiet = "SetLinkLLMNR 42 no\nSetLinkMulticastDNS 42 no\nSetLinkDNSSEC 42 no\nSetLinkDNSOverTLS 42 no\nFlushCaches\n"
	for name, tt := range map[string]struct {
		config Config
		want   string
	}{
		"all names": {stubConfig(), "SetLinkDNSEx 42 [{2 [127 0 0 77] 53 }]\nSetLinkDomains 42 [{foo-bar.ts.net false} {. true}]\n" +
			"SetLinkDefaultRoute 42 true\n" + quiet + "ResolveRecord 0 foo-bar.ts.net 1 6 0"},
		"suffixes, a port, IPv6 and a name": {split, "SetLinkDNSEx 42 [{2 [127 0 0 77] 5335 } {10 [253 122 0 0 0 0 0 0 0 0 0 0 0 0 0 1] 53 dns.example}]\n" +
			"SetLinkDomains 42 [{foo-bar.ts.net false} {64.100.in-addr.arpa true}]\nSetLinkDefaultRoute 42 false\n" + quiet + "ResolveRecord 0 foo-bar.ts.net 1 6 0"},
		"no domain to look up": {Config{Servers: stubConfig().Servers}, "SetLinkDNSEx 42 [{2 [127 0 0 77] 53 }]\nSetLinkDomains 42 [{. true}]\n" +
			"SetLinkDefaultRoute 42 true\n" + strings.TrimSuffix(quiet, "\n")},
	} {
		t.Run(name, func(t *testing.T) {
			o := newResolved1(t)
			r := fakeLink(t)
			for range 2 { // it may be told again, on the same link
				if err := r.apply(t.Context(), tt.config); err != nil {
					t.Fatal(err)
				}
				if got := o.said(); got != tt.want {
					t.Errorf("told:\n%s\nwant:\n%s", got, tt.want)
				}
			}
			if err := r.restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := o.said(); got != "RevertLink 42" || r.link != nil {
				t.Errorf("at the end: %q, the link is %v", got, r.link)
			}
			if err := r.restore(t.Context()); err != nil || o.said() != "" {
				t.Errorf("at the end, again: %v", err)
			}
		})
	}
}

// Versions before 240 lack SetLinkDefaultRoute, those before 239 DNS over TLS, and builds leave more out.
func TestWhatSystemdResolvedMayLack(t *testing.T) {
	for method, optional := range map[string]bool{
		"SetLinkDefaultRoute": true, "SetLinkLLMNR": true, "SetLinkMulticastDNS": true, "SetLinkDNSSEC": true,
		"SetLinkDNSOverTLS": true, "FlushCaches": true, "SetLinkDNSEx": false, "SetLinkDomains": false, "ResolveRecord": false,
	} {
		t.Run(method, func(t *testing.T) {
			o := newResolved1(t, method)
			err := fakeLink(t).apply(t.Context(), stubConfig())
			if optional != (err == nil) {
				t.Errorf("without it: %v", err)
			}
			if got := o.said(); optional && !strings.HasSuffix(got, "ResolveRecord 0 foo-bar.ts.net 1 6 0") {
				t.Errorf("without it the rest is not done:\n%s", got)
			}
		})
	}
}

// resolvedRig is a machine that systemd-resolved manages, of files and the test's bus.
func resolvedRig(t *testing.T) *rig {
	r := newRig(t)
	r.write("etc/resolv.conf", "nameserver 127.0.0.53\n")
	r.opt.machine.bus = nil // the test's
	return r
}

func TestWhatSystemdResolvedRefusesIsUndone(t *testing.T) {
	for method, what := range map[string]string{"SetLinkDomains": "telling systemd-resolved (SetLinkDomains)", "ResolveRecord": "looking foo-bar.ts.net up"} {
		t.Run(method, func(t *testing.T) {
			o := newResolved1(t)
			o.has(func() { o.err[method] = dbus.MakeFailedError(errors.New("argument list too long")) })
			r := resolvedRig(t)
			before := r.snapshot()
			m := r.open()
			if m.mode != modeResolved {
				t.Fatalf("the mode is %s: %q", m.mode, m.trace)
			}
			m.managed = fakeLink(t)
			err := m.Apply(t.Context(), stubConfig())
			if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "too long") {
				t.Errorf("got %v, want to be told of %s", err, what)
			}
			if got := o.said(); !strings.HasSuffix(got, "\nRevertLink 42\nGet DNSEx\nGet Domains") && !strings.HasSuffix(got, "\nRevertLink 42\nGet DNS") {
				t.Errorf("it is not reverted:\n%s", got)
			}
			if m.Status().Active || r.snapshot() != before {
				t.Errorf("it is left changed: %+v", m.Status())
			}
		})
	}
}

// A manager that was stopped (SIGSTOP) answers nothing, and its link goes all the same.
func TestASystemdResolvedThatHangsCostsNoMoreThanItsTime(t *testing.T) {
	o := newResolved1(t)
	o.has(func() { o.hang["SetLinkLLMNR"] = true; o.hang["RevertLink"] = true })
	r := fakeLink(t)
	start := time.Now()
	if err := r.apply(t.Context(), stubConfig()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "SetLinkLLMNR") {
		t.Errorf("apply: got %v, though optional it hung", err)
	}
	if took := time.Since(start); took > busTimeout+time.Second {
		t.Errorf("it took %s", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.restore(ctx); err != nil || r.link != nil {
		t.Errorf("restore: %v, the link is %v", err, r.link)
	}
}

func TestStatusDoesNotWaitForAManagerThatHangs(t *testing.T) {
	o := newResolved1(t)
	o.has(func() { o.hang["SetLinkDNSEx"] = true })
	m := resolvedRig(t).open()
	m.managed = fakeLink(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- m.Apply(ctx, stubConfig()) }()
	eventually(t, "the call that hangs", func() bool { return strings.Contains(o.said(), "SetLinkDNSEx") })
	if s := m.Status(); s.Active || s.Mode != modeResolved { // waits for ever if it takes the lock, until the call's time is over
		t.Errorf("status: %+v", s)
	}
	if m.mu.TryLock() {
		t.Error("the call hangs no more, so the test proves nothing")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestWhatSystemdResolvedStillHolds(t *testing.T) {
	ours := linkServers(stubConfig())
	usual := slices.Clone(ours)
	usual[0].Port = 0
	other := slices.Clone(ours)
	other[0].Addr = []byte{127, 0, 0, 78}
	domains := []linkDomain{{".", true}, {"foo-bar.ts.net", false}} // in an order of its own
	for name, tt := range map[string]struct {
		servers []linkServer
		domains []linkDomain
		want    bool
	}{
		"all":                       {ours, domains, true},
		"port 53 told as 0":         {usual, domains, true},
		"nothing":                   {nil, nil, false},
		"no domains":                {ours, nil, false},
		"another server":            {other, domains, false},
		"one server more":           {append(slices.Clone(ours), other...), domains, false},
		"a search domain more":      {ours, append(slices.Clone(domains), linkDomain{"lan", false}), false},
		"our domain, not to search": {ours, []linkDomain{{".", true}, {"foo-bar.ts.net", true}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := newResolved1(t)
			o.has(func() {
				o.props[string(linkPath)+" "+resolvedName+".Link"] = map[string]any{"DNSEx": tt.servers, "Domains": tt.domains}
			})
			r := fakeLink(t)
			if got, err := r.holds(t.Context(), stubConfig()); got || err != nil {
				t.Errorf("without a link: %t, %v", got, err)
			}
			if err := r.apply(t.Context(), stubConfig()); err != nil {
				t.Fatal(err)
			}
			o.said()
			if got, err := r.holds(t.Context(), stubConfig()); got != tt.want || err != nil {
				t.Errorf("got %t, %v; want %t", got, err, tt.want)
			}
			if got := o.said(); !strings.HasPrefix(got, "GetLink 42\n") {
				t.Errorf("asked for %q", got)
			}
			o.has(func() { o.err["GetLink"] = dbus.MakeFailedError(errors.New("link 42 is not known")) })
			if got, err := r.holds(t.Context(), stubConfig()); got || err == nil {
				t.Errorf("of a link that is not known: %t, %v", got, err)
			}
		})
	}
}

func TestTheBaseOfSystemdResolved(t *testing.T) {
	v4 := func(link int32, last byte, port uint16) globalServer {
		return globalServer{link, 2, []byte{192, 0, 2, last}, port, ""}
	}
	linkLocal := netip.MustParseAddr("fe80::1").AsSlice()
	o := newResolved1(t)
	o.has(func() {
		o.props[string(resolvedPath)+" "+resolvedName+".Manager"] = map[string]any{
			"DNSEx": []globalServer{
				v4(2, 1, 0), v4(3, 1, 53), v4(0, 2, 5353), // one twice, and a global one
				{42, 2, []byte{127, 0, 0, 77}, 0, ""},
				{1, 2, []byte{127, 0, 0, 77}, 0, ""}, // ours too: of a loopback server it says that it is lo's
				v4(42, 9, 0),                         // of our link, whoever set it
				{1, 10, linkLocal, 0, ""},
				{2, 10, netip.MustParseAddr("2001:db8::1").AsSlice(), 0, "dns.example"},
				{2, 2, []byte{1, 2}, 0, ""}, // no address
			},
			"Domains": []globalDomain{
				{2, "lan", false}, {3, "lan", false}, {0, "corp.example", false}, {2, "routed.example", true}, {42, "foo-bar.ts.net", false},
			},
		}
	})
	r := fakeLink(t)
	if err := r.apply(t.Context(), stubConfig()); err != nil {
		t.Fatal(err)
	}
	b, err := r.base(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:5353", "[fe80::1%lo]:53"}
	if got := serverWords(b.Servers); !slices.Equal(got, want) {
		t.Errorf("servers %q, want %q", got, want)
	}
	if !slices.Equal(b.Search, []string{"lan", "corp.example"}) {
		t.Errorf("search %q", b.Search)
	}
	if got := serverWords(b.Routes["routed.example"]); !slices.Equal(got, []string{"192.0.2.1:53", "[2001:db8::1]:53"}) {
		t.Errorf("routed.example is asked at %q, want the servers of its link", got)
	}
	o.has(func() {
		props := o.props[string(resolvedPath)+" "+resolvedName+".Manager"]
		props["Domains"] = append(props["Domains"].([]globalDomain), globalDomain{3, ".", true})
	})
	if b, err := r.base(t.Context()); err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.1:53"}) {
		t.Errorf("of a link that is for every name: got %q, %v; want that one's servers alone", serverWords(b.Servers), err)
	}
	o.has(func() { delete(o.props[string(resolvedPath)+" "+resolvedName+".Manager"], "DNSEx") }) // before 246
	if b, err := r.base(t.Context()); err == nil {
		t.Errorf("without DNSEx: %+v", b)
	}
	if got := linkName(1 << 30); got != "" {
		t.Errorf("a link that is gone is called %q", got)
	}
}

func TestALinkThatCannotBeMadeIsToldOf(t *testing.T) {
	noTUN := &os.PathError{Op: "open", Path: "/dev/net/tun", Err: os.ErrNotExist}
	r := &resolved{open: func() (*tunLink, error) { return nil, noTUN }}
	if err := r.apply(t.Context(), stubConfig()); !errors.Is(err, noTUN) {
		t.Errorf("got %v", err)
	}
	if err := r.restore(t.Context()); err != nil {
		t.Errorf("restore: %v", err)
	}
}
