package resolver

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// quiet is a resolver without goroutines of its own, which answers out of a table and a cache and has nobody to ask.
func quiet(t testing.TB) *Resolver {
	t.Helper()
	r, err := New(Config{Table: oddTable(t), Rebind: Rebind{Refuse: prefixes("100.64.0.0/10")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.end(); r.background.wait() })
	return r
}

// remember puts a response to its own question into the cache.
func (r *Resolver) remember(t testing.TB, k kind, m *dns.Msg) {
	t.Helper()
	w := r.makeWorker()
	w.now = r.clock()
	msg := packed(t, m)
	if !w.resp.parse(msg) || !w.q.parseResponse(msg) {
		t.Fatalf("not a response: %v", m)
	}
	if opt := m.IsEdns0(); opt != nil {
		w.q.do = opt.Do()
	}
	var rep reply
	w.store(r.origin(k), msg, &rep)
}

// checkReply checks what is true of every reply to a query. It may be cut, and longer only by nothing.
func checkReply(t *testing.T, query, reply []byte, via Transport) {
	t.Helper()
	if len(reply) < headerSize || !bytes.Equal(reply[:2], query[:2]) {
		t.Fatalf("reply %x: no header, or another ID", reply)
	}
	if reply[2]&(flagQR>>8) == 0 || (reply[2]^query[2])&(opcodeMask<<3) != 0 {
		t.Errorf("reply %x: no response, or another opcode", reply[:4])
	}
	var q question
	v := q.parse(query)
	limit := dns.MaxMsgSize
	if via == UDP {
		limit = min(int(q.udpSize), maxLoopback)
	}
	if len(reply) > limit {
		t.Errorf("reply has %d octets, want %d at most", len(reply), limit)
	}
	switch asked := binary.BigEndian.Uint16(reply[4:]); {
	case q.nameLen == 0 && asked != 0:
		t.Errorf("%d questions in the reply to a query without one that can be read", asked)
	case q.nameLen > 0 && (asked != 1 || !bytes.HasPrefix(reply[headerSize:], query[headerSize:q.end])):
		t.Errorf("question is not echoed in %x", reply)
	}
	if v != verdictOK && reply[3]&rcodeMask == 0 && v != verdictBadVers {
		t.Errorf("verdict %d: got NOERROR", v)
	}
	checkSections(t, reply, q.edns)
}

// checkSections parses a reply with the codec, and with what the resolver has for others' messages.
func checkSections(t *testing.T, reply []byte, edns bool) {
	t.Helper()
	asked := binary.BigEndian.Uint16(reply[4:])
	msg := slices.Clone(reply)
	var resp response
	if asked == 1 && reply[2]>>3&opcodeMask == dns.OpcodeQuery {
		if !resp.parse(reply) || resp.size != len(reply) {
			t.Fatalf("reply does not parse: %x", reply)
		}
		if resp.edns != edns {
			t.Errorf("OPT in the reply: %t, in the query: %t", resp.edns, edns)
		}
		msg = known(reply, &resp)
	}
	var m dns.Msg
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("%v: %x", err, reply)
	}
}

