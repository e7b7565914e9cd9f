package resolver

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/miekg/dns"
)

// tableBuilder gathers the names and records of a Table. References between nodes and records are indices.
type tableBuilder struct {
	ttl    uint32
	serial uint32

	nodes  []tableNode
	byName map[string]int32
	tops   []int32 // the nodes at the tops of zones
	recs   []tableRecord
	wire   []byte // the records, prepared
	errs   []error

	msg dns.Msg // of the one record that is being packed
	buf []byte

	slab    []byte
	aliases []int32   // records of type CNAME in the slab
	sets    [][]int32 // of the node that is being written
}

// noIndex is the index of no node or record.
const noIndex = -1

// tableNode is a name.
type tableNode struct {
	name  string // wire form, lower-cased
	zone  int32  // the node at the top of its zone
	wild  int32  // its child "*"
	first int32  // its records are a list, in the order in which they came
	last  int32
	at    tableEntry // where it stands in the slab
}

// tableRecord is a record of a node.
type tableRecord struct {
	rr   dns.RR
	off  int // in wire
	node int32
	next int32
}

func newTableBuilder(c TableConfig) *tableBuilder {
	b := &tableBuilder{ttl: c.TTL, serial: c.Serial, buf: make([]byte, dns.MaxMsgSize)}
	if b.ttl == 0 {
		b.ttl = defaultTTL
	}
	n := len(c.Records)
	b.byName = make(map[string]int32, n/2)
	b.nodes = make([]tableNode, 0, n/2+256) // the tops of the zones too
	b.recs = make([]tableRecord, 0, n)
	b.wire = make([]byte, 0, n*(recordFixed+16))
	b.msg.Answer = make([]dns.RR, 1)
	return b
}

// addZone makes name the top of a zone. Outer zones have to come before those inside them.
func (b *tableBuilder) addZone(name []byte) {
	b.ensure(name[1+int(name[0]):]) // the names between nested zones exist
	id := b.newNode(string(name))
	b.nodes[id].zone = id
	b.tops = append(b.tops, id)
}

func (b *tableBuilder) newNode(name string) int32 {
	id := int32(len(b.nodes))
	b.nodes = append(b.nodes, tableNode{name: name, zone: noIndex, wild: noIndex, first: noIndex, last: noIndex})
	b.byName[name] = id
	return id
}

// ensure returns the node of a lower-cased wire name. It makes the node, and those between it and the top of
// its zone, which exist too if only as empty non-terminals (RFC 4592, 2.2.2). A name in no zone has none.
func (b *tableBuilder) ensure(name []byte) int32 {
	if id, ok := b.byName[string(name)]; ok {
		return id
	}
	if name[0] == 0 {
		return noIndex
	}
	parent := b.ensure(name[1+int(name[0]):])
	if parent == noIndex {
		return noIndex
	}
	id := b.newNode(string(name))
	b.nodes[id].zone = b.nodes[parent].zone
	if isWildcard(name) {
		b.nodes[parent].wild = id
	}
	return id
}

func (b *tableBuilder) addOrReport(rr dns.RR) {
	if err := b.add(rr); err != nil {
		b.errs = append(b.errs, newRecordError(rr, err))
	}
}

var (
	errOutside  = errors.New("the name lies outside the zone and the reverse zones of the ranges")
	errNoData   = errors.New("there is no data of this type in it")
	errTooLarge = errors.New("the records of this name and type do not fit into a message")
)

