package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	guardTable = "meshdns_tunnel"
	// setChunk is how many elements go into one netlink message, which holds 64 KiB.
	setChunk = 400
)

// guard is our own table in nf_tables: it drops packets with a tailnet source or destination that arrive on another link
// (SECURITY.md, S2). For the kernel's WireGuard, whose packets this process does not see, it holds the policy too.
type guard struct {
	config Config
	port   uint16
	inside bool // what comes out of the tunnel is checked here, not by a filter

	mu        sync.Mutex // one transaction at a time
	allowed   *policy
	redirects map[netip.AddrPort]uint16 // from ports of our addresses to others
	ended     bool                      // the table is somebody else's to take away
}

func newGuard(c Config, port uint16) *guard {
	return &guard{config: c, port: port, redirects: map[netip.AddrPort]uint16{}}
}

// set has another policy hold.
func (g *guard) set(p *policy) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.allowed
	g.allowed = p
	err := g.writeLocked()
	if err != nil {
		g.allowed = old
	}
	return err
}

// writeLocked replaces the whole table in one transaction: there is no moment without it.
func (g *guard) writeLocked() error {
	nft, err := nftables.New()
	if err != nil {
		return unlessAbsent("no nf_tables in this kernel", err)
	}
	b := &ruleset{nft: nft, table: &nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet}}
	nft.AddTable(b.table) // so that there is one to delete
	nft.DelTable(b.table)
	nft.AddTable(b.table)
	g.arrivals(b)
	if g.inside {
		if err := g.policy(b, g.allowed); err != nil {
			return fmt.Errorf("writing the policy for nf_tables: %w", err)
		}
	}
	g.lead(b)
	if err := nft.Flush(); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return &missing{reason: "nf_tables lacks what is needed in this kernel", err: err}
		}
		return unlessAbsent("no nf_tables in this kernel", err)
	}
	return nil
}

// arrivals is the chain that every packet passes as it arrives, before it is routed or tracked.
func (g *guard) arrivals(b *ruleset) {
	chain := b.chain("arrive", nftables.ChainPriorityRaw)
	drop := func(match ...expr.Any) { b.rule(chain, append(match, &expr.Counter{}, verdict(expr.VerdictDrop))...) }
	g.hide(drop)
	accept := func(match ...expr.Any) { b.rule(chain, append(match, verdict(expr.VerdictAccept))...) }

	accept(fromLink("lo")...)
	if g.inside {
		// A node does not route: what comes out of the tunnel is for its own addresses.
		for _, a := range g.config.Addresses {
			accept(append(fromLink(g.config.Link), destination(single(a))...)...)
		}
		drop(fromLink(g.config.Link)...)
	} else {
		accept(fromLink(g.config.Link)...)
	}
	// WireGuard's own packets prove themselves. They get its mark, so that a strict rp_filter looks for the way back where
	// answers take it: past the tunnel, even if the sender's address lies in it.
	b.rule(chain, slices.Concat(toPort(protoUDP, g.port, g.port), setMark(), []expr.Any{verdict(expr.VerdictAccept)})...)
	for _, r := range g.config.Ranges {
		drop(source(r)...)
	}
	for _, a := range g.config.Exempt {
		accept(destination(single(a))...)
	}
	for _, a := range g.config.Addresses {
		drop(destination(single(a))...)
	}
	for _, link := range g.config.Bridges {
		accept(fromLink(link)...)
	}
	for _, r := range g.config.Ranges {
		drop(destination(r)...)
	}
}

// policy is the chain that what comes out of the tunnel passes after it is tracked, and before any redirect. Without a
// policy it lets everything through.
func (g *guard) policy(b *ruleset, p *policy) error {
	chain := b.chain("policy", nftables.ChainPriorityMangle)
	link := fromLink(g.config.Link)
	b.rule(chain, slices.Concat(link, established(), []expr.Any{verdict(expr.VerdictAccept)})...)
	if p == nil {
		return nil // the rule above has the kernel track what a policy has to know later
	}
	for _, group := range groupRules(p.rules) {
		set, err := b.sources(group)
		if err != nil {
			return err
		}
		b.rule(chain, slices.Concat(link, set, group.match(), []expr.Any{verdict(expr.VerdictAccept)})...)
	}
	b.rule(chain, slices.Concat(link, []expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop)})...)
	return nil
}

// ruleGroup is all sources that may do the same. A set holds them, so that a thousand nodes are one rule.
type ruleGroup struct {
	protocol    uint8
	first, last uint16
	v6          bool
	sources     []netip.Prefix
}

