package osconfig

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

// mac is as much of a Mac as scutil, dscacheutil and killall show.
type mac struct {
	*rig
	dns     string            // what `scutil --dns` prints
	store   map[string]string // what configd holds of ours, as a script made it
	flushed int
	broken  error // what running a program comes to
}

const macDNS = `DNS configuration

resolver #1
  search domain[0] : corp.example
  search domain[1] : lan
  nameserver[0] : 192.0.2.53
  nameserver[1] : 2001:db8::53
  if_index : 14 (en0)
  flags    : Request A records, Request AAAA records
  reach    : 0x00000002 (Reachable)

resolver #2
  domain   : local
  options  : mdns
  timeout  : 5
  order    : 300000

DNS configuration (for scoped queries)

resolver #1
  nameserver[0] : 198.51.100.1
  if_index : 14 (en0)
  flags    : Scoped, Request A records
  reach    : 0x00020002 (Reachable,Directly Reachable Address)
`

func newMac(t *testing.T) *mac {
	m := &mac{rig: newRig(t), dns: macDNS, store: map[string]string{}}
	m.opt.machine.system = modeScutil
	m.opt.machine.tools = m.run
	return m
}

func (m *mac) run(_ context.Context, r toolRun) ([]byte, error) {
	if m.broken != nil {
		return nil, m.broken
	}
	switch {
	case r.program == scutilProgram && slices.Equal(r.args, []string{"--dns"}):
		return []byte(m.dns), nil
	case r.program == scutilProgram:
		return []byte(m.script(string(r.input))), nil
	case r.program == "/usr/bin/dscacheutil" && slices.Equal(r.args, []string{"-flushcache"}):
		return nil, nil
	case r.program == "/usr/bin/killall" && slices.Equal(r.args, []string{"-HUP", "mDNSResponder"}):
		m.flushed++
		return nil, nil
	}
	return nil, fmt.Errorf("no program %s %q", r.program, r.args)
}

// script does what scutil does with one.
func (m *mac) script(text string) (out string) {
	dict := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		command, rest, _ := strings.Cut(line, " ")
		switch command {
		case "d.init":
			dict = ""
		case "d.add":
			name, values, _ := strings.Cut(rest, " ")
			kind, values, _ := strings.Cut(values, " ")
			if kind == "#" {
				dict += "  " + name + " : " + values + "\n"
				continue
			}
			dict += "  " + name + " : <array> {\n"
			for i, value := range strings.Fields(values) {
				dict += fmt.Sprintf("    %d : %s\n", i, strings.Trim(value, `"`))
			}
			dict += "  }\n"
		case "set":
			m.store[rest] = dict
		case "remove":
			delete(m.store, rest)
		case "show":
			if value, ok := m.store[rest]; ok {
				out += "<dictionary> {\n" + value + "}\n"
			} else {
				out += "  No such key\n"
			}
		}
	}
	return out
}