// FuzzAnswer sends anything at all through the whole path of a query: names of the table and of the cache, special
// names, aliases that lead away, and names for which there is nobody to ask.
func FuzzAnswer(f *testing.F) {
	r := quiet(f)
	r.remember(f, kindBase, shape(f, "www.example.org. A", 0, "wWw.example.org. 86400 CNAME a.example.org.", "a.example.org. 86400 A 192.0.2.1", "|", "example.org. 86400 NS ns.example.org.", "|", "OPT"))
	r.remember(f, kindBase, shape(f, "no.example.org. A", dns.RcodeNameError, "|", "example.org. 86400 SOA ns.example.org. h.example.org. 1 2 3 4 86400"))
	big := shape(f, "big.example.org. TXT", 0)
	for i := range 100 {
		big.Answer = append(big.Answer, rr(f, "big.example.org. 86400 TXT "+string(bytes.Repeat([]byte{'a' + byte(i%26)}, 60)))...)
	}
	r.remember(f, kindBase, big)
	for _, name := range []string{"www.example.org", "no.example.org", "big.example.org", "elsewhere.example", ".", "localhost", "1.0.0.127.in-addr.arpa",
		"printer.local", "foo-bar.ts.net", "nas.foo-bar.ts.net", "no.foo-bar.ts.net", "x.wild.foo-bar.ts.net", "2.0.64.100.in-addr.arpa"} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeTXT, dns.TypeANY, dns.TypePTR, dns.TypeAXFR, dns.TypeSOA} {
			f.Add(query(f, name, qtype), true)
			m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
			m.SetEdns0(700, true)
			f.Add(pack(f, m), false)
		}
	}
	for _, node := range slices.Collect(oddNames(r.table.Load())) {
		f.Add(query(f, node, dns.TypeA), false)
	}
	m := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
	m.SetEdns0(1232, false).IsEdns0().SetVersion(3)
	f.Add(pack(f, m), true)
	f.Fuzz(func(t *testing.T, msg []byte, tcp bool) {
		via := UDP
		if tcp {
			via = TCP
		}
		sent := slices.Clone(msg)
		reply, err := r.Answer(t.Context(), msg, via)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(msg, sent) {
			t.Error("the query was written to")
		}
		if silent := len(msg) < headerSize || msg[2]&(flagQR>>8) != 0; silent != (reply == nil) {
			t.Fatalf("got reply %x to %x", reply, msg)
		}
		if reply != nil {
			checkReply(t, msg, reply, via)
		}
	})
}

// oddNames lists the names of a table.
func oddNames(t *Table) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		more := true
		t.each(func(e tableEntry) { more = more && yield(presentName(t.name(e))) })
	}
}

// upstreamBench feeds a flight by hand: what it would send is kept, nothing is received but what a test hands in.
type upstreamBench struct {
	*Resolver
	server *server
	w      *worker
	reply  chan []byte
}

