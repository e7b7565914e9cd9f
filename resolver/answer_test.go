package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// answer asks through Answer and returns the reply.
func (g *rig) answer(m *dns.Msg, via Transport) *dns.Msg {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
	defer cancel()
	raw, err := g.Answer(ctx, pack(g.t, m), via)
	if err != nil {
		g.t.Fatal(err)
	}
	var out dns.Msg
	if err := out.Unpack(raw); err != nil {
		g.t.Fatalf("%v: %x", err, raw)
	}
	return &out
}

// question makes a query; edit may change it.
func questionFor(name string, qtype uint16, edit ...func(*dns.Msg)) *dns.Msg {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	for _, f := range edit {
		f(m)
	}
	return m
}

func withEDNS(size uint16, do bool) func(*dns.Msg) {
	return func(m *dns.Msg) { m.SetEdns0(size, do) }
}

// ede is the Extended DNS Error of a reply, or noEDE.
func ede(m *dns.Msg) uint16 {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.InfoCode
			}
		}
	}
	return noEDE
}

// bigTable has a name with so many addresses that they take some 1,700 octets.
func bigTable(t testing.TB) *Table {
	var lines []string
	for i := range 100 {
		lines = append(lines, fmt.Sprintf("big.foo-bar.ts.net. 60 A 100.64.1.%d", i))
	}
	return mustTable(t, "foo-bar.ts.net", append(lines, "nas.foo-bar.ts.net. 60 A 100.64.0.2")...)
}

func TestRepliesFitTheClient(t *testing.T) {
	u := newUpstream(t, func(_ dns.ResponseWriter, req, reply *dns.Msg) bool {
		if req.IsEdns0() == nil || req.IsEdns0().UDPSize() != advertisedSize {
			t.Errorf("upstream was told %v", req.IsEdns0())
		}
		for i := range 60 { // 60 times 16 octets: fits the size that upstreams are told
			reply.Answer = append(reply.Answer, rr(t, fmt.Sprintf("%s 60 A 192.0.2.%d", req.Question[0].Name, i))...)
		}
		return true
	})
	g := newRig(t, Config{Base: base(u), Table: bigTable(t)})
	for _, name := range []string{"big.foo-bar.ts.net.", "big.example."} { // of the table; forwarded, then cached
		all := 100
		if name == "big.example." {
			all = 60
		}
		for row, want := range map[string]struct {
			via  Transport
			edit func(*dns.Msg)
			size int // the most that the reply may be; all is in it if it is above 1,800
		}{
			"UDP":                             {UDP, func(*dns.Msg) {}, 512},
			"UDP, 600 octets":                 {UDP, withEDNS(600, false), 600},
			"UDP, 700 octets and DO":          {UDP, withEDNS(700, true), 700},
			"UDP, less than the least":        {UDP, withEDNS(100, false), 512},
			"UDP, 4096 octets over loopback":  {UDP, withEDNS(4096, false), 4096},
			"UDP, 65535 octets over loopback": {UDP, withEDNS(65535, false), 4096},
			"TCP":                             {TCP, func(*dns.Msg) {}, dns.MaxMsgSize},
			"TCP, the size there is for UDP":  {TCP, withEDNS(512, false), dns.MaxMsgSize},
		} {
			t.Run(name+row, func(t *testing.T) {
				q := questionFor(name, dns.TypeA, want.edit)
				for range 2 {
					m := g.answer(q, want.via)
					m.Compress = true
					if m.Len() > want.size {
						t.Errorf("%d octets, want %d at most", m.Len(), want.size)
					}
					whole := want.size > 1800
					if (len(m.Answer) == all) != whole || m.Truncated == whole || len(m.Answer) < 28 {
						t.Errorf("%d of %d answers, TC %t", len(m.Answer), all, m.Truncated)
					}
					if (m.IsEdns0() != nil) != (q.IsEdns0() != nil) {
						t.Errorf("OPT in the reply: %v", m.IsEdns0())
					}
					if opt := m.IsEdns0(); opt != nil && (opt.UDPSize() != advertisedSize || opt.Do() != q.IsEdns0().Do() || opt.Version() != 0) {
						t.Errorf("OPT of the reply: %v", opt)
					}
				}
			})
		}
	}
}

