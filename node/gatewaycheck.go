package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The states of what a check of a gateway looked at.
const (
	checkOK   = "ok"
	checkWarn = "warn" // worth mending; everything works
	checkFail = "fail" // something does not work
	checkSkip = "skip" // cannot be told from here
)

// checkReply is what the world sees of a gateway.
type checkReply struct {
	Schema   string         `json:"schema"` // meshdns.gateway.check/v1
	Zone     string         `json:"zone"`
	Parent   string         `json:"parent"`   // the zone that delegates it; empty: not found
	From     string         `json:"from"`     // gateway, node or outside: where the check ran
	State    string         `json:"state"`    // of the worst finding: ok, warn or fail
	Findings []checkFinding `json:"findings"` // the worst first
}

// checkFinding is one thing that was looked at.
type checkFinding struct {
	Name    string       `json:"name"`
	State   string       `json:"state"` // ok, warn, fail, or skip for what cannot be told from here
	Detail  string       `json:"detail"`
	Hint    string       `json:"hint"`    // what to do about it
	Records []initRecord `json:"records"` // that the hint speaks of, with names relative to the parent
}

func (f checkFinding) with(records ...initRecord) checkFinding {
	f.Records = append(f.Records, records...)
	return f
}

func checked(name, state, hint, format string, args ...any) checkFinding {
	return checkFinding{Name: name, State: state, Hint: onOneLine(hint), Detail: onOneLine(fmt.Sprintf(format, args...)), Records: []initRecord{}}
}

// Where a check runs.
const (
	fromGateway = "gateway"
	fromNode    = "node"
	fromOutside = "outside"
)

// checkTime bounds a check, whatever hangs.
const checkTime = 40 * time.Second

// gatewayFacts is what a check knows before it judges.
type gatewayFacts struct {
	zone    string // without the last dot
	public  []netip.Addr
	from    string
	listen  []netip.Addr // of the gateway, on itself
	control string       // the gateway's control key; empty: not known here
	ports   [2]uint16    // WireGuard's and the relay's
	now     time.Time

	pinned  pinnedFacts
	parent  parentFacts
	servers []serverFacts
	fronts  []frontFacts
	plains  []plainFacts
	silent  []udpFacts
	clocks  []clockFact // of other name servers than the gateway's

	status    Status // of the node that runs here; only if statusErr is nil
	statusErr error
	nodes     []gatewayPeer // that the gateway knows, on itself
}