func newUpstreamBench(t testing.TB) *upstreamBench {
	t.Helper()
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	u, err := ParseUpstream(silent.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{Base: Base{Upstreams: []Upstream{u}}, Rebind: Rebind{Refuse: prefixes("100.64.0.0/10")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = silent.Close()
		r.end()
		r.servers.get(u).close()
		r.background.wait()
	})
	b := &upstreamBench{Resolver: r, server: r.servers.get(u), w: r.makeWorker()}
	b.w.now = r.clock()
	return b
}

// ask begins a flight for the query and returns the slot, or nil if it was answered at once.
func (b *upstreamBench) ask(t testing.TB, query []byte, via Transport) *slot {
	t.Helper()
	b.reply = make(chan []byte, 1)
	msg := append(make([]byte, 0, dns.MaxMsgSize), query...)
	longest := maxLoopback
	if via == TCP {
		longest = dns.MaxMsgSize
	}
	reply, target := b.w.local(msg, via, longest)
	if target == nil {
		b.reply <- reply
		return nil
	}
	b.w.wait.asker = b.w.q.asker(via, longest)
	b.w.wait.caseBits.read(msg, b.w.q.nameLen)
	b.w.wait.reply = b.reply
	if reply := b.w.forward(msg, target, &b.w.wait); reply != nil {
		t.Fatalf("answered at once: %x", reply)
	}
	sh := b.flights.shard(flightHash(&b.w.q))
	i := sh.findLocked(flightHash(&b.w.q), &b.w.q, b.origin(target.kind))
	return sh.slot(i)
}

// unsent takes what would be sent now.
func (b *upstreamBench) unsent() (datagrams [][]byte, jobs []streamJob) {
	for i := range b.w.box.n {
		out := &b.w.box.sends[i]
		datagrams = append(datagrams, slices.Clone(out.buf[:out.size]))
	}
	jobs = slices.Clone(b.w.box.streams)
	b.w.box.n, b.w.box.streams = 0, b.w.box.streams[:0]
	clear(b.w.box.picked[:])
	return datagrams, jobs
}

// later lets d pass.
func (b *upstreamBench) later(d time.Duration) {
	b.w.now += int64(d)
	for i := range b.flights.shards {
		for b.w.expire(&b.flights.shards[i]) {
			b.unsent()
		}
	}
	b.server.pool.tidy(b.w.now)
}

// FuzzUpstream hands anything at all to a flight, as what an upstream answers. Whatever it is, the client gets one reply,
// at last, and no address that points inside; and if it is cached, the next client gets the same.
func FuzzUpstream(f *testing.F) {
	for _, s := range shapes {
		m := shape(f, s.question, s.rcode, s.lines...)
		m.Question = shape(f, "www.example.org. A", 0).Question
		f.Add(packed(f, m), true, false, uint16(0))
		f.Add(packed(f, m), true, true, uint16(1232))
		m.Truncated = true
		f.Add(packed(f, m), true, true, uint16(512))
	}
	f.Add([]byte("\x00\x00\x81\x81\x00\x00\x00\x00\x00\x00\x00\x00"), false, false, uint16(0))
	f.Add(message(1, 0, 0, record("\xc0\x0c", dns.TypeA, "\x64\x40\x00\x01")...), true, false, uint16(0))
	b := newUpstreamBench(f)
	f.Fuzz(func(t *testing.T, answer []byte, fitting, tcp bool, size uint16) {
		m := new(dns.Msg).SetQuestion("wWW.example.org.", dns.TypeA)
		if size > 0 {
			m.SetEdns0(size, size&1 != 0)
		}
		q, via := pack(t, m), UDP
		if tcp {
			via = TCP
		}
		b.cache.flushAll()
		b.server.noEDNS.until.Store(0)
		if b.ask(t, q, via) != nil {
			b.feed(answer, fitting)
		}
		for range 5 {
			b.later(time.Second)
		}
		if n := b.flights.active.Load(); n != 0 {
			t.Fatalf("%d flights are left", n)
		}
		select {
		case reply := <-b.reply:
			checkReply(t, q, reply, via)
			checkOutside(t, reply)
		default:
			t.Fatal("no reply")
		}
		select {
		case reply := <-b.reply:
			t.Errorf("a second reply: %x", reply)
		default:
		}
		if b.ask(t, q, via) != nil { // nothing was cached
			for range 5 {
				b.later(time.Second)
			}
		}
		checkReply(t, q, <-b.reply, via)
	})
}

// feed answers what the flight asks, twice at most: over UDP, and over TCP if it then asks there.
func (b *upstreamBench) feed(answer []byte, fitting bool) {
	asked, _ := b.unsent()
	question := asked[0][headerSize : headerSize+b.w.q.nameLen+4]
	msg := append(make([]byte, 0, dns.MaxMsgSize), answer...)
	if fitting && len(msg) >= headerSize {
		end := headerSize
		if e, err := questionEnd(msg); err == nil {
			end = e
		}
		msg = slices.Concat(msg[:headerSize], question, msg[end:])
		copy(msg, asked[0][:2])
		msg[2] |= flagQR >> 8
		msg[4], msg[5] = 0, 1
	}
	msg = msg[:min(len(msg), dns.MaxMsgSize)]
	sh := b.flights.shard(flightHash(&b.w.q))
	i := sh.findLocked(flightHash(&b.w.q), &b.w.q, b.origin(kindBase))
	b.w.received(sh.slot(i).attempts[0].sock, slices.Clone(msg))
	_, jobs := b.unsent()
	for _, job := range jobs {
		if out, err := matchResponse(question, slices.Clone(msg)); err != nil || !b.w.q.parseResponse(out) {
			b.w.attemptFailed(job.ref, job.attempt, job.server)
		} else {
			b.w.answered(job.ref, job.attempt, job.server, out)
		}
		b.unsent()
	}
}

// checkOutside checks that no address record of a reply points inside.
func checkOutside(t *testing.T, reply []byte) {
	t.Helper()
	var resp response
	if !resp.parse(reply) {
		t.Fatalf("reply does not parse: %x", reply)
	}
	if addr, bad := resp.rebinds(reply, prefixes("100.64.0.0/10"), false); bad {
		t.Errorf("reply holds %s", addr)
	}
}