func TestLongRepliesBeyondLoopbackAreCutToWhatPasses(t *testing.T) {
	r, err := New(Config{Table: bigTable(t)})
	if err != nil {
		t.Fatal(err)
	}
	w := r.makeWorker()
	msg := append(make([]byte, 0, 4096), pack(t, questionFor("big.foo-bar.ts.net", dns.TypeA, withEDNS(4096, false)))...)
	reply, _ := w.local(msg, UDP, advertisedSize)
	if len(reply) > advertisedSize || len(reply) < advertisedSize-40 || reply[2]&2 == 0 {
		t.Errorf("%d octets, want up to %d, and TC", len(reply), advertisedSize)
	}
}

func TestQueriesThatAreNone(t *testing.T) {
	g := newRig(t, Config{Table: bigTable(t)})
	good := pack(t, questionFor("nas.foo-bar.ts.net", dns.TypeA))
	edit := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	for name, row := range map[string]struct {
		msg   []byte
		rcode int // -1: no answer
	}{
		"nothing":              {nil, -1},
		"a short header":       {good[:11], -1},
		"a response":           {edit(func(b []byte) []byte { b[2] |= 0x80; return b }), -1},
		"a broken response":    {edit(func(b []byte) []byte { b[2] |= 0x80; return b[:14] }), -1},
		"a header alone":       {good[:12], dns.RcodeFormatError},
		"half a question":      {good[:20], dns.RcodeFormatError},
		"two questions":        {edit(func(b []byte) []byte { b[5] = 2; return b }), dns.RcodeFormatError},
		"a record too many":    {edit(func(b []byte) []byte { b[11] = 1; return b }), dns.RcodeFormatError},
		"an OPT question":      {pack(t, questionFor(".", dns.TypeOPT)), dns.RcodeFormatError},
		"NOTIFY":               {edit(func(b []byte) []byte { b[2] |= 4 << 3; return b }), dns.RcodeNotImplemented},
		"UPDATE":               {edit(func(b []byte) []byte { b[2] |= 5 << 3; return b }), dns.RcodeNotImplemented},
		"opcode 15, no more":   {edit(func(b []byte) []byte { b[2] |= 15 << 3; return b[:12] }), dns.RcodeNotImplemented},
		"a transfer":           {pack(t, questionFor("foo-bar.ts.net", dns.TypeAXFR)), dns.RcodeRefused},
		"a transfer, IXFR":     {pack(t, questionFor("foo-bar.ts.net", dns.TypeIXFR)), dns.RcodeRefused},
		"mailboxes":            {pack(t, questionFor("foo-bar.ts.net", dns.TypeMAILB)), dns.RcodeNotImplemented},
		"class CHAOS":          {pack(t, questionFor("version.bind", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })), dns.RcodeRefused},
		"class ANY":            {pack(t, questionFor("nas.foo-bar.ts.net", dns.TypeA, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY })), dns.RcodeRefused},
		"what is behind it":    {append(slices.Clone(good), "garbage"...), dns.RcodeSuccess},
		"an option of nobody":  {pack(t, questionFor("nas.foo-bar.ts.net", dns.TypeA, withEDNS(512, false), func(m *dns.Msg) { m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001}} })), dns.RcodeSuccess},
		"EDNS version 1":       {pack(t, questionFor("nas.foo-bar.ts.net", dns.TypeA, withEDNS(512, false), func(m *dns.Msg) { m.IsEdns0().SetVersion(1) })), dns.RcodeBadVers},
		"a zone's name, norec": {pack(t, questionFor("nas.foo-bar.ts.net", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = false })), dns.RcodeSuccess},
		"another name, norec":  {pack(t, questionFor("www.example", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = false })), dns.RcodeRefused},
	} {
		for via, transport := range map[Transport]string{UDP: "UDP", TCP: "TCP"} {
			t.Run(name+", "+transport, func(t *testing.T) {
				reply, err := g.Answer(t.Context(), slices.Clone(row.msg), via)
				if err != nil {
					t.Fatal(err)
				}
				if row.rcode < 0 || reply == nil {
					if row.rcode >= 0 || reply != nil {
						t.Errorf("got %x", reply)
					}
					return
				}
				checkReply(t, row.msg, reply, via)
				var m dns.Msg
				if err := m.Unpack(reply); err != nil || m.Rcode != row.rcode {
					t.Errorf("%v, got %s, want %s", err, dns.RcodeToString[m.Rcode], dns.RcodeToString[row.rcode])
				}
			})
		}
	}
}