// groupRules groups rules by what they let in. A port without a protocol is one of TCP and one of UDP; ICMP has a number in
// each family.
func groupRules(rules []Rule) []*ruleGroup {
	var groups []*ruleGroup
	index := map[ruleKey]*ruleGroup{}
	add := func(k ruleKey, source netip.Prefix) {
		if index[k] == nil {
			index[k] = &ruleGroup{protocol: k.protocol, first: k.first, last: k.last, v6: k.v6}
			groups = append(groups, index[k])
		}
		index[k].sources = append(index[k].sources, source)
	}
	for _, r := range rules {
		k := ruleKey{r.Protocol, r.First, r.Last, r.Source.Addr().Is6()}
		switch {
		case r.Protocol == 0 && r.ported():
			k.protocol = protoTCP
			add(k, r.Source)
			k.protocol = protoUDP
		case r.Protocol == protoICMP && k.v6:
			k.protocol = protoICMPv6
		}
		add(k, r.Source)
	}
	return groups
}

type ruleKey struct {
	protocol    uint8
	first, last uint16
	v6          bool
}

func (g *ruleGroup) match() []expr.Any {
	switch {
	case g.first != 0 || g.last != 0:
		return toPort(g.protocol, g.first, g.last)
	case g.protocol != 0:
		return protocol(g.protocol)
	}
	return nil
}

// ruleset is a table that is being written.
type ruleset struct {
	nft   *nftables.Conn
	table *nftables.Table
	sets  int
}

func (b *ruleset) chain(name string, priority *nftables.ChainPriority) *nftables.Chain {
	return b.hook(&nftables.Chain{Name: name, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: priority})
}

func (b *ruleset) hook(c *nftables.Chain) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	c.Table, c.Policy = b.table, &accept
	return b.nft.AddChain(c)
}

func (b *ruleset) rule(chain *nftables.Chain, exprs ...expr.Any) {
	b.nft.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: exprs})
}

// sources matches packets from any source of a group.
func (b *ruleset) sources(g *ruleGroup) ([]expr.Any, error) {
	b.sets++
	set := &nftables.Set{Table: b.table, Name: fmt.Sprintf("sources%d", b.sets), Interval: true, KeyType: nftables.TypeIPAddr}
	at := addressField{source: true, v6: g.v6}
	if g.v6 {
		set.KeyType = nftables.TypeIP6Addr
	}
	if err := b.nft.AddSet(set, nil); err != nil {
		return nil, err
	}
	for part := range slices.Chunk(elements(g.sources), setChunk) {
		if err := b.nft.SetAddElements(set, part); err != nil {
			return nil, err
		}
	}
	return append(at.load(), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}), nil
}

// elements are the intervals of prefixes, in order and without those that lie in others: nf_tables refuses overlaps.
func elements(prefixes []netip.Prefix) []nftables.SetElement {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []nftables.SetElement
	var last netip.Prefix
	for _, p := range sorted {
		if last.IsValid() && last.Contains(p.Addr()) {
			continue
		}
		last = p
		end := afterPrefix(p)
		// Where one interval begins right behind another, the end of that is its beginning.
		if n := len(out); n > 0 && out[n-1].IntervalEnd && string(out[n-1].Key) == string(p.Addr().AsSlice()) {
			out = out[:n-1]
		} else {
			out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		}
		if end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// afterPrefix is the first address behind a prefix; invalid if it is the last of all.
func afterPrefix(p netip.Prefix) netip.Addr {
	last := p.Addr().AsSlice()
	mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
	for i := range last {
		last[i] |= ^mask[i]
	}
	a, _ := netip.AddrFromSlice(last)
	return a.Next()
}

func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

func cmpEqual(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func fromLink(name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, cmpEqual(padded)}
}

// addressField is where an address stands in a packet.
type addressField struct{ source, v6 bool }

func (f addressField) load() []expr.Any {
	version, offset, length := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	switch {
	case f.v6 && f.source:
		version, offset, length = unix.NFPROTO_IPV6, 8, 16
	case f.v6:
		version, offset, length = unix.NFPROTO_IPV6, 24, 16
	case f.source:
		offset = 12
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, cmpEqual([]byte{version}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
	}
}

func (f addressField) in(p netip.Prefix) []expr.Any {
	length := p.Addr().BitLen() / 8
	return append(f.load(),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(length), Mask: net.CIDRMask(p.Bits(), length*8), Xor: make([]byte, length)},
		cmpEqual(p.Addr().AsSlice()))
}

func source(p netip.Prefix) []expr.Any {
	return addressField{source: true, v6: p.Addr().Is6()}.in(p)
}

func destination(p netip.Prefix) []expr.Any {
	return addressField{v6: p.Addr().Is6()}.in(p)
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func protocol(number uint8) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, cmpEqual([]byte{number})}
}

func toPort(number uint8, first, last uint16) []expr.Any {
	return append(protocol(number),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: binary.BigEndian.AppendUint16(nil, first), ToData: binary.BigEndian.AppendUint16(nil, last)})
}

// setMark marks a packet as the tunnel's own.
func setMark() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

// established matches packets of conversations that have begun.
func established() []expr.Any {
	states := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: states, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