func (b *tableBuilder) add(rr dns.RR) error {
	if rr == nil {
		return errNoData
	}
	h := rr.Header()
	if h.Class != dns.ClassINET {
		return fmt.Errorf("class %s: only IN is served", dns.Class(h.Class))
	}
	// Types that are no data: RFC 6895, 3.1.
	if h.Rrtype == 0 || h.Rrtype == dns.TypeOPT || h.Rrtype >= 128 && h.Rrtype < 256 {
		return fmt.Errorf("type %s cannot be stored", dns.Type(h.Rrtype))
	}
	owner, data, err := b.pack(rr)
	if err != nil {
		return err
	}
	node := b.ensure(lowerName(owner))
	if node == noIndex {
		return errOutside
	}
	ttl := h.Ttl
	if ttl == 0 {
		ttl = b.ttl
	}
	id := int32(len(b.recs))
	b.recs = append(b.recs, tableRecord{rr: rr, off: len(b.wire), node: node, next: noIndex})
	b.wire = binary.BigEndian.AppendUint16(b.wire, pointerTo|headerSize)
	b.wire = binary.BigEndian.AppendUint16(b.wire, h.Rrtype)
	b.wire = binary.BigEndian.AppendUint16(b.wire, dns.ClassINET)
	b.wire = binary.BigEndian.AppendUint32(b.wire, min(ttl, maxTTL))
	b.wire = binary.BigEndian.AppendUint16(b.wire, uint16(len(data)))
	b.wire = append(b.wire, data...)
	if n := &b.nodes[node]; n.first == noIndex {
		n.first, n.last = id, id
	} else {
		b.recs[n.last].next = id
		n.last = id
	}
	return nil
}

// pack returns owner and data of rr in wire form; both live in b.buf. Addresses, nearly all of a big table, are
// packed here: the codec takes ten times as long.
func (b *tableBuilder) pack(rr dns.RR) (owner, data []byte, err error) {
	switch rr := rr.(type) {
	case *dns.A:
		data = rr.A.To4()
	case *dns.AAAA:
		if len(rr.AAAA) == 16 {
			data = rr.AAAA
		}
	default:
		return b.packAny(rr)
	}
	h := rr.Header()
	if data == nil || (h.Rrtype == dns.TypeA) != (len(data) == 4) || (h.Rrtype == dns.TypeAAAA) != (len(data) == 16) {
		return nil, nil, errNoData
	}
	n, err := dns.PackDomainName(h.Name, b.buf, 0, nil, false)
	if err != nil || n == 0 || n > maxName {
		return nil, nil, &nameError{name: h.Name}
	}
	return b.buf[:n], data, nil
}

// packAny packs a record of any type with the codec. It goes through a message because dns.PackRR writes to the
// record, which is not ours. What the codec does not read back it must not have written: it packs names that
// are too long, and data that the caller gave in wire form, as they are.
func (b *tableBuilder) packAny(rr dns.RR) (owner, data []byte, err error) {
	b.msg.Answer[0] = rr
	msg, err := b.msg.PackBuffer(b.buf)
	if err != nil {
		return nil, nil, fmt.Errorf("packing it: %w", err)
	}
	wire := msg[headerSize:]
	back, end, err := dns.UnpackRR(wire, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("reading it back: %w", err)
	}
	n := skipName(wire, 0)
	if n < 0 || end != len(wire) {
		return nil, nil, errNoData
	}
	if _, given := rr.(*dns.RFC3597); given {
		wire = bytes.Clone(wire)
		b.msg.Answer[0] = back
		if msg, err = b.msg.PackBuffer(b.buf); err != nil || string(msg[headerSize:]) != string(wire) {
			return nil, nil, errNoData
		}
	}
	owner, data = wire[:n], wire[n+10:]
	if !validData(rr.Header().Rrtype, data) {
		return nil, nil, errNoData
	}
	return owner, data, nil
}

// validData checks what lookups rely on, and that data is there at all: the codec packs and reads a record
// without, as dynamic updates have them.
func validData(rtype uint16, data []byte) bool {
	switch rtype {
	case dns.TypeA:
		return len(data) == 4
	case dns.TypeAAAA:
		return len(data) == 16
	case dns.TypeSOA:
		off := skipName(data, 0)
		if off > 0 {
			off = skipName(data, off)
		}
		return off > 0 && off+20 == len(data)
	case dns.TypeNULL, dns.TypeAPL:
		return true
	}
	_, known := dns.TypeToRR[rtype]
	return len(data) > 0 || !known
}

// types returns the types of the records of a node.
func (b *tableBuilder) types(node int32) []uint16 {
	var types []uint16
	for id := b.nodes[node].first; id != noIndex; id = b.recs[id].next {
		types = append(types, b.rtype(id))
	}
	return types
}

func (b *tableBuilder) rtype(id int32) uint16 {
	return binary.BigEndian.Uint16(b.wire[b.recs[id].off+2:])
}

