package resolver

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// Table holds the local names: the tailnet's zone and the reverse zones of its addresses. It never changes, so
// any number of goroutines may use it; a change of the map is a new Table. The zero Table holds no name.
//
// All names and records lie in one slab of bytes that refers to itself by offsets alone; beside it there is an
// index of hashes. There is nothing in it for the garbage collector to scan. The slab could be written to a
// file as it is and be handed to newTable later; the index could not, since its hash is seeded by the process.
// Another view of the same tailnet, as for the public, is another Table.
//
// The slab begins with one unused octet, so that offset 0 can mean "none". Then entries follow, one a name:
//
//	nameLen u8, flags u8, sets u16
//	zone u32   entry at the top of the zone that the name lies in
//	wild u32   entry of the child "*"
//	link u32   of an alias: the entry that its target leads to, by wildcard too; see nameMissing
//	name       in wire form, lower-cased
//	sets x     type u16, count u16, size u16
//	records    of each set in turn, size octets: owner (a pointer to the question), type, class, TTL,
//	           RDLENGTH, RDATA with names in full
//
// Numbers are big-endian. A name without sets is an empty non-terminal.
type Table struct {
	slab  []byte
	index []uint64 // open addressing: offset of an entry << 32 | upper half of its name's hash; 0: free

	// Most questions are for names elsewhere. They differ from all zones in their last labels, as many as the
	// shortest zone has; one hash and one bit tell.
	short  int        // label count of the shortest zone
	filter [16]uint64 // bits by hash of the last labels of each zone

	counts  []uint8 // label counts of zones, descending, each once
	deepest int     // label count of the longest name
	names   int
}

// Layout of an entry; see Table.
const (
	nameFlags = 1
	nameSets  = 2
	nameZone  = 4
	nameWild  = 8
	nameLink  = 12
	nameText  = 16

	setSize = 6 // of one set in an entry's directory
)

// Flags of an entry.
const (
	nameTop     = 1 << iota // the name is the top of a zone
	nameAlias               // the name has a CNAME
	nameMissing             // the alias leads to a name that does not exist: link is the zone it is missing from
)

// recordFixed is the length of a prepared record before its data: owner pointer, type, class, TTL, RDLENGTH.
const recordFixed = 12

// recordTTL is where a prepared record has its TTL.
const recordTTL = 6

// pointerTo is the owner of a record whose name stands at the offset that is added (RFC 1035, 4.1.4).
const pointerTo = 0xc000

// maxHops is the most aliases that are followed inside the table. NewTable refuses longer chains.
const maxHops = 16

// tableEntry is the offset of an entry in the slab; 0 is none.
type tableEntry uint32

// tableSet is an RRset: count records, prepared, one behind the other.
type tableSet struct {
	rtype uint16
	count uint16
	data  []byte
}

// tableOutcome says what the table knows of a question.
type tableOutcome uint8

const (
	tableOutside  tableOutcome = iota // the name lies in no zone of ours and has to be asked elsewhere
	tableAnswer                       // the records asked for
	tableNoData                       // the name exists, possibly at the end of aliases, without such records
	tableNXDomain                     // the name, or the target of the last alias, does not exist
	tableExternal                     // aliases that lead out of the table, to target
)

// tableHit is the result of a lookup.
type tableHit struct {
	outcome   tableOutcome
	answer    uint16 // records appended for the answer section
	authority uint16 // records appended behind those for the authority section
	// target is the wire name, in the map's own case, that the caller has to resolve for tableExternal. The
	// answers to it belong behind the records appended. It must not be written to.
	target []byte
}

// rcode is the response code of the outcome; that of tableExternal is decided elsewhere. A chain of aliases
// has the code of its last target (RFC 6604, 3).
func (h *tableHit) rcode() uint16 {
	if h.outcome == tableNXDomain {
		return dns.RcodeNameError
	}
	return dns.RcodeSuccess
}

// Names returns the number of names that have records, the tops of the zones included.
func (t *Table) Names() int { return t.names }