// all is everything that is to be as before, the times of directories aside.
func (m *mac) all() string {
	m.t.Helper()
	var lines []string
	for line := range strings.Lines(m.snapshot()) {
		if strings.Contains(line, ": "+kindDirectory) {
			line = lessTimes(line) + "\n"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "") + fmt.Sprint(m.store)
}

func splitConfig() Config {
	c := stubConfig()
	c.Match = []string{"64.100.in-addr.arpa", "foo-bar.ts.net"}
	return c
}

func TestWhatMacOSIsTold(t *testing.T) {
	const mark = resolverMark
	high := splitConfig()
	high.Servers[0].AddrPort = netip.MustParseAddrPort("127.0.0.1:5335")
	highAll := stubConfig()
	highAll.Servers = high.Servers
	bare := Config{Servers: stubConfig().Servers}
	const key = "d.init\nd.add ServerAddresses * 127.0.0.77\n"
	const end = "d.add SupplementalMatchDomains * \"\"\nd.add SupplementalMatchDomainsNoSearch # 1\nset State:/Network/Service/meshdns/DNS\n"
	tests := map[string]struct {
		config Config
		files  map[string]string
		script string
	}{
		"names of the tailnet": {
			config: splitConfig(),
			files: map[string]string{
				"foo-bar.ts.net":      mark + "nameserver 127.0.0.77\nport 53\nsearch_order 1\n",
				"64.100.in-addr.arpa": mark + "nameserver 127.0.0.77\nport 53\nsearch_order 1\n",
				"search.meshdns":      mark + "search foo-bar.ts.net\n",
			},
		},
		"a port": {
			config: high,
			files: map[string]string{
				"foo-bar.ts.net":      mark + "nameserver 127.0.0.1\nport 5335\nsearch_order 1\n",
				"64.100.in-addr.arpa": mark + "nameserver 127.0.0.1\nport 5335\nsearch_order 1\n",
				"search.meshdns":      mark + "search foo-bar.ts.net\n",
			},
		},
		"all names": {
			config: stubConfig(),
			files:  map[string]string{"search.meshdns": mark + "search foo-bar.ts.net\n"},
			script: key + "d.add SearchDomains * foo-bar.ts.net\n" + end,
		},
		"all names, and a port": {
			config: highAll,
			files:  map[string]string{"search.meshdns": mark + "search foo-bar.ts.net\n"},
			script: "d.init\nd.add ServerAddresses * 127.0.0.1\nd.add ServerPort # 5335\nd.add SearchDomains * foo-bar.ts.net\n" + end,
		},
		"nothing to search": {config: bare, files: map[string]string{}, script: key + end},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := resolverFiles(test.config); !maps.Equal(got, test.files) {
				t.Errorf("files: got %q, want %q", got, test.files)
			}
			m := newMac(t)
			script := ""
			m.opt.machine.tools = func(ctx context.Context, r toolRun) ([]byte, error) {
				if strings.Contains(string(r.input), "set ") {
					script = string(r.input)
				}
				return m.run(ctx, r)
			}
			x := m.open()
			m.must(x.Apply(t.Context(), test.config))
			if script != test.script {
				t.Errorf("scutil is told %q, want %q", script, test.script)
			}
			for file, text := range test.files {
				if got := m.read("etc/resolver/" + file); got != text {
					t.Errorf("%s: %q, want %q", file, got, text)
				}
			}
			entries, err := os.ReadDir(m.path("etc/resolver"))
			if err != nil || len(entries) != len(test.files) {
				t.Errorf("%d files, %v; want %d", len(entries), err, len(test.files))
			}
		})
	}
}

func TestMacOSIsTakenOverAndComesBack(t *testing.T) {
	for name, c := range map[string]Config{"split": splitConfig(), "all": stubConfig()} {
		for _, dir := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, dir %v", name, dir), func(t *testing.T) {
				m := newMac(t)
				if dir {
					m.write("etc/resolver/corp.example", "nameserver 192.0.2.1\n")
				}
				before := m.all()
				x := m.open()
				wantBase := func() {
					t.Helper()
					b, err := x.Base(t.Context())
					if err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53", "[2001:db8::53]:53"}) || !slices.Equal(b.Search, []string{"corp.example", "lan"}) {
						t.Errorf("base: %+v, %v", b, err)
					}
				}
				wantBase()
				for range 2 {
					m.must(x.Apply(t.Context(), c))
				}
				m.dns = "DNS configuration\n\nresolver #1\n  nameserver[0] : 127.0.0.77\n\nresolver #2\n" + strings.SplitN(macDNS, "resolver #1\n", 2)[1]
				wantBase() // without us
				if s := x.Status(); !s.Active || s.Mode != modeScutil || len(s.Problems) > 0 {
					t.Errorf("status: %+v", s)
				}
				if m.flushed != 2 {
					t.Errorf("mDNSResponder was told %d times, want 2", m.flushed)
				}
				m.restore() // as another process does
				if after := m.all(); after != before {
					t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
				}
				m.must(x.Close())
			})
		}
	}
}