func TestDOAndCDAreCarriedAndCachedApart(t *testing.T) {
	u := newUpstream(t, func(_ dns.ResponseWriter, req, reply *dns.Msg) bool {
		do := req.IsEdns0() != nil && req.IsEdns0().Do()
		reply.SetEdns0(1232, do)
		reply.AuthenticatedData = do && !req.CheckingDisabled
		if req.RecursionDesired {
			reply.Answer = rr(t, fmt.Sprintf("%s 60 TXT do=%t cd=%t", req.Question[0].Name, do, req.CheckingDisabled))
		}
		return true
	})
	g := newRig(t, Config{Base: base(u)})
	for range 2 {
		for _, do := range []bool{false, true} {
			for _, cd := range []bool{false, true} {
				m := g.exchange(questionFor("www.example", dns.TypeTXT, withEDNS(1232, do), func(m *dns.Msg) { m.CheckingDisabled = cd }))
				if want := fmt.Sprintf("do=%t cd=%t", do, cd); len(m.Answer) != 1 || strings.Join(m.Answer[0].(*dns.TXT).Txt, " ") != want {
					t.Errorf("got %v, want %s", m.Answer, want)
				}
				if m.CheckingDisabled != cd || m.IsEdns0().Do() != do || m.AuthenticatedData != (do && !cd) {
					t.Errorf("do %t, cd %t: got\n%v", do, cd, m)
				}
			}
		}
	}
	if n := u.asked.Load(); n != 4 {
		t.Errorf("upstream was asked %d times, want 4", n)
	}
}

func TestADIsToldToThoseWhoUnderstandIt(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		reply.AuthenticatedData = true
		return answering(t)(w, req, reply)
	})
	g := newRig(t, Config{Base: base(u)})
	for range 2 { // from upstream, then from the cache
		if m := g.ask("www.example", dns.TypeA); m.AuthenticatedData {
			t.Error("AD for one who did not ask")
		}
		if m := g.exchange(questionFor("www.example", dns.TypeA, func(m *dns.Msg) { m.AuthenticatedData = true })); !m.AuthenticatedData {
			t.Error("no AD for one who asked with AD")
		}
	}
}

