package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/resolver"
)

const (
	portalOurs = "tls://192.0.2.53#dns.example"
	portalBase = "10.0.0.1"
)

// hotel is a network that a test makes, and the portal of a node on it.
type hotel struct {
	*portal

	mu      sync.Mutex
	answers map[string]bool // by server
	ways    []wayOut
	noWays  error
	says    portalHint
	asked   []string
	lines   []string
}

// checkIn runs a portal on a network where only its own DNS answers. It has to be called in a bubble.
func checkIn(t *testing.T, says portalHint) *hotel {
	t.Helper()
	r, err := resolver.New(resolver.Config{})
	must(t, err)
	routing := &routing{resolver: r, dns: dnsConfig{Upstreams: []string{portalOurs}}}
	must(t, routing.setMap(mustParse(t, testMap)))
	must(t, routing.setNetwork(network(t, portalBase)))
	h := &hotel{answers: map[string]bool{portalBase: true}, ways: []wayOut{{3, "wlan0", portalBase}}, says: says}
	h.portal = &portal{
		routing: routing, ask: h.exchange, log: slog.New(slog.DiscardHandler), kick: make(chan struct{}, 1),
		gateways: func() ([]wayOut, error) { h.mu.Lock(); defer h.mu.Unlock(); return slices.Clone(h.ways), h.noWays },
		hint:     func(context.Context, []wayOut) portalHint { h.mu.Lock(); defer h.mu.Unlock(); return h.says },
		follow:   func(ctx context.Context, _ func()) { <-ctx.Done() },
		report:   func(format string, _ ...any) { h.mu.Lock(); defer h.mu.Unlock(); h.lines = append(h.lines, format) },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
	return h
}

// exchange is what the network's firewall lets through.
func (h *hotel) exchange(ctx context.Context, u resolver.Upstream, query []byte) ([]byte, error) {
	h.mu.Lock()
	ok := h.answers[u.String()]
	h.asked = append(h.asked, u.String())
	h.mu.Unlock()
	if !ok {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	q := new(dns.Msg)
	if err := q.Unpack(query); err != nil {
		return nil, err
	}
	reply := new(dns.Msg).SetReply(q)
	if q.Question[0].Qtype == dns.TypeA {
		rr, err := dns.NewRR(q.Question[0].Name + " 60 A 10.0.0.1")
		if err != nil {
			return nil, err
		}
		reply.Answer = append(reply.Answer, rr)
	}
	return reply.Pack()
}

// change changes the network, and says so if a machine would notice.
func (h *hotel) change(noticed bool, f func()) {
	h.mu.Lock()
	f()
	h.mu.Unlock()
	if noticed {
		h.wake()
	}
}

// wantBase checks after a while whom outside names are asked from.
func (h *hotel) wantBase(t *testing.T, after time.Duration, base string) {
	t.Helper()
	time.Sleep(after)
	synctest.Wait()
	_, got := h.routing.describe()
	if !slices.Equal(got, []string{base}) {
		t.Fatalf("%s later outside names go to %q, want %s", after, got, base)
	}
	if state := h.state(); (state.State == portalUp) != (base == portalBase) || (state.Since != nil) != (state.State == portalUp) {
		t.Errorf("the state is %+v", state)
	}
}

func TestPortalIsEnteredAndLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkIn(t, portalHint{})
		h.wantBase(t, time.Second, portalOurs)
		h.wantBase(t, 9*time.Second, portalBase)
		if s := h.state(); !strings.Contains(s.Reason, portalOurs) || !strings.Contains(s.Reason, portalBase) || s.URI != "" {
			t.Errorf("the state is %+v, want it to name both servers", s)
		}
		h.wantBase(t, 5*time.Minute, portalBase)
		h.change(false, func() { h.answers[portalOurs] = true })
		h.wantBase(t, portalPauseMax+portalProbeTime, portalOurs)
		h.change(true, func() { h.answers[portalOurs] = false })
		h.wantBase(t, time.Hour, portalOurs)
		if got := h.lines; len(got) != 2 {
			t.Errorf("told %q, want the beginning and the end", got)
		}
	})
}

func TestAnAnnouncedPortalIsEnteredAfterOneRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkIn(t, portalHint{announced: true, uri: "https://portal.example/"})
		h.wantBase(t, portalProbeTime+portalRest, portalBase)
		if s := h.state(); s.URI != "https://portal.example/" {
			t.Errorf("the state is %+v, want the network's page", s)
		}
	})
}

