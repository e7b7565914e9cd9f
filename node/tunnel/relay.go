package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.zx2c4.com/wireguard/device"
)

// RelayConfig says what a Relay does. Key is required.
type RelayConfig struct {
	Key   Secret                  // of the relay's own WireGuard endpoint, by which it knows who sends
	Allow func(from, to Key) bool // whether one node may speak to another one; nil: every node may to every
	Met   func(from, to Key)      // is told of two nodes that made a session through the relay, and must not block; nil: nobody is

	Logger *slog.Logger // nil discards
}

// Relay passes WireGuard's packets between nodes that do not reach each other, as they are: it has no key to them (S7). One
// UDP port serves all: a packet that makes a session tells whom it is for by mac1, which is keyed by the receiver's public
// key, all others by the receiver index that the two of them agreed on (the WireGuard paper, section 5.4). mac1
// authenticates nobody, so the port is a WireGuard endpoint itself, which every node has for a peer: a node is where its
// last handshake with that came from, and packets from anywhere else are dropped.
type Relay struct {
	cfg   RelayConfig
	log   *slog.Logger
	own   mac1
	bind  *relayBind
	conns []*relaySocket // set by Serve

	mu    sync.Mutex
	table relayTable

	syncing  sync.Mutex     // is taken before mu
	endpoint *device.Device // nil unless it is served
	known    []Key          // that it knows

	handshakes chan struct{} // something of a handshake went to our endpoint
	stats      relayStats
}

// RelayStats count datagrams since the start.
type RelayStats struct {
	Passed     uint64
	Dropped    uint64 // from nobody's address, to nobody, or too many
	Nodes      int    // that have an address here
	Sessions   int    // between nodes
	BytesTotal uint64 // that were passed
}

type relayStats struct{ passed, dropped, bytes atomic.Uint64 }

// NewRelay returns a relay without nodes that does nothing until Serve.
func NewRelay(cfg RelayConfig) (*Relay, error) {
	if cfg.Key.IsZero() {
		return nil, errors.New("a relay without a key")
	}
	r := &Relay{cfg: cfg, log: cfg.Logger, handshakes: make(chan struct{}, 1)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.cfg.Allow == nil {
		r.cfg.Allow = func(Key, Key) bool { return true }
	}
	if r.cfg.Met == nil {
		r.cfg.Met = func(Key, Key) {}
	}
	r.own = newMAC1(cfg.Key.Public())
	r.table = newRelayTable(r.cfg.Allow)
	r.bind = newRelayBind(r.send)
	return r, nil
}

// SetPeers has the relay serve these nodes and no others.
func (r *Relay) SetPeers(keys []Key) error {
	r.mu.Lock()
	r.table.setNodes(keys)
	r.mu.Unlock()
	return r.sync(func() {})
}

// sync has our endpoint know the nodes, after it has called first.
func (r *Relay) sync(first func()) error {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	first()
	if r.endpoint == nil {
		return nil
	}
	r.mu.Lock()
	keys := r.table.keys()
	r.mu.Unlock()
	if slices.Equal(keys, r.known) {
		return nil
	}
	if err := r.changeLocked(keyChanges(r.known, keys)); err != nil {
		return fmt.Errorf("telling the relay's endpoint of nodes: %w", err)
	}
	r.known = keys
	return nil
}

// changeLocked changes our endpoint's peers. It needs syncing held.
func (r *Relay) changeLocked(changes []peerChange) error {
	return r.endpoint.IpcSetOperation(bytes.NewReader(uapiPeers(changePeers(r.endpoint, r.cfg.Key.Public(), changes))))
}

// Forget forgets when a node made its last handshake with our endpoint, for Tunnel.Forget's reason.
func (r *Relay) Forget(key Key) error {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	if r.endpoint == nil || !slices.Contains(r.known, key) {
		return nil
	}
	changes := []peerChange{{key: key, remove: true}, {key: key, add: true}}
	if err := r.changeLocked(changes); err != nil {
		return fmt.Errorf("having the relay's endpoint forget a node: %w", err)
	}
	return nil
}

// Stats are the counts.
func (r *Relay) Stats() RelayStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return RelayStats{
		Passed:     r.stats.passed.Load(),
		Dropped:    r.stats.dropped.Load(),
		BytesTotal: r.stats.bytes.Load(),
		Nodes:      len(r.table.byAddr),
		Sessions:   len(r.table.sessions),
	}
}

// Serve passes packets between the sockets, one for each address that nodes may reach, until ctx ends; it closes them.
func (r *Relay) Serve(ctx context.Context, conns ...*net.UDPConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, c := range conns {
		r.conns = append(r.conns, newRelaySocket(c))
	}
	endpoint := device.NewDevice(newNowhere(), r.bind, wireguardLogger(r.log))
	defer endpoint.Close()
	if err := endpoint.SetPrivateKey(device.NoisePrivateKey(r.cfg.Key.clamped())); err != nil {
		return fmt.Errorf("making the relay's endpoint: %w", err)
	}
	if err := r.sync(func() { r.endpoint, r.known = endpoint, nil }); err != nil {
		return err
	}
	defer r.sync(func() { r.endpoint = nil })
	if err := endpoint.Up(); err != nil {
		return fmt.Errorf("making the relay's endpoint: %w", err)
	}
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Close()
		}
	})
	defer stop()
	failed := make(chan error, len(conns)+1)
	var running sync.WaitGroup
	for i := range conns {
		running.Go(func() { failed <- r.read(ctx, i) })
	}
	running.Go(func() { failed <- r.follow(ctx, endpoint) })
	err := <-failed
	cancel()
	for _, c := range conns {
		c.Close()
	}
	running.Wait()
	return err
}

