package osconfig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// windowsBox is a Windows of a registry in memory.
type windowsBox struct {
	*rig
	values   map[string]map[string]regValue // by key and name, in whatever case keys are written
	up       []string
	notified []bool // with group policy, or without
	deaf     error  // what notifying comes to
	writes   []string
}

const linkGUID = "{11111111-2222-3333-4444-555555555555}"

func newWindows(t *testing.T) *windowsBox {
	w := &windowsBox{rig: newRig(t), values: map[string]map[string]regValue{}, up: []string{linkGUID}}
	w.opt.machine.system = modeNRPT
	w.opt.machine.win = &windowsEdge{
		registry: w,
		links:    func() ([]string, error) { return w.up, nil },
		notify: func(_ context.Context, policy bool) error {
			w.notified = append(w.notified, policy)
			return w.deaf
		},
	}
	w.put(tcpip, searchList, regValue{Kind: regString})
	w.put(tcpip, "Domain", regValue{Kind: regString, Text: "corp.example"})
	w.put(tcpip+`\Interfaces\`+linkGUID, "DhcpNameServer", regValue{Kind: regString, Text: "192.0.2.53 198.51.100.1"})
	w.put(tcpip+`\Interfaces\`+linkGUID, "DhcpDomain", regValue{Kind: regString, Text: "lan"})
	w.put(tcpip+`\Interfaces\{down}`, "NameServer", regValue{Kind: regString, Text: "203.0.113.1"})
	return w
}

func (w *windowsBox) put(path, name string, v regValue) {
	if w.values[path] == nil {
		w.values[path] = map[string]regValue{}
	}
	w.values[path][name] = v
}

func (w *windowsBox) keys(path string) ([]string, error) {
	var names []string
	_, there := w.values[path]
	for key := range w.values {
		if rest, ok := strings.CutPrefix(key, path+`\`); ok {
			there = true
			name, _, _ := strings.Cut(rest, `\`)
			names = appendNew(names, name)
		}
	}
	if !there {
		return nil, fs.ErrNotExist
	}
	return names, nil
}

func (w *windowsBox) get(path, name string) (regValue, error) {
	v, ok := w.values[path][name]
	if !ok {
		return v, fs.ErrNotExist
	}
	return v, nil
}

func (w *windowsBox) set(path, name string, v regValue) error {
	w.writes = append(w.writes, fmt.Sprintf(`%s\%s %s %s`, path, name, v.Kind, v))
	if v.Kind == regNone {
		delete(w.values[path], name)
		return nil
	}
	for parent := path; ; { // a key is made with those above it
		if w.values[parent] == nil {
			w.values[parent] = map[string]regValue{}
		}
		i := strings.LastIndex(parent, `\`)
		if i < 0 || !strings.HasSuffix(parent[:i], "DnsPolicyConfig") {
			break
		}
		parent = parent[:i]
	}
	w.put(path, name, v)
	return nil
}

func (w *windowsBox) removeKey(path string) error {
	w.writes = append(w.writes, "- "+path)
	if _, ok := w.values[path]; !ok {
		return fs.ErrNotExist
	}
	if below, _ := w.keys(path); len(below) > 0 {
		return errors.New("it has keys below it")
	}
	delete(w.values, path)
	return nil
}

// words is the registry in words.
func (w *windowsBox) words() string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(w.values)) {
		fmt.Fprintf(&b, "%s\n", path)
		for _, name := range slices.Sorted(maps.Keys(w.values[path])) {
			fmt.Fprintf(&b, "  %s %s %s\n", name, w.values[path][name].Kind, w.values[path][name])
		}
	}
	return b.String()
}

func (w *windowsBox) all() string { return w.snapshot() + w.words() }

const firstRule = `{6D657368-646E-7300-8000-000000000001}`

// adminRule is a rule of group policy's.
func (w *windowsBox) adminRule(root string) {
	if w.values[root] == nil {
		w.values[root] = map[string]regValue{}
	}
	w.put(root+`\{99999999-0000-0000-0000-000000000000}`, "Name", regValue{Kind: regStrings, List: []string{".ad.example"}})
}

func TestWhatWindowsIsTold(t *testing.T) {
	rule := func(root, key, names string) []string {
		at := root + `\` + key
		return []string{
			at + `\Version REG_DWORD 2`,
			at + `\ConfigOptions REG_DWORD 8`,
			at + `\GenericDNSServers REG_SZ 127.0.0.77`,
			at + `\Name REG_MULTI_SZ ` + names,
		}
	}
	search := tcpip + `\SearchList REG_SZ foo-bar.ts.net,corp.example,lan`
	const split = ".64.100.in-addr.arpa .foo-bar.ts.net"
	tests := map[string]struct {
		prepare func(*windowsBox)
		config  Config
		writes  []string
		policy  bool
	}{
		"names of the tailnet": {config: splitConfig(), writes: append(rule(nrptLocal, firstRule, split), search)},
		"all names":            {config: stubConfig(), writes: append(rule(nrptLocal, firstRule, "."), search)},
		"a search list of an administrator's": {
			prepare: func(w *windowsBox) {
				w.put(tcpip, searchList, regValue{Kind: regString, Text: "a.example,foo-bar.ts.net"})
			},
			config: splitConfig(),
			writes: append(rule(nrptLocal, firstRule, split), tcpip+`\SearchList REG_SZ foo-bar.ts.net,a.example`),
		},
		"nothing to search": {
			config: Config{Servers: stubConfig().Servers, Match: splitConfig().Match},
			writes: rule(nrptLocal, firstRule, split),
		},
		"group policy has rules": {
			prepare: func(w *windowsBox) { w.adminRule(nrptPolicy) },
			config:  splitConfig(), policy: true,
			writes: slices.Concat(rule(nrptLocal, firstRule, split), rule(nrptPolicy, firstRule, split), []string{search}),
		},
		"group policy has a key without rules, and local rules of others": {
			prepare: func(w *windowsBox) { w.put(nrptPolicy, "", regValue{}); w.adminRule(nrptLocal) },
			config:  splitConfig(),
			writes:  append(rule(nrptLocal, firstRule, split), search),
		},
		"rules of a dead process": {
			prepare: func(w *windowsBox) {
				for _, root := range []string{nrptLocal, nrptPolicy} {
					w.put(root, "", regValue{})
					w.put(root+`\`+strings.ToLower(rulePrefix)+"000000000009}", "Name", regValue{Kind: regStrings, List: []string{"."}})
				}
			},
			config: splitConfig(), policy: true,
			writes: slices.Concat(rule(nrptLocal, firstRule, split), []string{
				"- " + nrptLocal + `\` + strings.ToLower(rulePrefix) + "000000000009}",
				"- " + nrptPolicy + `\` + strings.ToLower(rulePrefix) + "000000000009}",
				"- " + nrptPolicy, // or else local rules would not count
				search,
			}),
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWindows(t)
			if test.prepare != nil {
				test.prepare(w)
			}
			x := w.open()
			w.must(x.Apply(t.Context(), test.config))
			if !slices.Equal(w.writes, test.writes) {
				t.Errorf("wrote\n%s\nwant\n%s", strings.Join(w.writes, "\n"), strings.Join(test.writes, "\n"))
			}
			if !slices.Equal(w.notified, []bool{test.policy}) {
				t.Errorf("notified %v, want once, with policy %v", w.notified, test.policy)
			}
			if ok, err := x.managed.holds(t.Context(), test.config); !ok || err != nil {
				t.Errorf("it does not hold: %v", err)
			}
			w.writes = nil
			w.must(x.Apply(t.Context(), test.config))
			if len(w.writes) > 0 {
				t.Errorf("wrote again %q", w.writes)
			}
			w.must(x.Close())
			if strings.Contains(w.words(), "127.0.0.77") {
				t.Errorf("something of ours is left:\n%s", w.words())
			}
		})
	}
}

func TestWindowsIsTakenOverAndComesBack(t *testing.T) {
	for name, prepare := range map[string]func(*windowsBox){
		"plain":                   func(*windowsBox) {},
		"group policy":            func(w *windowsBox) { w.adminRule(nrptPolicy) },
		"local rules of others":   func(w *windowsBox) { w.put(nrptLocal, "", regValue{}); w.adminRule(nrptLocal) },
		"no search list":          func(w *windowsBox) { delete(w.values[tcpip], searchList) },
		"a list that is expanded": func(w *windowsBox) { w.put(tcpip, searchList, regValue{Kind: regExpand, Text: "a.example"}) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWindows(t)
			prepare(w)
			before := w.all()
			x := w.open()
			b, err := x.Base(t.Context())
			if err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53", "198.51.100.1:53"}) {
				t.Errorf("base: %+v, %v", b, err)
			}
			for _, c := range []Config{splitConfig(), stubConfig(), splitConfig()} {
				w.must(x.Apply(t.Context(), c))
			}
			if after, err := x.Base(t.Context()); err != nil || !after.equal(b) {
				t.Errorf("the base became %+v, %v; want %+v", after, err, b)
			}
			for range 2 {
				w.restore() // as another process does
			}
			if after := w.all(); after != before {
				t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
			}
			w.must(x.Close())
		})
	}
}

func TestTheBaseOnWindows(t *testing.T) {
	w := newWindows(t)
	w.up = []string{"{a}", "{b}", linkGUID}
	w.put(tcpip+`\Interfaces\{a}`, "NameServer", regValue{Kind: regString, Text: "203.0.113.9,127.0.0.77"})
	w.put(tcpip+`\Interfaces\{a}`, "DhcpNameServer", regValue{Kind: regString, Text: "203.0.113.10"})
	w.put(tcpip+`\Interfaces\{b}`, "NameServer", regValue{Kind: regString, Text: "x 0.0.0.0 203.0.113.9"})
	w.put(tcpip6+`\Interfaces\{b}`, "NameServer", regValue{Kind: regString, Text: "2001:db8::53 fec0:0:0:ffff::1"})
	x := w.open()
	w.must(x.Apply(t.Context(), splitConfig()))
	b, err := x.Base(t.Context())
	want := []string{"203.0.113.9:53", "192.0.2.53:53", "198.51.100.1:53", "[2001:db8::53]:53"}
	if err != nil || !slices.Equal(serverWords(b.Servers), want) || !slices.Equal(b.Search, []string{"corp.example", "lan"}) {
		t.Errorf("got %v, %q, %v; want %v", serverWords(b.Servers), b.Search, err, want)
	}
}

func TestFiftyDomainsARule(t *testing.T) {
	for _, test := range []struct{ domains, rules, dropped int }{
		{1, 1, 0}, {50, 1, 0}, {51, 2, 0}, {257, 6, 0}, {5000, 100, 0}, {5003, 100, 3},
	} {
		c := stubConfig()
		for n := range test.domains {
			c.Match = append(c.Match, fmt.Sprintf("d%d.example", n))
		}
		rules, dropped := nrptRules(c)
		var names []string
		for _, r := range rules {
			list := r.values[3].value.List
			if len(list) > 50 {
				t.Errorf("%d domains: a rule of %d", test.domains, len(list))
			}
			names = append(names, list...)
		}
		if len(rules) != test.rules || dropped != test.dropped || len(names) != test.domains-dropped || names[0] != ".d0.example" {
			t.Errorf("%d domains: %d rules of %d domains, %d dropped; want %d, %d", test.domains, len(rules), len(names), dropped, test.rules, test.dropped)
		}
	}
	w := newWindows(t)
	before := w.all()
	c := stubConfig()
	for n := range 5003 {
		c.Match = append(c.Match, fmt.Sprintf("d%d.example", n))
	}
	x := w.open()
	w.must(x.Apply(t.Context(), c))
	if s := x.Status(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "3 are left out") {
		t.Errorf("problems: %q", s.Problems)
	}
	c.Match = c.Match[:60] // of a hundred rules two are left
	w.must(x.Apply(t.Context(), c))
	if keys, err := w.keys(nrptLocal); err != nil || len(keys) != 2 {
		t.Errorf("%d rules, %v", len(keys), err)
	}
	w.must(x.Close())
	if after := w.all(); after != before {
		t.Error("not as it was")
	}
}

func TestGroupPolicyComesAndGoes(t *testing.T) {
	w := newWindows(t)
	x := w.open()
	w.must(x.Apply(t.Context(), splitConfig()))
	w.adminRule(nrptPolicy)
	x.look(t.Context())
	if _, err := w.get(nrptPolicy+`\`+firstRule, "Name"); err != nil {
		t.Errorf("our rule is not beside those of group policy:\n%s", w.words())
	}
	if s := x.Status(); s.Mode != modeNRPT || !s.Active {
		t.Errorf("status: %+v", s)
	}
	delete(w.values, nrptPolicy+`\{99999999-0000-0000-0000-000000000000}`)
	x.look(t.Context())
	if _, err := w.keys(nrptPolicy); err == nil {
		t.Errorf("a key of group policy keeps local rules from counting:\n%s", w.words())
	}
	w.put(dnsPolicy, searchList, regValue{Kind: regString, Text: "ad.example"})
	w.must(x.Apply(t.Context(), splitConfig()))
	if s := x.Status(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "group policy sets the search list") {
		t.Errorf("problems: %q", s.Problems)
	}
	w.must(x.Close())
}

func TestTheSearchListThatSomebodyWroteSince(t *testing.T) {
	text := func(s string) regValue { return regValue{Kind: regString, Text: s} }
	note := nrptNote{Search: []string{"foo-bar.ts.net"}, Before: text("a.example"), Wrote: text("foo-bar.ts.net,a.example")}
	for now, want := range map[string]string{
		"foo-bar.ts.net,a.example":           "a.example",
		"b.example,Foo-Bar.ts.net,a.example": "b.example,a.example",
		"b.example":                          "b.example",
		"b.example; c.example":               "b.example; c.example",
		"":                                   "",
	} {
		if got := note.remaining(text(now)); got.Text != want || got.Kind != regString {
			t.Errorf("%q: got %v, want %q", now, got, want)
		}
	}
	note.Before = text("foo-bar.ts.net") // an administrator's too
	if got := note.remaining(text("x,foo-bar.ts.net")); got.Text != "x,foo-bar.ts.net" {
		t.Errorf("got %v", got)
	}
	if got := note.remaining(regValue{}); got.Kind != regNone {
		t.Errorf("a list that was removed became %v", got)
	}
}

func TestADNSClientThatCannotBeToldEndsTheTakeover(t *testing.T) {
	w := newWindows(t)
	w.deaf = errors.New("access is denied")
	before := w.words()
	x := w.open()
	if err := x.Apply(t.Context(), splitConfig()); err == nil || !strings.Contains(err.Error(), "access is denied") {
		t.Errorf("got %v", err)
	}
	if after := w.words(); after != before || x.Status().Active && len(w.writes) == 0 {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestARuleHasNoPort(t *testing.T) {
	w := newWindows(t)
	c := splitConfig()
	c.Servers = []Server{{AddrPort: netip.MustParseAddrPort("127.0.0.77:5335")}}
	if err := w.open().Apply(t.Context(), c); !errors.Is(err, ErrRefused) || len(w.writes) > 0 {
		t.Errorf("got %v, wrote %q", err, w.writes)
	}
}

func TestDeathAtEveryStepOnWindowsIsUndone(t *testing.T) {
	for _, policy := range []bool{false, true} {
		t.Run(fmt.Sprintf("policy %v", policy), func(t *testing.T) {
			dieEverywhere(t, 35, func(t *testing.T) (*rig, func() string) {
				w := newWindows(t)
				if policy {
					w.adminRule(nrptPolicy)
				}
				return w.rig, w.all
			}, splitConfig())
		})
	}
}