func TestNobodyIsProbedOnANetworkThatWorked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkIn(t, portalHint{})
		h.change(false, func() { h.answers[portalOurs] = true })
		h.wantBase(t, portalPauseMax, portalOurs)
		before := len(h.asked)
		h.change(true, func() { h.answers[portalOurs] = false }) // a firewall came down on it
		h.wantBase(t, 24*time.Hour, portalOurs)
		h.change(true, func() { h.says = portalHint{announced: true} })
		h.wantBase(t, time.Hour, portalOurs)
		h.change(true, func() { h.ways = append(h.ways, wayOut{3, "wlan0", "10.0.0.66"}) })
		h.wantBase(t, time.Hour, portalOurs)
		if got := len(h.asked); got != before {
			t.Errorf("asked %d times more, want none: %q", got-before, h.asked[before:])
		}
		h.change(true, func() { h.ways, h.says = nil, portalHint{} })
		h.wantBase(t, time.Second, portalOurs)
		h.change(true, func() { h.ways = []wayOut{{3, "wlan0", portalBase}} })
		h.wantBase(t, time.Minute, portalBase)
	})
}

func TestAnotherNetworkEndsThePortal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkIn(t, portalHint{})
		h.wantBase(t, time.Minute, portalBase)
		h.change(true, func() { h.ways, h.answers[portalOurs] = []wayOut{{2, "eth0", "192.0.2.1"}}, true })
		h.wantBase(t, portalProbeTime+2*portalRest, portalOurs)
	})
}

func TestPortalNeedsBothKindsOfServers(t *testing.T) {
	for name, set := range map[string]func(*routing) error{
		"no DNS of the network's": func(r *routing) error { return r.setNetwork(resolver.Base{}) },
		"none configured":         func(r *routing) error { r.dns.Upstreams = nil; return r.setMap(mustParse(t, testMap)) },
		"both the same":           func(r *routing) error { return r.setNetwork(network(t, portalOurs)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := checkIn(t, portalHint{announced: true})
				h.wantBase(t, time.Minute, portalBase)
				must(t, set(h.routing))
				h.wake()
				time.Sleep(time.Minute)
				synctest.Wait()
				before := len(h.asked)
				time.Sleep(time.Hour)
				if s := h.state(); s.State != portalNone || len(h.asked) != before {
					t.Errorf("the state is %+v after %d probes, want none and no probes", s, len(h.asked)-before)
				}
			})
		})
	}
}

func TestPortalWithoutKnownRoutesGoesByServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkIn(t, portalHint{})
		h.change(true, func() { h.ways, h.noWays = nil, errors.ErrUnsupported })
		h.wantBase(t, time.Minute, portalBase)
		h.change(false, func() { h.answers[portalOurs] = true })
		h.wantBase(t, time.Minute, portalOurs)
		h.change(true, func() { h.answers = map[string]bool{"10.9.9.9": true} })
		must(t, h.routing.setNetwork(network(t, "10.9.9.9")))
		h.wake()
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, got := h.routing.describe(); !slices.Equal(got, []string{"10.9.9.9"}) {
			t.Errorf("outside names go to %q, want the new network's", got)
		}
	})
}

// The rebinding rule (S10) holds for what a portal answers: its own private address is fine, the tailnet's and the
// machine's own are not.
func TestPortalsDNSMayNotPointInside(t *testing.T) {
	hotels := zoneServer(t, map[string]string{
		"www.example.": "A 10.0.0.1", "tailnet.example.": "A 100.64.0.2", "self.example.": "A 127.0.0.1",
		"nas.foo-bar.ts.net.": "A 10.0.0.1",
	})
	cfg := testConfig()
	cfg.DNS.Upstreams, cfg.DNS.Portal = []string{"127.0.0.1:9"}, "off"
	n := startNode(t, cfg, testPaths(t))
	must(t, n.node.routing.setNetwork(network(t, hotels)))
	must(t, n.node.routing.setPortal(true))
	for name, want := range map[string][]string{
		"www.example.": {"10.0.0.1"}, "tailnet.example.": nil, "self.example.": nil, "nas.foo-bar.ts.net.": {"100.64.0.2"},
	} {
		if _, got := n.ask(t, name); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if s := n.node.portal.state(); s.State != portalOff {
		t.Errorf("the state is %+v, want off as configured", s)
	}
	must(t, n.node.routing.setPortal(false))
	if _, got := n.ask(t, "www.example."); len(got) != 0 {
		t.Errorf("after the portal: got %q, want nothing that it said", got)
	}
}