// read passes on what one socket gets.
func (r *Relay) read(ctx context.Context, at int) error {
	in := r.conns[at].input()
	p := passing{relay: r, at: at, out: make([]bursts, len(r.conns))}
	for {
		n, err := r.conns[at].ReadBatch(in, 0)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("reading what is to be relayed: %w", err)
		}
		if err != nil {
			continue // an ICMP error about something that was sent
		}
		r.mu.Lock()
		now := time.Now()
		for i := range in[:n] {
			if j, ok := cut(&in[i]); ok {
				p.routeLocked(j, now)
			} else {
				r.stats.dropped.Add(1)
			}
		}
		r.mu.Unlock()
		p.write()
	}
}

// routeLocked is where a datagram goes on to. Where nothing is returned it is for our own endpoint, or for nobody.
func (r *Relay) routeLocked(from relayPlace, datagram []byte, now time.Time) relayPlace {
	if r.table.isOwn(r.own, from, datagram, now) {
		if messageType(datagram) == typeInitiation {
			r.table.asked(from.addr, now)
		}
		if !r.bind.deliver(from, datagram) {
			r.stats.dropped.Add(1)
		}
		if r.table.tells(from, datagram) {
			r.wake()
		}
		return relayPlace{}
	}
	to, met := r.table.route(from, datagram, now)
	if to == nil {
		r.stats.dropped.Add(1)
		return relayPlace{}
	}
	r.stats.passed.Add(1)
	if met != nil {
		r.cfg.Met(met.key, to.key)
	}
	return to.place
}

// send is what our own endpoint sends. A response tells the index that the other side will name it by.
func (r *Relay) send(to relayPlace, datagram []byte) error {
	if len(datagram) >= 8 && datagram[0] == typeResponse {
		r.mu.Lock()
		r.table.noteOwn(datagram, time.Now())
		r.mu.Unlock()
	}
	r.write(to, datagram)
	return nil
}

// write sends one datagram.
func (r *Relay) write(to relayPlace, datagram []byte) {
	r.stats.dropped.Add(uint64(r.conns[to.conn].writeAll([]ipv4.Message{{Buffers: [][]byte{datagram}, Addr: net.UDPAddrFromAddrPort(to.addr)}})))
}

// wake has follow look at our endpoint.
func (r *Relay) wake() {
	select {
	case r.handshakes <- struct{}{}:
	default:
	}
}

// The times at which our endpoint is looked at.
const (
	lookSoon  = 20 * time.Millisecond // after something of a handshake, whose computing takes less than a millisecond
	lookLater = 8                     // times as long until the next look, and so on: on a busy machine it takes longer
	lookAgain = 30 * time.Second      // to forget what is over
	lookShare = 50                    // times as long as a look took until another one: with a thousand nodes that is some milliseconds
)

// follow takes from our endpoint where each node made its last handshake.
func (r *Relay) follow(ctx context.Context, endpoint *device.Device) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var earliest time.Time
	for pause := lookAgain; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-r.handshakes:
			soon := max(lookSoon, time.Until(earliest))
			if pause > soon { // else there is a look soon, however many come
				pause = soon
				timer.Reset(pause)
			}
		case <-timer.C:
			pause = min(lookLater*pause, lookAgain)
			timer.Reset(pause)
			start := time.Now()
			if err := r.look(endpoint); err != nil {
				return err
			}
			earliest = time.Now().Add(lookShare * time.Since(start))
		}
	}
}

// look takes from our endpoint where nodes are, and forgets what is over.
func (r *Relay) look(endpoint *device.Device) error {
	stats, err := endpointStats(endpoint)
	if err != nil {
		return err
	}
	r.mu.Lock()
	for _, s := range stats {
		if s.Endpoint.IsValid() {
			r.table.move(s.Key, r.bind.place(s.Endpoint), s.Handshake)
		}
	}
	now := time.Now()
	r.table.forget(now)
	released := r.table.release(now)
	places := slices.Collect(maps.Keys(r.table.byAddr))
	r.mu.Unlock()
	r.bind.keep(places)
	for _, one := range released {
		r.stats.passed.Add(1)
		r.stats.dropped.Add(^uint64(0)) // one less: as such it was counted when it came
		r.write(one.to, one.datagram)
	}
	return nil
}

// keyChanges are what makes peers of other keys.
func keyChanges(old, keys []Key) []peerChange {
	had, wanted := make(map[Key]bool, len(old)), make(map[Key]bool, len(keys))
	for _, k := range old {
		had[k] = true
	}
	for _, k := range keys {
		wanted[k] = true
	}
	var changes []peerChange
	for _, k := range old {
		if !wanted[k] {
			changes = append(changes, peerChange{key: k, remove: true})
		}
	}
	for _, k := range keys {
		if !had[k] {
			changes = append(changes, peerChange{key: k, add: true})
		}
	}
	return changes
}

// endpointStats is what our endpoint knows of its peers.
func endpointStats(endpoint *device.Device) ([]PeerStats, error) {
	text, err := endpoint.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("asking the relay's endpoint: %w", err)
	}
	return uapiStats([]byte(text))
}
