package tunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// filter stands between a WireGuard of this process and its tun device. Of what peers send it lets through what is for this
// node's own addresses (a node does not route) and what the policy admits.
type filter struct {
	tun.Device
	own     map[netip.Addr]bool
	rules   atomic.Pointer[policy] // nil: all
	flows   flows
	in, out *gate // that the socket has too
	given   tally
	dropped atomic.Uint64
}

func newFilter(d tun.Device, addresses []netip.Addr) *filter {
	f := &filter{Device: d, own: make(map[netip.Addr]bool, len(addresses)), flows: flows{now: time.Now}, in: newGate(), out: newGate()}
	for _, a := range addresses {
		f.own[a] = true
	}
	return f
}

func (f *filter) set(p *policy) error {
	f.rules.Store(p)
	return nil
}

// Read passes on what this node sends, and notes whom it talks to.
func (f *filter) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	f.out.add(-f.given.left(bufs))
	f.out.wait()
	n, err := f.Device.Read(bufs, sizes, offset)
	for i := range n {
		f.given.add(bufs[i])
	}
	f.out.add(n)
	if f.rules.Load() == nil {
		return n, err
	}
	for i := range n {
		if p, ok := parsePacket(bufs[i][offset : offset+sizes[i]]); ok && tracked(p) {
			f.flows.note(flow{p.protocol, netip.AddrPortFrom(p.destination, p.destinationPort), netip.AddrPortFrom(p.source, p.sourcePort)})
		}
	}
	return n, err
}

// Write passes on what peers send, as far as it may come in. It moves the slices of bufs, not what they hold, and leaves none:
// wireguard-go would hold what each peer sent last, in a buffer of 64 KiB, until that sends again.
func (f *filter) Write(bufs [][]byte, offset int) (int, error) {
	defer f.in.done(len(bufs))
	defer clear(bufs)
	rules, kept := f.rules.Load(), bufs[:0]
	for _, b := range bufs {
		if p, ok := parsePacket(b[offset:]); ok && f.own[p.destination] && (rules == nil || f.admit(rules, p)) {
			kept = append(kept, b)
		}
	}
	if n := len(bufs) - len(kept); n > 0 {
		f.dropped.Add(uint64(n))
	}
	if len(kept) == 0 {
		return 0, nil
	}
	return f.Device.Write(kept, offset)
}

// tracked tells whether only having been talked to first lets a packet of this kind in. A TCP packet shows by itself
// whether it opens a connection, and an ICMP one whether it answers.
func tracked(p packet) bool {
	return !p.later && p.protocol != protoTCP && p.protocol != protoICMP && p.protocol != protoICMPv6
}

// admit decides under a policy.
func (f *filter) admit(rules *policy, p packet) bool {
	switch {
	case p.later:
		return true // without its first fragment it is thrown away
	case p.protocol == protoTCP && !p.opens:
		return true // of a connection, or refused by TCP itself
	case (p.protocol == protoICMP || p.protocol == protoICMPv6) && answers(p):
		return true
	}
	if !tracked(p) {
		return rules.admits(p)
	}
	flow := flow{p.protocol, netip.AddrPortFrom(p.source, p.sourcePort), netip.AddrPortFrom(p.destination, p.destinationPort)}
	if f.flows.knows(flow) {
		return true
	}
	if !rules.admits(p) {
		return false
	}
	f.flows.note(flow)
	return true
}

// answers tells ICMP errors and echo replies from requests (RFC 792, RFC 4443).
func answers(p packet) bool {
	if p.protocol == protoICMP {
		return p.icmp == 0 || p.icmp == 3 || p.icmp == 11 || p.icmp == 12
	}
	return p.icmp >= 1 && p.icmp <= 4 || p.icmp == 129
}

// flow is a conversation without a beginning or an end of its own.
type flow struct {
	protocol      uint8
	remote, local netip.AddrPort
}

const (
	flowLife = 2 * time.Minute // as Linux's nf_conntrack_udp_timeout_stream
	maxFlows = 32768           // in each of two generations
)

// flows remembers conversations for flowLife after their last packet, at least half of that, and at most maxFlows of them
// twice: a flood of new ones forgets old ones, and costs no more memory.
type flows struct {
	now func() time.Time

	mu        sync.Mutex
	young     map[flow]struct{}
	old       map[flow]struct{}
	turned    time.Time
	forgotten uint64
}

// turnLocked makes the young generation the old one when it has lived half a life or is full.
func (f *flows) turnLocked() {
	age := f.now().Sub(f.turned)
	if age < flowLife/2 && len(f.young) < maxFlows && f.young != nil {
		return
	}
	if age >= flowLife {
		f.young = nil // both are past their time
	}
	if age < flowLife/2 {
		f.forgotten += uint64(len(f.old))
	}
	f.old, f.young, f.turned = f.young, make(map[flow]struct{}), f.now()
}

func (f *flows) note(fl flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turnLocked()
	f.young[fl] = struct{}{}
}

func (f *flows) knows(fl flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turnLocked()
	if _, ok := f.young[fl]; ok {
		return true
	}
	_, ok := f.old[fl]
	if ok {
		f.young[fl] = struct{}{}
	}
	return ok
}