func TestWhatIsSetAgainAsItWasForgetsNothing(t *testing.T) {
	u := newUpstream(t, answering(t))
	routes := []Route{{Suffix: "corp.example", Upstreams: []Upstream{u.Upstream}}}
	rebind := Rebind{Refuse: prefixes("100.64.0.0/10"), Private: true, Allow: []string{"ok.example"}}
	g := newRig(t, Config{Base: base(u), Routes: routes, Rebind: rebind})
	ask := func() int64 {
		g.ask("www.corp.example", dns.TypeA)
		g.ask("www.example", dns.TypeA)
		return u.asked.Swap(0)
	}
	if n := ask(); n != 2 {
		t.Fatalf("asked %d times, want 2", n)
	}
	for what, row := range map[string]struct {
		f    func() error
		want int64
	}{
		"the same routes":      {func() error { return g.SetRoutes(routes) }, 0},
		"the same rules":       {func() error { return g.SetRebind(rebind) }, 0},
		"the same base":        {func() error { return g.SetBase(base(u)) }, 0},
		"another table":        {func() error { g.SetTable(bigTable(t)); return nil }, 0},
		"a bad route":          {func() error { return wantError(g.SetRoutes([]Route{{Suffix: "a..b"}})) }, 0},
		"a route for the root": {func() error { return wantError(g.SetRoutes([]Route{{Suffix: "."}})) }, 0},
		"a bad domain":         {func() error { return wantError(g.SetBase(Base{Learnt: []Route{{Suffix: "a..b"}}})) }, 0},
		"a bad rule":           {func() error { return wantError(g.SetRebind(Rebind{Allow: []string{"a..b"}})) }, 0},
		"a bad range":          {func() error { return wantError(g.SetRebind(Rebind{Refuse: make([]netip.Prefix, 1)})) }, 0},
	} {
		if err := row.f(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n := ask(); n != row.want {
			t.Errorf("%s: asked again %d times, want %d", what, n, row.want)
		}
	}
	for what, f := range map[string]func() error{
		"other routes": func() error {
			return g.SetRoutes(append(routes, Route{Suffix: "x.example", Upstreams: []Upstream{u.Upstream}}))
		},
		"other rules": func() error { return g.SetRebind(Rebind{Private: true}) },
	} {
		if err := f(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n := ask(); n != 2 {
			t.Errorf("%s: asked again %d times, want 2", what, n)
		}
	}
}

// wantError turns an error into none and none into one.
func wantError(err error) error {
	if err == nil {
		return errors.New("got no error")
	}
	return nil
}

func TestRulesAgainstRebindingHoldForWhatIsCached(t *testing.T) {
	u := newUpstream(t, func(_ dns.ResponseWriter, req, reply *dns.Msg) bool {
		reply.Answer = rr(t, req.Question[0].Name+" 60 A 10.1.2.3")
		return true
	})
	g := newRig(t, Config{Base: Base{Upstreams: []Upstream{u.Upstream}, Learnt: []Route{{Suffix: "home.arpa", Upstreams: []Upstream{u.Upstream}}}}})
	wantA(t, g.ask("www.example", dns.TypeA), "10.1.2.3")
	if err := g.SetRebind(Rebind{Private: true}); err != nil {
		t.Fatal(err)
	}
	if m := g.ask("www.example", dns.TypeA); len(m.Answer) != 0 {
		t.Errorf("a cached answer got through:\n%v", m)
	}
	wantA(t, g.ask("printer.home.arpa", dns.TypeA), "10.1.2.3")
	if err := g.SetRebind(Rebind{Refuse: prefixes("::ffff:10.0.0.0/104")}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"www.example", "printer.home.arpa"} {
		if m := g.ask(name, dns.TypeA); len(m.Answer) != 0 {
			t.Errorf("%s: an address of the tailnet got through:\n%v", name, m)
		}
	}
}

func TestTheNetworksOwnNamesAreNotLeakedToPublicServers(t *testing.T) {
	public, lan := newUpstream(t, answering(t)), newUpstream(t, func(_ dns.ResponseWriter, req, reply *dns.Msg) bool {
		reply.Answer = rr(t, req.Question[0].Name+" 60 PTR printer.lan.")
		return true
	})
	names := []string{"printer.home.arpa", "nas.local", "7.1.168.192.in-addr.arpa", "b.a.9.8.7.6.5.e.f.f.f.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.e.f.ip6.arpa", "db.internal"}
	g := newRig(t, Config{Base: base(public)})
	for _, name := range names {
		if m := g.ask(name, dns.TypePTR); m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 {
			t.Errorf("%s: got\n%v", name, m)
		}
	}
	if n := public.asked.Load(); n != 0 {
		t.Errorf("the public server was asked %d times", n)
	}
	var learnt []Route
	for _, suffix := range []string{"home.arpa", "local", "168.192.in-addr.arpa", "8.e.f.ip6.arpa", "internal"} {
		learnt = append(learnt, Route{Suffix: suffix, Upstreams: []Upstream{lan.Upstream}})
	}
	if err := g.SetBase(Base{Upstreams: []Upstream{public.Upstream}, Learnt: learnt}); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if m := g.ask(name, dns.TypePTR); len(m.Answer) != 1 {
			t.Errorf("%s: got\n%v", name, m)
		}
	}
	if lan.asked.Load() != int64(len(names)) || public.asked.Load() != 0 {
		t.Errorf("asked: lan %d, public %d", lan.asked.Load(), public.asked.Load())
	}
	for _, name := range []string{"localhost", "x.invalid", "x.onion", "1.0.0.127.in-addr.arpa", "use-application-dns.net"} {
		g.ask(name, dns.TypeA)
	}
	if public.asked.Load() != 0 {
		t.Error("a special name was forwarded")
	}
}

func TestErrorsOfUpstreams(t *testing.T) {
	signed := func(m *dns.Msg) {
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeDNSBogus}}
	}
	for name, row := range map[string]struct {
		edit  func(w dns.ResponseWriter, reply *dns.Msg)
		rcode int
		ede   uint16
	}{
		"SERVFAIL":              {func(_ dns.ResponseWriter, m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }, dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority},
		"SERVFAIL and why":      {func(_ dns.ResponseWriter, m *dns.Msg) { m.Rcode = dns.RcodeServerFailure; signed(m) }, dns.RcodeServerFailure, dns.ExtendedErrorCodeDNSBogus},
		"REFUSED":               {func(_ dns.ResponseWriter, m *dns.Msg) { m.Rcode = dns.RcodeRefused }, dns.RcodeRefused, dns.ExtendedErrorCodeNoReachableAuthority},
		"NOTIMP":                {func(_ dns.ResponseWriter, m *dns.Msg) { m.Rcode = dns.RcodeNotImplemented }, dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority},
		"YXDOMAIN":              {func(_ dns.ResponseWriter, m *dns.Msg) { m.Rcode = dns.RcodeYXDomain }, dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority},
		"a referral":            {func(_ dns.ResponseWriter, m *dns.Msg) { m.Ns = rr(t, "example. 60 NS a.example.") }, dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority},
		"TC even over TCP":      {func(_ dns.ResponseWriter, m *dns.Msg) { m.Truncated = true }, dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority},
		"an error, no question": {func(_ dns.ResponseWriter, m *dns.Msg) { m.Rcode = dns.RcodeRefused; m.Question = nil }, dns.RcodeRefused, dns.ExtendedErrorCodeNoReachableAuthority},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, func(w dns.ResponseWriter, _, reply *dns.Msg) bool { row.edit(w, reply); return true })
			g := newRig(t, Config{Base: base(u)})
			for range 2 { // the second from the cache, where the reason has no text
				m := g.exchange(questionFor("www.example", dns.TypeA, withEDNS(1232, false)))
				if m.Rcode != row.rcode || ede(m) != row.ede || len(m.Ns) != 0 {
					t.Errorf("got %s, EDE %d, want %s, %d\n%v", dns.RcodeToString[m.Rcode], ede(m), dns.RcodeToString[row.rcode], row.ede, m)
				}
			}
			asked := u.asked.Load()
			g.ask("www.example", dns.TypeA)
			if asked > 4 || u.asked.Load() != asked {
				t.Errorf("asked %d times, then %d: a failure is remembered (RFC 9520)", asked, u.asked.Load())
			}
		})
	}
}

