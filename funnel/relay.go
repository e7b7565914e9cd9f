package funnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The defaults of a RelayConfig.
const (
	maxVisits    = 16000
	idleTime     = 10 * time.Minute
	halfIdleTime = time.Minute // once one side has ended
	lifeTime     = 24 * time.Hour
)

// acmeProtocol is the ALPN protocol by which a CA checks who has a name (RFC 8737).
const acmeProtocol = "acme-tls/1"

// Backend is a node that visitors are passed to.
type Backend struct {
	Node string
	// Dial connects to the node's ingress.
	Dial func(ctx context.Context) (net.Conn, error)
	// Key is what the node knows this gateway by; not ok: the node is not there.
	Key func() (key []byte, ok bool)
	// Limits are the node's, instead of RelayConfig.Node where they are not zero.
	Limits Limits
}

// Public is something that nodes show to the world: names on a port whose connections start with TLS (kinds https and
// tls-terminated-tcp), or a whole port (tcp and udp).
type Public struct {
	Names    []string // exact, or a wildcard (*.example) for one label more
	Port     uint16
	Kind     string
	Backends []Backend // several: each visitor goes to the one with the fewest
	// Limits are those of all this together, instead of RelayConfig.Name where they are not zero.
	Limits Limits
}

// Limits bound what is done for a node, a name or a source. Zero is the default, a negative number none.
type Limits struct {
	Connections    int   // at once
	PerSecond      int   // new connections, with as many at once after a pause
	BytesPerSecond int64 // both ways together
	BytesPerMonth  int64 // both ways together, in a calendar month of UTC
}

// RelayConfig says what a Relay does. The zero value is useful.
type RelayConfig struct {
	MaxVisits int           // at once; zero: 16,000. Above three quarters, nodes and sources get their fair shares only
	Idle      time.Duration // without a byte either way; zero: 10 minutes, or one once a side has ended
	Lifetime  time.Duration // of a visit; zero: a day
	HTTPSPort uint16        // that visitors who come to a Public's 443 have to write; zero: 443

	Node   Limits // of each node; zero: 4,000 connections, 400 a second
	Name   Limits // of each Public; zero: 4,000 connections, 400 a second
	Source Limits // of each address, or /64 of IPv6; zero: 256 connections, 100 a second

	Logger *slog.Logger // nil: nothing is logged
}

// Relay passes visitors to nodes, bytes as they come.
type Relay struct {
	cfg   RelayConfig
	log   *slog.Logger
	table atomic.Pointer[relayTable]

	mu       sync.Mutex
	draining bool
	visits   map[*visit]struct{}
	nodes    map[string]*node
	meters   map[meterKey]*meter
	active   [classes]int  // meters with open visits
	turn     int           // which backend is the first of equals
	gone     chan struct{} // is closed and made anew whenever a visit ends

	stats RelayStats

	bytes  atomic.Uint64
	chunks *sync.Pool
}

// relayTable is what is shown, by what a visitor asks for. It is never changed.
type relayTable struct {
	all   []*public
	named map[nameKey]*public
	ports map[portKey]*public
	// owners are the nodes that have a name on any port.
	owners map[string]map[string]bool
	// web are the ports where names are shown by HTTPS.
	web []uint16
}

type nameKey struct {
	port uint16
	name string
}

type portKey struct {
	port uint16
	kind string
}

// public is a Public in a table.
type public struct {
	Public
	nodes []*node // of the backends, in their order
}