// lookup answers q, of class IN, out of the table. dst is the message under construction: header and question, nothing
// more. Records are appended to it; header and counts are left to the caller. It allocates nothing if dst has
// the room: limit octets, and what the one record takes that reaches beyond limit. No more than that is
// appended of a set, so that truncate has something to cut and an RRset of 60 KiB costs a UDP client's question
// nothing. The addresses of a name begin with the one that rotate, modulo their number, points at.
//
// NS records below the top of a zone and DNAME records are data like any other: this is a stub's table, it has
// no referral to make and rewrites no subtree.
func (t *Table) lookup(q *question, dst []byte, limit int, rotate uint32) ([]byte, tableHit) {
	m := t.match(q)
	a := tableReply{t: t, dst: dst, limit: limit, rotate: rotate, owner: headerSize, ownerLen: q.nameLen}
	switch {
	case m.kind == matchOutside:
	case m.kind == matchMissing:
		a.negative(tableNXDomain, m.entry)
	case q.qtype == dns.TypeANY:
		a.any(m.entry)
	default:
		a.follow(m.entry, q.qtype)
	}
	return a.dst, a.hit
}

// matchKind says how a name was found.
type matchKind uint8

const (
	matchOutside  matchKind = iota // in none of the zones
	matchMissing                   // in a zone, but there is no such name
	matchExact                     // the name itself
	matchWildcard                  // a wildcard that covers it
)

// tableMatch is where a name was found: the entry that answers, or the top of the zone where it is missing.
type tableMatch struct {
	kind  matchKind
	entry tableEntry
}

// match finds the entry that answers for q's name: itself, or the wildcard below its closest encloser (RFC
// 4592, 3.3.1), which need not be its parent. A name that exists, even without data, hides the wildcard.
func (t *Table) match(q *question) tableMatch {
	last, ok := t.mayHold(q)
	if !ok {
		return tableMatch{}
	}
	if e := t.find(q.hash, q.name()); e != 0 {
		return tableMatch{matchExact, e}
	}
	encloser, n := t.zone(q, last)
	if encloser == 0 {
		return tableMatch{}
	}
	// Every name between an existing one and the top of its zone exists too, so the border can be bisected.
	for hi := min(q.labels-1, t.deepest); n < hi; {
		mid := (n + hi + 1) / 2
		suffix := q.suffix(mid)
		if e := t.find(hashName(suffix), suffix); e != 0 {
			encloser, n = e, mid
		} else {
			hi = mid - 1
		}
	}
	if wild := t.ref(encloser, nameWild); wild != 0 {
		return tableMatch{matchWildcard, wild}
	}
	return tableMatch{matchMissing, t.ref(encloser, nameZone)}
}

// mayHold reports false for nearly all names that lie in no zone, and true for all that lie in one. It returns
// the hash of the name's last labels, as many as the shortest zone has.
func (t *Table) mayHold(q *question) (last uint64, ok bool) {
	if t.short == 0 || q.labels < t.short {
		return 0, false
	}
	last = hashName(q.suffix(t.short))
	return last, t.filter[last>>6%uint64(len(t.filter))]>>(last&63)&1 != 0
}

// zone returns the top of the zone that q's name lies in, with its number of labels. Where zones nest the
// longest wins. last is the hash that mayHold returned.
func (t *Table) zone(q *question, last uint64) (tableEntry, int) {
	for _, count := range t.counts {
		n := int(count)
		if n > q.labels {
			continue
		}
		suffix, hash := q.suffix(n), last
		if n != t.short {
			hash = hashName(suffix)
		}
		if e := t.find(hash, suffix); e != 0 && t.flags(e)&nameTop != 0 {
			return e, n
		}
	}
	return 0, 0
}

// zoneOf returns the zone that q's name lies in, in presentation form, or "".
func (t *Table) zoneOf(q *question) string {
	last, ok := t.mayHold(q)
	if !ok {
		return ""
	}
	top, _ := t.zone(q, last)
	if top == 0 {
		return ""
	}
	return presentName(t.name(top))
}

// explain says in words how q's name was found; a wildcard is named relative to its zone.
func (t *Table) explain(q *question) string {
	switch m := t.match(q); m.kind {
	case matchOutside:
		return "not in table"
	case matchMissing:
		return "no such name"
	case matchWildcard:
		owner, top := t.name(m.entry), t.name(t.ref(m.entry, nameZone))
		relative := append(owner[:len(owner)-len(top):len(owner)-len(top)], 0)
		name := presentName(relative)
		return "wildcard " + name[:len(name)-1]
	default:
		if t.sets(m.entry) == 0 {
			return "empty non-terminal"
		}
		return "exact"
	}
}