func TestAnErrorThatHasOtherReasonsLeavesEDNSAlone(t *testing.T) {
	for name, edit := range map[string]func(m *dns.Msg){
		"NOTIMP with OPT":   func(m *dns.Msg) { m.Rcode = dns.RcodeNotImplemented; m.SetEdns0(1232, false) },
		"FORMERR with OPT":  func(m *dns.Msg) { m.Rcode = dns.RcodeFormatError; m.SetEdns0(1232, false) },
		"NOTIMP either way": func(m *dns.Msg) { m.Rcode = dns.RcodeNotImplemented },
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
				if req.Question[0].Qtype == dns.TypeANY {
					edit(reply)
					return true
				}
				if req.IsEdns0() == nil {
					t.Error("asked without OPT")
				}
				return answering(t)(w, req, reply)
			})
			g := newRig(t, Config{Base: base(u)})
			if m := g.ask("www.example", dns.TypeANY); m.Rcode != dns.RcodeServerFailure {
				t.Errorf("got\n%v", m)
			}
			wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
		})
	}
}

func TestTheNextServerIsTriedEarly(t *testing.T) {
	slow, good := blackHole(t), newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(slow, good)})
	began := time.Now()
	wantA(t, g.ask("www.example", dns.TypeA), "192.0.2.1")
	if d := time.Since(began); d > 1500*time.Millisecond {
		t.Errorf("took %s: the second server should be asked after %s", d, time.Duration(firstRTO))
	}
	if slow.asked.Load() == 0 {
		t.Error("this has tested nothing")
	}
}

func TestAStaleAnswerIsGivenAtOnceOnceUpstreamsHaveFailed(t *testing.T) {
	var fails atomic.Bool
	u := newUpstream(t, func(w dns.ResponseWriter, req, reply *dns.Msg) bool {
		if fails.Load() {
			reply.Rcode = dns.RcodeServerFailure
			return true
		}
		return answering(t)(w, req, reply)
	})
	g := newRig(t, Config{Base: base(u)})
	g.ask("www.example", dns.TypeA)
	fails.Store(true)
	g.sleep(2 * time.Minute)
	asked := u.asked.Load()
	for range 3 {
		m := g.exchange(questionFor("www.example", dns.TypeA, withEDNS(1232, false)))
		wantA(t, m, "192.0.2.1")
		if ede(m) != dns.ExtendedErrorCodeStaleAnswer {
			t.Errorf("EDE %d, want Stale Answer", ede(m))
		}
	}
	if n := u.asked.Load() - asked; n == 0 || n > 2 {
		t.Errorf("upstream was asked %d times for three questions within the recheck time", n)
	}
	if stale := g.counted("stale"); stale != 3 {
		t.Errorf("%d stale answers counted, want 3", stale)
	}
	fails.Store(false)
	g.sleep(time.Duration(recheckAfter))
	if m := g.ask("www.example", dns.TypeA); m.Answer[0].Header().Ttl != 60 {
		t.Errorf("still stale:\n%v", m)
	}
}

