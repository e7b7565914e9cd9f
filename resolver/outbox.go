package resolver

import (
	"encoding/binary"
	"time"

	"github.com/miekg/dns"
)

// querySize is the longest query that goes upstream: header, question, OPT.
const querySize = headerSize + maxName + 4 + optSize

// outbox collects the queries of one batch, so that those to one server leave in one system call.
type outbox struct {
	sends   [batchSize]outgoing
	n       int
	picked  [4]*upstreamSocket // the sockets chosen for this batch, one a server
	sender  *sender
	streams []streamJob
}

type outgoing struct {
	sock *upstreamSocket
	size int
	buf  [querySize]byte
}

// streamJob is a query that goes over TCP, TLS or HTTPS.
type streamJob struct {
	ref     ref
	attempt int
	server  *server
	via     exchanger
	query   []byte
	until   int64
}

// full reports whether the next query might not find room.
func (b *outbox) full() bool { return b.n == batchSize }

func (b *outbox) empty() bool { return b.n == 0 && len(b.streams) == 0 }

// pick returns the socket of this batch towards srv. All queries of a batch leave by one socket, drawn at random.
func (b *outbox) pick(srv *server, now int64) (*upstreamSocket, error) {
	free := -1
	for i, s := range b.picked {
		if s == nil {
			free = i
		} else if s.server == srv {
			s.uses.Add(1)
			return s, nil
		}
	}
	s, err := srv.pool.pick(now)
	if err == nil && free >= 0 {
		b.picked[free] = s
	}
	return s, err
}

// add queues the slot's question for sock.
func (b *outbox) add(sock *upstreamSocket, s *slot, a *attempt) {
	out := &b.sends[b.n]
	b.n++
	out.sock = sock
	out.size = len(s.query(out.buf[:0], a))
}

// query writes the question of the flight as the attempt asks it.
func (s *slot) query(dst []byte, a *attempt) []byte {
	dst = appendQuestion(dst, s.lower[:s.nameLen], s.qtype)
	if a.cased {
		s.caseBits.apply(dst[headerSize : headerSize+int(s.nameLen)])
	}
	// AD asks for the AD bit in the answer (RFC 6840, 5.7), also of servers that are not sent DO.
	flags := uint16(flagRD | flagAD)
	if s.cd {
		flags |= flagCD
	}
	binary.BigEndian.PutUint16(dst, a.id)
	binary.BigEndian.PutUint16(dst[2:], flags)
	if !a.edns {
		return dst
	}
	dst[11] = 1
	var do byte
	if s.do {
		do = 0x80
	}
	return append(dst, 0, 0, byte(dns.TypeOPT), advertisedSize>>8, advertisedSize&0xff, 0, 0, do, 0, 0, 0)
}

// flush sends all that was queued. It must not be called under a shard's lock.
func (b *outbox) flush(w *worker) {
	b.sendAll(w)
	// One that cannot be started may bring another, or a datagram for the next flush.
	for i := 0; i < len(b.streams); i++ {
		if b.full() {
			b.sendAll(w)
		}
		w.r.startStream(w, b.streams[i])
		b.streams[i] = streamJob{}
	}
	b.streams = b.streams[:0]
}

// sendAll sends the datagrams. What a socket that is broken was to send is drawn anew.
func (b *outbox) sendAll(w *worker) {
	var refused, broken []*upstreamSocket // nearly always none
	for i := 0; i < b.n; {
		sock := b.sends[i].sock
		for ; i < b.n && b.sends[i].sock == sock; i++ {
			b.sender.add(nil, b.sends[i].buf[:b.sends[i].size])
		}
		b.sender.flush(sock.udpConn)
		switch b.sender.fault() {
		case faultRefused:
			refused = append(refused, sock)
		case faultBroken:
			broken = append(broken, sock)
		}
	}
	b.n = 0
	clear(b.picked[:])
	for _, sock := range refused {
		w.r.refusedBy(sock)
	}
	for _, sock := range broken {
		w.replace(sock)
	}
}

// startStream runs a query over a stream in a goroutine of its own; there is no more than a bounded number.
func (r *Resolver) startStream(w *worker, job streamJob) {
	select {
	case r.streams <- struct{}{}:
	default:
		r.shed.Add(1)
		w.attemptFailed(job.ref, job.attempt, job.server)
		return
	}
	if !r.goBackground(func() { r.stream(job) }) {
		<-r.streams
	}
}

func (r *Resolver) stream(job streamJob) {
	defer func() { <-r.streams }()
	ctx, cancel := r.deadline(time.Duration(job.until - r.clock()))
	defer cancel()
	sent := r.clock()
	msg, err := job.via.exchange(ctx, job.query)
	w := r.spare.get()
	defer r.spare.put(w)
	defer w.flush()
	w.now = r.clock()
	if err != nil || !w.q.parseResponse(msg) {
		r.log.Debug("upstream failed", "upstream", job.server.upstream.String(), "err", err)
		job.server.missed(w.now)
		w.attemptFailed(job.ref, job.attempt, job.server)
		return
	}
	job.server.answered(w.now - sent)
	w.answered(job.ref, job.attempt, job.server, msg)
}