// find returns the entry of a lower-cased wire name with the given hash, or 0.
func (t *Table) find(hash uint64, name []byte) tableEntry {
	mask := uint64(len(t.index) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		slot := t.index[i]
		if slot == 0 {
			return 0
		}
		if uint32(slot) == uint32(hash>>32) {
			if e := tableEntry(slot >> 32); string(t.name(e)) == string(name) {
				return e
			}
		}
	}
}

func (t *Table) flags(e tableEntry) byte { return t.slab[e+nameFlags] }

// sets is the number of RRsets of e.
func (t *Table) sets(e tableEntry) int { return int(binary.BigEndian.Uint16(t.slab[e+nameSets:])) }

// ref reads the reference to another entry that stands at field.
func (t *Table) ref(e, field tableEntry) tableEntry {
	return tableEntry(binary.BigEndian.Uint32(t.slab[e+field:]))
}

func (t *Table) name(e tableEntry) []byte {
	b := t.slab[e:]
	return b[nameText : nameText+int(b[0])]
}

// set returns the RRset of e that has the given type.
func (t *Table) set(e tableEntry, rtype uint16) (tableSet, bool) {
	b := t.slab[e:]
	n := int(binary.BigEndian.Uint16(b[nameSets:]))
	b = b[nameText+int(b[0]):]
	data := b[n*setSize:]
	for ; n > 0; n-- {
		size := int(binary.BigEndian.Uint16(b[4:]))
		if binary.BigEndian.Uint16(b) == rtype {
			return tableSet{rtype, binary.BigEndian.Uint16(b[2:]), data[:size:size]}, true
		}
		b, data = b[setSize:], data[size:]
	}
	return tableSet{}, false
}

// tableReply is an answer under construction. Owners of records are always pointers: to the question, to the
// target in the data of the alias before, or to the end of either that is the name of the zone.
type tableReply struct {
	t        *Table
	dst      []byte
	limit    int
	rotate   uint32
	owner    int // where dst has the name that is being answered
	ownerLen int
	hit      tableHit
}

// follow answers with the records of type rtype at e, or with those at the end of its aliases.
func (a *tableReply) follow(e tableEntry, rtype uint16) {
	for range maxHops + 1 {
		if set, ok := a.t.set(e, rtype); ok {
			a.hit.outcome = tableAnswer
			a.records(set)
			return
		}
		set, ok := a.t.set(e, dns.TypeCNAME)
		if !ok {
			a.negative(tableNoData, a.t.ref(e, nameZone))
			return
		}
		a.records(set)
		target := set.data[recordFixed:]
		a.owner, a.ownerLen = len(a.dst)-len(target), len(target)
		next := a.t.ref(e, nameLink)
		switch {
		case next == 0:
			a.hit.outcome, a.hit.target = tableExternal, target
			return
		case a.t.flags(e)&nameMissing != 0:
			a.negative(tableNXDomain, next)
			return
		}
		e = next
	}
}

// any answers a question of type ANY with one record of no use, as RFC 8482, 4.2 advises, rather than with
// all there is; but with the alias where there is one, since nothing may stand beside that.
func (a *tableReply) any(e tableEntry) {
	a.hit.outcome = tableAnswer
	if set, ok := a.t.set(e, dns.TypeCNAME); ok {
		a.records(set)
		return
	}
	top := a.t.ref(e, nameZone)
	if a.t.sets(e) == 0 {
		a.negative(tableNoData, top)
		return
	}
	soa, _ := a.t.set(top, dns.TypeSOA)
	a.dst = binary.BigEndian.AppendUint16(a.dst, pointerTo|headerSize)
	a.dst = binary.BigEndian.AppendUint16(a.dst, dns.TypeHINFO)
	a.dst = binary.BigEndian.AppendUint16(a.dst, dns.ClassINET)
	a.dst = append(a.dst, soa.data[recordTTL:recordTTL+4]...)
	a.dst = append(a.dst, "\x00\x09\x07RFC8482\x00"...)
	a.hit.answer++
}