// NewRelay returns a Relay that shows nothing.
func NewRelay(cfg RelayConfig) *Relay {
	r := &Relay{
		cfg: cfg, log: cfg.Logger, chunks: newChunks(), gone: make(chan struct{}),
		visits: map[*visit]struct{}{}, nodes: map[string]*node{}, meters: map[meterKey]*meter{},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.cfg.MaxVisits = positive(cfg.MaxVisits, maxVisits)
	if r.cfg.Idle <= 0 {
		r.cfg.Idle = idleTime
	}
	if r.cfg.Lifetime <= 0 {
		r.cfg.Lifetime = lifeTime
	}
	r.table.Store(&relayTable{})
	return r
}

// Set has visitors from now on find this. Open visits go on, whatever else changes; only those to a node that does not show
// any more what they came for are ended. With an error, nothing changes.
func (r *Relay) Set(list []Public) error {
	if len(list) > maxRouteNames {
		return fmt.Errorf("%d entries for the world: more than %d", len(list), maxRouteNames)
	}
	next := &relayTable{named: map[nameKey]*public{}, ports: map[portKey]*public{}, owners: map[string]map[string]bool{}}
	for _, p := range list {
		if err := next.add(p); err != nil {
			return err
		}
	}
	slices.Sort(next.web)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = r.nodesOfLocked(next)
	r.table.Store(next)
	for v := range r.visits {
		if !next.shows(v) {
			v.cut(errWithdrawn)
		}
	}
	return nil
}

// nodesOfLocked are the nodes of a table, which its entries get. One that was there before stays.
func (r *Relay) nodesOfLocked(t *relayTable) map[string]*node {
	nodes := map[string]*node{}
	for _, p := range t.all {
		for _, b := range p.Backends {
			n := nodes[b.Node]
			if n == nil {
				if n = r.nodes[b.Node]; n == nil {
					n = &node{name: b.Node}
				}
				n.shares = false
				nodes[b.Node] = n
			}
			n.meter = r.meter(meterKey{class: ofNode, name: b.Node}, b.Limits, r.cfg.Node)
			n.backend, n.shares = b, n.shares || len(p.Backends) > 1
			p.nodes = append(p.nodes, n)
		}
	}
	return nodes
}

// add checks an entry and takes it into the table.
func (t *relayTable) add(p Public) error {
	for _, b := range p.Backends {
		if b.Node == "" || b.Dial == nil || b.Key == nil {
			return fmt.Errorf("port %d for the world: a backend without a node, or a way to it", p.Port)
		}
	}
	entry := &public{Public: p}
	t.all = append(t.all, entry)
	switch p.Kind {
	case kindTCP, kindUDP:
		key := portKey{p.Port, p.Kind}
		if t.ports[key] != nil {
			return fmt.Errorf("two entries for port %d/%s", p.Port, p.Kind)
		}
		t.ports[key] = entry
	case kindHTTPS, kindTLS:
		if len(p.Names) == 0 {
			return fmt.Errorf("port %d for the world: %s without a name", p.Port, p.Kind)
		}
		for _, name := range p.Names {
			key := nameKey{p.Port, foldHost(name)}
			if t.named[key] != nil {
				return fmt.Errorf("two entries for %s on port %d", name, p.Port)
			}
			t.named[key] = entry
			t.own(key.name, p.Backends)
		}
		if p.Kind == kindHTTPS && !slices.Contains(t.web, p.Port) {
			t.web = append(t.web, p.Port)
		}
	default:
		return fmt.Errorf("port %d for the world: kind %q", p.Port, p.Kind)
	}
	return nil
}

// own notes who has a name.
func (t *relayTable) own(name string, backends []Backend) {
	if t.owners[name] == nil {
		t.owners[name] = map[string]bool{}
	}
	for _, b := range backends {
		t.owners[name][b.Node] = true
	}
}

// find is the entry that a visitor asks for: by the whole name, then by a wildcard; or by the port alone. by is the name
// that it was found by, or the protocol.
func (t *relayTable) find(a asked) (p *public, by string) {
	if a.protocol != "" {
		return t.ports[portKey{a.port, a.protocol}], a.protocol
	}
	if p := t.named[nameKey{a.port, a.name}]; p != nil {
		return p, a.name
	}
	_, parent, _ := strings.Cut(a.name, ".")
	return t.named[nameKey{a.port, "*." + parent}], "*." + parent
}

// shows reports whether a visit could be begun as it is.
func (t *relayTable) shows(v *visit) bool {
	p, by := t.find(v.asked)
	return p != nil && p.Kind == v.kind && (v.node == nil || slices.Contains(p.nodes, v.node)) && (!v.acme || len(t.owners[by]) == 1)
}

// asked is what a visitor asks for: a name on a port, or with kinds tcp and udp a port.
type asked struct {
	name     string
	port     uint16
	protocol string // tcp or udp, or empty for a name
}

// Why visits end before their time.
var (
	errWithdrawn = errors.New("it is not shown to the world any more")
	errNobody    = errors.New("nobody shows that to the world")
	errAcme      = errors.New("a check of acme-tls/1 for a name that several nodes have")
	errDraining  = errors.New("the gateway ends")
	errDead      = errors.New("the node does not answer")
	errIdle      = errors.New("nothing has been said for too long")
	errOld       = errors.New("it has lasted as long as it may")
)

// Handler has connections passed to whoever shows to the world, on this port, the name that their ClientHello has. What
// starts a check of acme-tls/1 is passed on only where one node alone has the name.
func (r *Relay) Handler(port uint16) Handler {
	return func(ctx context.Context, conn net.Conn, hello Hello) {
		v := &visit{asked: asked{name: hello.ServerName, port: port}, visitor: conn, secure: true}
		v.acme = slices.Contains(hello.Protocols, acmeProtocol)
		if inner, ok := conn.(*replayed); ok {
			v.visitor, v.head = inner.Conn, inner.head
			inner.head = nil
		}
		r.serve(ctx, v)
	}
}

// ServeTCP takes connections to a whole port until ctx ends, then closes them, and returns when all have ended.
func (r *Relay) ServeTCP(ctx context.Context, ln net.Listener, port uint16) error {
	return takeAll(ctx, ln, r.log, func(ctx context.Context, running *sync.WaitGroup, conn net.Conn) {
		running.Go(func() {
			defer conn.Close()
			r.serve(ctx, &visit{asked: asked{port: port, protocol: kindTCP}, visitor: conn})
		})
	})
}