// counted is the number of replies from a source.
func (g *rig) counted(source string) (n uint64) {
	for _, c := range g.Stats().Queries {
		if c.Source == source {
			n += c.N
		}
	}
	return n
}

func TestAHotNameIsRefreshedBeforeItExpires(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u)})
	for range 3 {
		g.ask("www.example", dns.TypeA)
	}
	g.sleep(55 * time.Second)
	if m := g.ask("www.example", dns.TypeA); m.Answer[0].Header().Ttl > 5 {
		t.Errorf("TTL %d: the client has to wait for the refresh", m.Answer[0].Header().Ttl)
	}
	waitUntil(t, func() bool { return u.asked.Load() == 2 && g.flights.active.Load() == 0 })
	if m := g.ask("www.example", dns.TypeA); m.Answer[0].Header().Ttl < 50 {
		t.Errorf("TTL %d: not refreshed", m.Answer[0].Header().Ttl)
	}
}

func TestTooManyFlightsAreRefusedAndCounted(t *testing.T) {
	u := blackHole(t)
	g := newRig(t, Config{Base: base(u), MaxInFlight: 3})
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() { _, _ = g.Answer(t.Context(), query(t, fmt.Sprintf("n%d.example", i), dns.TypeA), TCP) })
	}
	waitUntil(t, func() bool { return g.flights.active.Load() == 3 })
	m := g.exchange(questionFor("one-too-many.example", dns.TypeA, withEDNS(1232, false)))
	if m.Rcode != dns.RcodeServerFailure || !strings.Contains(m.String(), "too many questions in flight") || g.Stats().Shed != 1 {
		t.Errorf("%d shed\n%v", g.Stats().Shed, m)
	}
	g.sleep(4 * time.Second)
	wg.Wait()
}

func TestTooManyWaitersOfOneFlightAreRefused(t *testing.T) {
	b := newUpstreamBench(t)
	q := query(t, "www.example", dns.TypeA)
	s := b.ask(t, q, UDP)
	for range maxWaiters - 1 {
		b.ask(t, q, UDP)
	}
	if s.waiting != maxWaiters || b.shed.Load() != 0 {
		t.Fatalf("%d wait, %d shed", s.waiting, b.shed.Load())
	}
	msg := append(make([]byte, 0, 512), q...)
	_, target := b.w.local(msg, UDP, 512)
	if reply := b.w.forward(msg, target, &b.w.wait); reply == nil || reply[3]&rcodeMask != dns.RcodeServerFailure || b.shed.Load() != 1 {
		t.Errorf("got %x, %d shed", reply, b.shed.Load())
	}
	b.later(5 * time.Second)
}

// TestABoundOfStreamsLosesNobody: when no more queries may be under way over streams, each client is told at once.
func TestABoundOfStreamsLosesNobody(t *testing.T) {
	u, err := ParseUpstream("tcp://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	g := newRig(t, Config{Base: Base{Upstreams: []Upstream{u}}})
	for range maxStreams {
		g.streams <- struct{}{}
	}
	defer func() {
		for range maxStreams {
			<-g.streams
		}
	}()
	for i := range 40 {
		if m := g.ask(fmt.Sprintf("n%d.example", i), dns.TypeA); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("got\n%v", m)
		}
	}
	if n := g.flights.active.Load(); n != 0 {
		t.Errorf("%d flights are left", n)
	}
}

func TestAnswerEndsWithItsContextAndWithTheResolver(t *testing.T) {
	u := blackHole(t)
	r, err := New(Config{Base: base(u)})
	if err != nil {
		t.Fatal(err)
	}
	life, end := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- r.Run(life) }()
	gone := errors.New("the client has gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	failed := make(chan error)
	ask := func(ctx context.Context) {
		_, err := r.Answer(ctx, query(t, "www.example", dns.TypeA), TCP)
		failed <- err
	}
	go ask(ctx)
	waitUntil(t, func() bool { return u.asked.Load() > 0 })
	cancel(gone)
	if err := <-failed; !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	go ask(context.Background())
	waitUntil(t, func() bool { return r.flights.waiting() == 2 })
	end()
	if err := <-failed; !errors.Is(err, errEnd) {
		t.Errorf("got %v", err)
	}
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if reply, err := r.Answer(t.Context(), query(t, "localhost", dns.TypeA), TCP); err != nil || len(reply) == 0 {
		t.Errorf("after the end a special name got %x, %v", reply, err)
	}
	m := new(dns.Msg)
	if raw, err := r.Answer(t.Context(), query(t, "other.example", dns.TypeA), TCP); err != nil || m.Unpack(raw) != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("after the end a name got %v, %v", m, err)
	}
}