func TestMacOSDomainsComeAndGo(t *testing.T) {
	m := newMac(t)
	x := m.open()
	m.must(x.Apply(t.Context(), stubConfig())) // all names
	c := splitConfig()
	c.Match = []string{"a.example"}
	m.must(x.Apply(t.Context(), c))
	if len(m.store) > 0 {
		t.Errorf("configd still has %v", m.store)
	}
	c.Match, c.Search = []string{"B.example"}, nil
	m.must(x.Apply(t.Context(), c))
	entries, err := os.ReadDir(m.path("etc/resolver"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "b.example" {
		t.Errorf("got %v, %v; want the file of b.example alone", entries, err)
	}
	m.must(x.Close())
	if _, err := os.Stat(m.path("etc/resolver")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of ours is still there: %v", err)
	}
}

func TestAnAdministratorsFileOfTheSameNameStays(t *testing.T) {
	m := newMac(t)
	m.write("etc/resolver/foo-bar.ts.net", "nameserver 192.0.2.1\n")
	m.link("foo-bar.ts.net", "etc/resolver/64.100.in-addr.arpa")
	before := m.all()
	x := m.open()
	m.must(x.Apply(t.Context(), splitConfig()))
	if got := m.read("etc/resolver/foo-bar.ts.net"); got != "nameserver 192.0.2.1\n" {
		t.Errorf("it became %q", got)
	}
	if s := x.Status(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "64.100.in-addr.arpa foo-bar.ts.net") {
		t.Errorf("problems: %q, want one that names both files", s.Problems)
	}
	m.must(x.Close())
	if after := m.all(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// A file of ours whose mark somebody has removed is theirs.
func TestAFileThatIsNoLongerOursStays(t *testing.T) {
	m := newMac(t)
	x := m.open()
	m.must(x.Apply(t.Context(), splitConfig()))
	m.write("etc/resolver/foo-bar.ts.net", "nameserver 192.0.2.1\n")
	m.must(x.Close())
	if got := m.read("etc/resolver/foo-bar.ts.net"); got != "nameserver 192.0.2.1\n" {
		t.Errorf("it became %q", got)
	}
}

func TestWhatMacOSLostItIsToldAgain(t *testing.T) {
	m := newMac(t)
	for name, lose := range map[string]func(){
		"a file":      func() { m.must(os.Remove(m.path("etc/resolver/search.meshdns"))) },
		"the service": func() { clear(m.store) },
	} {
		x := m.open()
		m.must(x.Apply(t.Context(), stubConfig()))
		want := m.store[scutilKey] + m.read("etc/resolver/search.meshdns")
		lose()
		x.look(t.Context())
		if got := m.store[scutilKey] + m.read("etc/resolver/search.meshdns"); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		m.must(x.Close())
	}
}

func TestAFlushThatFailsIsToldOf(t *testing.T) {
	m := newMac(t)
	m.opt.machine.tools = func(ctx context.Context, r toolRun) ([]byte, error) {
		if r.program == "/usr/bin/killall" {
			return nil, errors.New("not permitted")
		}
		return m.run(ctx, r)
	}
	x := m.open()
	m.must(x.Apply(t.Context(), splitConfig()))
	if s := x.Status(); !s.Active || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "not permitted") {
		t.Errorf("status: %+v", s)
	}
	m.must(x.Close())
}

func TestDomainsThatAreNoneReachNoSystem(t *testing.T) {
	bad := []string{"a\nset State:/x", "a b", "../../etc/passwd", "a/b", "a..b", `a"b`, "", "a.example.", strings.Repeat("a", 64), "d.init\n", "*"}
	for _, domain := range bad {
		for name, c := range map[string]Config{
			"match":  {Servers: stubConfig().Servers, Match: []string{domain}},
			"search": {Servers: stubConfig().Servers, Search: []string{domain}},
		} {
			m, w, o := newMac(t), newWindows(t), newOpenBSD(t)
			for system, x := range map[string]*rig{"macOS": m.rig, "Windows": w.rig, "OpenBSD": o.rig} {
				before := x.snapshot() + fmt.Sprint(m.store) + w.words()
				if err := x.open().Apply(t.Context(), c); err == nil || !strings.Contains(err.Error(), "is no domain") {
					t.Errorf("%s, %s %q: got %v", system, name, domain, err)
				}
				if after := x.snapshot() + fmt.Sprint(m.store) + w.words(); after != before {
					t.Errorf("%s, %s %q: something was changed:\n%s", system, name, domain, after)
				}
			}
		}
	}
}

func TestMacOSTakesManyDomains(t *testing.T) {
	m := newMac(t)
	before := m.all()
	c := stubConfig()
	for n := range 300 {
		c.Match = append(c.Match, fmt.Sprintf("d%d.example", n))
	}
	x := m.open()
	m.must(x.Apply(t.Context(), c))
	if entries, err := os.ReadDir(m.path("etc/resolver")); err != nil || len(entries) != 301 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	m.restore()
	if after := m.all(); after != before {
		t.Error("not as it was")
	}
}

// dieEverywhere kills a take-over, or what f does, before each of its changes; all has to be as before once it is undone.
func dieEverywhere(t *testing.T, least int, start func(t *testing.T) (r *rig, all func() string), c Config) {
	for recovery, recover := range map[string]func(r *rig){
		"restore":    func(r *rig) { r.restore() },
		"twice":      func(r *rig) { r.killAt(2, func(o Options) { _, _ = Restore(t.Context(), o) }); r.restore() },
		"next start": func(r *rig) { r.open() },
	} {
		t.Run(recovery, func(t *testing.T) {
			for n := 0; ; n++ {
				r, all := start(t)
				before := all()
				where, killed := r.killAt(n, func(o Options) {
					x, err := Open(t.Context(), o)
					if err != nil {
						t.Error(err)
						return
					}
					more := c
					more.Match = append(slices.Clone(c.Match), "more.example")
					for _, c := range []Config{c, more, c, {}} {
						if err := x.Apply(t.Context(), c); err != nil {
							t.Error(err)
						}
					}
				})
				if !killed {
					if n < least {
						t.Errorf("only %d steps, want %d at least", n, least)
					}
					return
				}
				recover(r)
				if after := all(); after != before {
					t.Fatalf("killed before %s (%d): not as it was\nbefore:\n%s\nafter:\n%s", where, n, before, after)
				}
			}
		})
	}
}

func TestDeathAtEveryStepOnMacOSIsUndone(t *testing.T) {
	for name, c := range map[string]Config{"split": splitConfig(), "all": stubConfig()} {
		t.Run(name, func(t *testing.T) {
			dieEverywhere(t, 40, func(t *testing.T) (*rig, func() string) {
				m := newMac(t)
				if name == "all" {
					m.write("etc/resolver/corp.example", "nameserver 192.0.2.1\n")
				}
				return m.rig, m.all
			}, c)
		})
	}
}

func TestScutilBase(t *testing.T) {
	ours := []netip.Addr{netip.MustParseAddr("127.0.0.77")}
	tests := map[string]struct {
		text   string
		want   []string
		search []string
	}{
		"a network":                        {macDNS, []string{"192.0.2.53:53", "[2001:db8::53]:53"}, []string{"corp.example", "lan"}},
		"only us, and the link's":          {"DNS configuration\nresolver #1\n nameserver[0] : 127.0.0.77\nDNS configuration (for scoped queries)\nresolver #1\n nameserver[0] : 192.0.2.1\n", []string{"192.0.2.1:53"}, nil},
		"a port behind the server":         {"DNS configuration\nresolver #1\n nameserver[0] : 192.0.2.1\n port : 5300\n", []string{"192.0.2.1:5300"}, nil},
		"a resolver for one domain":        {"DNS configuration\nresolver #1\n domain : corp.example\n nameserver[0] : 192.0.2.1\n", nil, nil},
		"no network":                       {"No DNS configuration available\n", nil, nil},
		"link-local":                       {"DNS configuration\nresolver #1\n nameserver[0] : fe80::1%en0\n", []string{"[fe80::1%en0]:53"}, nil},
		"what is no address, and a colon":  {"DNS configuration\nresolver #1\n nameserver[0] : a:b\n search domain[0] : x y\n port : 99999\n :\n", nil, nil},
		"lines before the first resolver":  {"nameserver[0] : 192.0.2.1\nport : 1\n", nil, nil},
		"nothing":                          {"", nil, nil},
		"an odd search list, and a server": {"DNS configuration\nresolver #1\n search domain[0] : .\n search domain[1] : LAN\n nameserver[0] : 192.0.2.1\n", []string{"192.0.2.1:53"}, []string{"LAN"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := scutilBase(parseScutilDNS([]byte(test.text)), ours)
			if !slices.Equal(serverWords(b.Servers), test.want) || !slices.Equal(b.Search, test.search) {
				t.Errorf("got %v, search %q; want %v, %q", serverWords(b.Servers), b.Search, test.want, test.search)
			}
		})
	}
}

func FuzzScutil(f *testing.F) {
	f.Add([]byte(macDNS))
	f.Add([]byte("<dictionary> {\n  ServerAddresses : <array> {\n    0 : 127.0.0.77\n  }\n  ServerPort : 5335\n}\n"))
	f.Add([]byte("resolver #1\n nameserver[0 : fe80::1%e\n port : 0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours := []netip.Addr{netip.MustParseAddr("127.0.0.77")}
		list := parseScutilDNS(data)
		if len(list) > maxScutilResolvers {
			t.Fatalf("%d resolvers", len(list))
		}
		b := scutilBase(list, ours)
		for _, s := range b.Servers {
			if !s.AddrPort.IsValid() || s.AddrPort.Port() == 0 || slices.Contains(ours, s.AddrPort.Addr()) {
				t.Errorf("the base has %v", s)
			}
		}
		if len(b.Servers) > maxServersRead {
			t.Errorf("%d servers", len(b.Servers))
		}
		for _, domain := range b.Search {
			if _, ok := cleanDomain(domain); !ok {
				t.Errorf("the base searches %q", domain)
			}
		}
		if dict := parseScutilDict(data); len(dict) > maxScutilResolvers {
			t.Errorf("%d entries", len(dict))
		}
	})
}