// prepared returns the bytes of a record.
func (b *tableBuilder) prepared(id int32) []byte {
	rr := b.wire[b.recs[id].off:]
	return rr[:recordFixed+int(binary.BigEndian.Uint16(rr[recordFixed-2:]))]
}

// build lays the slab out and indexes it. Aliases are not linked yet.
func (b *tableBuilder) build() *Table {
	size := 1 + len(b.wire) + setSize*len(b.recs)
	for i := range b.nodes {
		size += nameText + len(b.nodes[i].name)
	}
	if int64(size) > math.MaxUint32 {
		b.errs = append(b.errs, fmt.Errorf("a table of %d octets is too large: offsets have 32 bits", size))
		return &Table{}
	}
	b.slab = make([]byte, 1, size)
	var ids []int32
	for i := range b.nodes {
		n := &b.nodes[i]
		ids = ids[:0]
		for id := n.first; id != noIndex; id = b.recs[id].next {
			ids = append(ids, id)
		}
		slices.SortStableFunc(ids, func(x, y int32) int { return cmp.Compare(b.rtype(x), b.rtype(y)) })
		b.write(int32(i), ids)
	}
	for i := range b.nodes {
		n := &b.nodes[i]
		binary.BigEndian.PutUint32(b.slab[n.at+nameZone:], uint32(b.nodes[n.zone].at))
		if n.wild != noIndex {
			binary.BigEndian.PutUint32(b.slab[n.at+nameWild:], uint32(b.nodes[n.wild].at))
		}
	}
	return newTable(b.slab)
}

// write appends the entry of a node with the records ids, which are in the order of their types.
func (b *tableBuilder) write(node int32, ids []int32) {
	n := &b.nodes[node]
	n.at = tableEntry(len(b.slab))
	top := n.zone == node
	sets := b.merge(ids)
	b.check(sets, top)
	var flags byte
	if top {
		flags |= nameTop
	}
	b.slab = append(b.slab, byte(len(n.name)), 0)
	b.slab = binary.BigEndian.AppendUint16(b.slab, uint16(len(sets)))
	b.slab = append(b.slab, make([]byte, nameText-nameZone)...)
	b.slab = append(b.slab, n.name...)
	for _, set := range sets {
		size := 0
		for _, id := range set {
			size += len(b.prepared(id))
		}
		rtype := b.rtype(set[0])
		if rtype == dns.TypeCNAME {
			flags |= nameAlias
			b.aliases = append(b.aliases, set[0])
		}
		b.slab = binary.BigEndian.AppendUint16(b.slab, rtype)
		b.slab = binary.BigEndian.AppendUint16(b.slab, uint16(len(set)))
		b.slab = binary.BigEndian.AppendUint16(b.slab, uint16(size))
	}
	b.slab[n.at+nameFlags] = flags
	for _, set := range sets {
		b.writeSet(set)
	}
}

// writeSet appends the records of a set, all with the lowest TTL among them.
func (b *tableBuilder) writeSet(set []int32) {
	ttl := uint32(maxTTL)
	for _, id := range set {
		ttl = min(ttl, binary.BigEndian.Uint32(b.prepared(id)[recordTTL:]))
	}
	for _, id := range set {
		at := len(b.slab)
		b.slab = append(b.slab, b.prepared(id)...)
		binary.BigEndian.PutUint32(b.slab[at+recordTTL:], ttl)
	}
}

// maxSet is the size of the largest RRset that a message can carry beside header, question and OPT.
const maxSet = dns.MaxMsgSize - headerSize - maxName - 4 - optSize

// merge splits records into sets by type and drops duplicates, and the lowered TTL of a duplicate stays.
func (b *tableBuilder) merge(ids []int32) [][]int32 {
	sets := b.sets[:0]
	for len(ids) > 0 {
		n := 1
		for n < len(ids) && b.rtype(ids[n]) == b.rtype(ids[0]) {
			n++
		}
		set, err := b.unique(ids[:n:n])
		if err != nil {
			b.errs = append(b.errs, newRecordError(b.recs[ids[0]].rr, err))
		} else {
			sets = append(sets, set)
		}
		ids = ids[n:]
	}
	b.sets = sets
	return sets
}