// records appends the records of set to the answer section, as far as there is room.
func (a *tableReply) records(set tableSet) {
	pos := 0
	if set.rtype == dns.TypeA || set.rtype == dns.TypeAAAA {
		// These are all of one length. Others keep their order: it may mean something to their readers.
		pos = int(a.rotate%uint32(set.count)) * (len(set.data) / int(set.count))
	}
	for i := 0; i < int(set.count) && len(a.dst) <= a.limit; i++ {
		rr := set.data[pos:]
		rr = rr[:recordFixed+int(binary.BigEndian.Uint16(rr[recordFixed-2:]))]
		at := len(a.dst)
		a.dst = append(a.dst, rr...)
		binary.BigEndian.PutUint16(a.dst[at:], uint16(pointerTo|a.owner))
		a.hit.answer++
		if pos += len(rr); pos == len(set.data) {
			pos = 0
		}
	}
}

// negative appends the SOA record of the zone at top, with the time for which the answer may be kept as its
// TTL (RFC 2308, 3 and 5).
func (a *tableReply) negative(outcome tableOutcome, top tableEntry) {
	a.hit.outcome = outcome
	soa, ok := a.t.set(top, dns.TypeSOA)
	if !ok {
		return
	}
	at := len(a.dst)
	a.dst = append(a.dst, soa.data...)
	rr := a.dst[at:]
	name := a.owner + a.ownerLen - len(a.t.name(top))
	binary.BigEndian.PutUint16(rr, uint16(pointerTo|name))
	ttl := min(binary.BigEndian.Uint32(rr[recordTTL:]), binary.BigEndian.Uint32(rr[len(rr)-4:]))
	binary.BigEndian.PutUint32(rr[recordTTL:], ttl)
	a.hit.authority++
}

// newTable indexes a slab.
func newTable(slab []byte) *Table {
	t := &Table{slab: slab, short: maxLabels + 1}
	var count int
	t.each(func(e tableEntry) {
		count++
		labels := labelCount(t.name(e))
		t.deepest = max(t.deepest, labels)
		if t.sets(e) > 0 {
			t.names++
		}
		if t.flags(e)&nameTop != 0 {
			t.short = min(t.short, labels)
			t.addCount(uint8(labels))
		}
	})
	slots := 8
	for slots*3 < count*4 { // at most three quarters full
		slots *= 2
	}
	t.index = make([]uint64, slots)
	t.each(t.enter)
	return t
}

// each calls f with every entry.
func (t *Table) each(f func(tableEntry)) {
	for at := 1; at < len(t.slab); {
		e := tableEntry(at)
		f(e)
		n := t.sets(e)
		at += nameText + len(t.name(e))
		size := n * setSize
		for dir := t.slab[at:]; n > 0; n-- {
			size += int(binary.BigEndian.Uint16(dir[4:]))
			dir = dir[setSize:]
		}
		at += size
	}
}

// enter puts e into the index, and into the filter if it is the top of a zone.
func (t *Table) enter(e tableEntry) {
	name := t.name(e)
	hash := hashName(name)
	mask := uint64(len(t.index) - 1)
	i := hash & mask
	for t.index[i] != 0 {
		i = (i + 1) & mask
	}
	t.index[i] = uint64(e)<<32 | hash>>32
	if t.flags(e)&nameTop != 0 {
		for range labelCount(name) - t.short {
			name = name[1+int(name[0]):]
		}
		h := hashName(name)
		t.filter[h>>6%uint64(len(t.filter))] |= 1 << (h & 63)
	}
}

// addCount inserts n into t.counts, which is in descending order.
func (t *Table) addCount(n uint8) {
	i := 0
	for i < len(t.counts) && t.counts[i] > n {
		i++
	}
	if i < len(t.counts) && t.counts[i] == n {
		return
	}
	t.counts = append(t.counts, 0)
	copy(t.counts[i+1:], t.counts[i:])
	t.counts[i] = n
}

// labelCount is the number of labels of a wire name, the root not counted.
func labelCount(wire []byte) int {
	n := 0
	for wire[0] != 0 {
		wire = wire[1+int(wire[0]):]
		n++
	}
	return n
}