// CheckGateway looks at a gateway as the world sees it: the delegation of its zone, its name servers, its ports, its clock. It
// changes nothing. zone and public may be empty on the gateway and on its nodes. With resolver, an address, the parent is looked
// for by asking that, and otherwise from the root on. cfg is this machine's configuration.
func (p Paths) CheckGateway(ctx context.Context, cfg Config, zone string, public []string, resolver string) (checkReply, error) {
	f, err := p.aimCheck(cfg, zone, public)
	if err != nil {
		return checkReply{}, err
	}
	w := &walker{port: portDNS, left: maxWalk, now: time.Now}
	if resolver != "" {
		if w.resolver, err = parseCheckAddr(resolver); err != nil {
			return checkReply{}, hinted(ErrBadRequest, fmt.Errorf("--resolver %s: not an address", resolver), "want a resolver's address, such as 9.9.9.9")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	c := Client{Socket: p.Socket}
	if f.from != fromOutside {
		f.status, f.statusErr = c.Status(ctx)
	}
	if f.from == fromGateway {
		if reply, err := c.Nodes(ctx); err == nil {
			f.nodes = reply.Nodes
		}
		if f.pinned.on = cfg.Gateway.Pinned; f.pinned.on {
			var reply pinnedReply
			reply, f.pinned.err = c.PinnedRecords(ctx)
			f.pinned.records = reply.Records
		}
	}
	f.gather(ctx, w)
	return f.judge(), nil
}

func parseCheckAddr(word string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(word))
	if err == nil && a.Zone() != "" {
		err = errors.New("an address with a zone")
	}
	return a.Unmap(), err
}

// aimCheck finds out which gateway is meant, and where this machine stands to it.
func (p Paths) aimCheck(cfg Config, zone string, public []string) (gatewayFacts, error) {
	f := gatewayFacts{from: fromOutside, ports: [2]uint16{DefaultConfig().Tunnel.Port, DefaultConfig().Tunnel.Port + relayPort}, now: time.Now()}
	member, err := loadMembership(p.State)
	if err != nil && zone == "" {
		return f, err // else whoever may not read it, looks from outside
	}
	zone = cmp.Or(zone, cfg.Gateway.Zone)
	if zone == "" && member != nil {
		zone = member.Map.Zone
	}
	if zone == "" {
		return f, hinted(ErrBadRequest, errors.New("which zone is not known: this machine is no gateway, and has joined none"), "meshdns gateway check ZONE")
	}
	var msg string
	if f.zone, msg, _ = checkZone(zone); msg != "" {
		return f, hinted(ErrBadRequest, fmt.Errorf("zone %s: %s", zone, msg), "want the zone that the gateway serves, such as mesh.example.org")
	}
	own, _, _ := checkZone(cfg.Gateway.Zone)
	switch {
	case own == f.zone:
		f.aimSelf(p, cfg)
	case member != nil && member.Map.Zone == f.zone:
		f.aimAt(member)
	}
	if len(public) > 0 {
		f.public = nil
	}
	for _, word := range public {
		a, err := parseCheckAddr(word)
		if err != nil {
			return f, hinted(ErrBadRequest, fmt.Errorf("--public %s: not an address", word), "want the gateway's public addresses, such as 203.0.113.5")
		}
		f.public = append(f.public, a)
	}
	if len(f.public) > maxServers {
		return f, hinted(ErrBadRequest, fmt.Errorf("--public: more than %d addresses", maxServers), "")
	}
	return f, nil
}

// aimSelf is for the gateway itself.
func (f *gatewayFacts) aimSelf(p Paths, cfg Config) {
	f.from, f.public = fromGateway, cfg.Gateway.Public
	f.ports = [2]uint16{cfg.Tunnel.Port, cfg.Tunnel.Port + relayPort}
	f.listen, _ = (&Node{cfg: cfg}).gatewayAddresses() // none: its start says so
	if data, err := readFile(p.State+"/"+secretsFile, 4096); err == nil {
		if s, err := parseSecrets(data); err == nil {
			f.control = s.keys().Control.String()
		}
	}
}

// aimAt is for a machine that has joined.
func (f *gatewayFacts) aimAt(m *membership) {
	f.from = fromNode
	contact := m.Gateways[0]
	f.control = contact.Control.String()
	for _, n := range m.Map.Nodes {
		if n.Gateway != nil && n.Control == contact.Control {
			f.public = n.Gateway.Public
		}
	}
	if len(contact.Endpoints) > 0 {
		f.ports[0] = contact.Endpoints[0].Port()
	}
	if len(contact.Relay) > 0 {
		f.ports[1] = contact.Relay[0].Port()
	}
}

// gather asks everybody.
func (f *gatewayFacts) gather(ctx context.Context, w *walker) {
	if f.pinned.on {
		f.gatherPinned(ctx, w)
		f.tryPorts(ctx)
		f.clocks = w.clocks
		return
	}
	if !isPrivateZone(f.zone) {
		f.parent = w.parentOf(ctx, f.zone)
	}
	f.askServers(ctx, w)
	f.tryPorts(ctx)
	f.clocks = w.clocks
}

// isPrivateZone reports whether nobody delegates a zone: its name is for private use (RFC 8375, RFC 9476 and ICANN's internal).
func isPrivateZone(zone string) bool { return within(zone, "home.arpa") || within(zone, "internal") }

// judge says what the facts mean.
func (f *gatewayFacts) judge() checkReply {
	r := checkReply{Schema: "meshdns.gateway.check/v1", Zone: f.zone, Parent: f.parent.zone, From: f.from, State: checkOK, Findings: []checkFinding{}}
	judges := []func() []checkFinding{
		f.judgeSelf, f.judgeDelegation, f.judgeGlue, f.judgeDS, f.judgeServers, f.judgeFronts, f.judgePlains, f.judgeUDPPorts, f.judgeClocks,
	}
	if f.pinned.on {
		judges = []func() []checkFinding{f.judgeSelf, f.judgePinned, f.judgeFronts, f.judgePlains, f.judgeUDPPorts, f.judgeClocks}
	}
	for _, judge := range judges {
		r.Findings = append(r.Findings, judge()...)
	}
	order := []string{checkFail, checkWarn, checkOK, checkSkip}
	slices.SortStableFunc(r.Findings, func(a, b checkFinding) int {
		return cmp.Compare(slices.Index(order, a.State), slices.Index(order, b.State))
	})
	if len(r.Findings) > 0 && r.Findings[0].State != checkSkip {
		r.State = r.Findings[0].State
	}
	return r
}