// unique drops duplicates from a set, in place.
func (b *tableBuilder) unique(ids []int32) ([]int32, error) {
	kept, size := ids[:0], 0
	for _, id := range ids {
		at := slices.IndexFunc(kept, func(k int32) bool { return b.equal(k, id) })
		if at >= 0 {
			first, again := b.prepared(kept[at])[recordTTL:], b.prepared(id)[recordTTL:]
			binary.BigEndian.PutUint32(first, min(binary.BigEndian.Uint32(first), binary.BigEndian.Uint32(again)))
			continue
		}
		kept = append(kept, id)
		if size += len(b.prepared(id)); size > maxSet {
			return nil, errTooLarge
		}
	}
	return kept, nil
}

// equal reports whether two records of one set have the same data. Names in it are equal in any case, other
// octets are not, and only the codec knows which are which.
func (b *tableBuilder) equal(x, y int32) bool {
	dx, dy := b.prepared(x)[recordFixed:], b.prepared(y)[recordFixed:]
	if bytes.Equal(dx, dy) {
		return true
	}
	return len(dx) == len(dy) && equalFold(dx, dy) && dns.IsDuplicate(b.recs[x].rr, b.recs[y].rr)
}

// equalFold compares octets, ASCII letters in any case.
func equalFold(x, y []byte) bool {
	for i, c := range x {
		if d := c ^ y[i]; d != 0 && (d != 0x20 || c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}

// check reports sets that must not stand at one name: a CNAME beside other data (RFC 2181, 10.1; the records
// that DNSSEC adds excepted, RFC 4035, 2.5) or at the top of a zone, which has other data; an SOA elsewhere than
// at the top, and more than one.
func (b *tableBuilder) check(sets [][]int32, top bool) {
	report := func(id int32, text string) {
		b.errs = append(b.errs, newRecordError(b.recs[id].rr, errors.New(text)))
	}
	var alias []int32
	for _, set := range sets {
		switch b.rtype(set[0]) {
		case dns.TypeCNAME:
			alias = set
		case dns.TypeSOA:
			if !top {
				report(set[0], "an SOA belongs at the top of a zone")
			} else if len(set) > 1 {
				report(set[1], "a zone has one SOA")
			}
		}
	}
	switch {
	case alias == nil:
	case top:
		report(alias[0], "a CNAME cannot stand at the top of a zone")
	case len(alias) > 1:
		report(alias[1], "a name has one CNAME")
	default:
		for _, set := range sets {
			if t := b.rtype(set[0]); t != dns.TypeCNAME && t != dns.TypeRRSIG && t != dns.TypeNSEC {
				report(alias[0], "a CNAME cannot stand beside other data: the name has "+dns.Type(t).String()+" too")
				return
			}
		}
	}
}

// link notes with each alias where its target leads to, so that lookups follow it without a search, and reports
// those that lead nowhere.
func (b *tableBuilder) link(t *Table) {
	if len(t.slab) == 0 {
		return
	}
	var q question
	for _, id := range b.aliases {
		at := b.nodes[b.recs[id].node].at
		q.setName(lowerName(bytes.Clone(b.prepared(id)[recordFixed:])))
		m := t.match(&q)
		binary.BigEndian.PutUint32(t.slab[at+nameLink:], uint32(m.entry))
		if m.kind == matchMissing {
			t.slab[at+nameFlags] |= nameMissing
		}
	}
	for _, id := range b.aliases {
		if err := t.chain(b.nodes[b.recs[id].node].at); err != nil {
			b.errs = append(b.errs, newRecordError(b.recs[id].rr, err))
		}
	}
}

// chain walks the aliases that begin at e.
func (t *Table) chain(e tableEntry) error {
	at := e
	for range maxHops {
		if t.flags(at)&(nameAlias|nameMissing) != nameAlias {
			return nil
		}
		at = t.ref(at, nameLink)
		switch at {
		case 0:
			return nil
		case e:
			return errors.New("the CNAME leads back to itself")
		}
	}
	if t.flags(at)&nameAlias == 0 {
		return nil
	}
	return fmt.Errorf("the CNAME leads to more than %d others, or into a loop", maxHops-1)
}