func TestFollowedAliases(t *testing.T) {
	u := newUpstream(t, func(_ dns.ResponseWriter, req, reply *dns.Msg) bool {
		name := req.Question[0].Name
		switch lower := strings.ToLower(name); {
		case strings.HasPrefix(lower, "no."):
			reply.Rcode = dns.RcodeNameError
			reply.Ns = rr(t, "example. 60 SOA a. b. 1 2 3 4 60")
		case strings.HasPrefix(lower, "bad."):
			reply.Rcode = dns.RcodeServerFailure
		case strings.HasPrefix(lower, "inside."):
			reply.Answer = rr(t, name+" 60 A 127.0.0.1")
		case strings.HasPrefix(lower, "many."):
			for i := range 70 {
				reply.Answer = append(reply.Answer, rr(t, fmt.Sprintf("%s 60 A 192.0.2.%d", name, i))...)
			}
		default:
			reply.Answer = rr(t, name+" 60 CNAME deep.example.", "deep.example. 60 A 192.0.2.1")
		}
		return true
	})
	g := newRig(t, Config{Base: base(u), Table: mustTable(t, "foo-bar.ts.net", "yes.foo-bar.ts.net. 60 CNAME WWW.example.", "no.foo-bar.ts.net. 60 CNAME no.example.",
		"bad.foo-bar.ts.net. 60 CNAME bad.example.", "inside.foo-bar.ts.net. 60 CNAME inside.example.", "many.foo-bar.ts.net. 60 CNAME many.example.",
		"here.foo-bar.ts.net. 60 CNAME localhost.")})
	for name, row := range map[string]struct {
		rcode   int
		answers int
		ede     uint16
	}{
		"yes":    {dns.RcodeSuccess, 3, noEDE},
		"no":     {dns.RcodeNameError, 1, noEDE},
		"bad":    {dns.RcodeServerFailure, 1, dns.ExtendedErrorCodeNoReachableAuthority},
		"inside": {dns.RcodeSuccess, 1, dns.ExtendedErrorCodeBlocked},
		"many":   {dns.RcodeSuccess, 71, noEDE},
		"here":   {dns.RcodeSuccess, 2, noEDE},
	} {
		t.Run(name, func(t *testing.T) {
			m := g.exchange(questionFor(strings.ToUpper(name)+".foo-bar.ts.net", dns.TypeA, withEDNS(1400, false)))
			if m.Rcode != row.rcode || len(m.Answer) != row.answers || ede(m) != row.ede || !m.Authoritative || m.Answer[0].Header().Rrtype != dns.TypeCNAME {
				t.Errorf("want %s, %d answers, EDE %d, got\n%v", dns.RcodeToString[row.rcode], row.answers, row.ede, m)
			}
			if m = g.ask(name+".foo-bar.ts.net", dns.TypeA); m.IsEdns0() != nil {
				t.Error("OPT though there was none in the query")
			}
		})
	}
	m := g.exchange(questionFor("many.foo-bar.ts.net", dns.TypeA, withEDNS(600, false)))
	if m.Compress = true; !m.Truncated || m.IsEdns0() == nil || m.Len() > 600 || len(m.Answer) < 30 {
		t.Errorf("600 octets: TC %t, %d octets, %d answers, OPT %v", m.Truncated, m.Len(), len(m.Answer), m.IsEdns0())
	}
	m = g.exchange(questionFor("yes.foo-bar.ts.net", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = false }))
	if len(m.Answer) != 1 || m.Rcode != dns.RcodeSuccess {
		t.Errorf("without recursion: got\n%v", m)
	}
	for range maxChases {
		g.chases <- struct{}{}
	}
	if m := g.ask("yes.foo-bar.ts.net", dns.TypeA); m.Rcode != dns.RcodeServerFailure || len(m.Answer) != 1 {
		t.Errorf("with too many on their way: got\n%v", m)
	}
}
