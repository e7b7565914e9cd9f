package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshdns/meshdns/funnel"
	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// serving is what this node serves: what the configuration and the file say, and what lives with a command.
type serving struct {
	ready  atomic.Bool // all is there that is used without a lock
	server *funnel.Server
	log    *logFile      // nil: none
	wake   chan struct{} // something ends or begins at another time now

	wanting atomic.Bool // certificates are being asked for

	changing sync.Mutex // one change of what is in effect at a time
	shown    []control.Funnel
	ingress  map[netip.Addr]func() // that end it

	mu         sync.Mutex
	kept       []served                  // of the file
	spent      map[string]time.Time      // of the file: share links that were taken
	broken     error                     // why the file is not in use, and takes no change
	blocks     []serveConfig             // of the configuration
	configured []served                  // what they mean by now
	bad        error                     // why the configuration's file is not in use as it is
	wrong      []string                  // what of it cannot be served
	self       string                    // this node's full name
	sessions   []*serveSession           // of commands, in the order of their beginning
	faults     map[netip.AddrPort]error  // why a port is not listened on
	unready    error                     // why nothing is served at all
	listeners  map[netip.AddrPort]func() // that end one
	tunnel     *tunnel.Tunnel            // of another program, whose addresses are listened on
	ended      sync.WaitGroup
}

// serveSession is a command that serves something, in the foreground or until it is kept.
type serveSession struct {
	served  []served
	replace bool                   // what is kept at the same place, if it comes to that
	visits  chan funnel.AccessLine // nil: nobody waits for any
}

// has reports whether it is about the place of another one.
func (w *serveSession) has(o served) bool { return slices.ContainsFunc(w.served, o.same) }

// servePause is how often ports that could not be listened on are tried again, and certificates looked after.
const servePause = 10 * time.Second

// startServing serves what was served before.
func (n *Node) startServing(context.Context) error {
	s := &n.serving
	s.wake = make(chan struct{}, 1)
	s.faults, s.listeners, s.ingress = map[netip.AddrPort]error{}, map[netip.AddrPort]func(){}, map[netip.Addr]func(){}
	server, err := n.newServer()
	if err != nil {
		return err
	}
	s.server = server
	text, err := loadServed(n.opt.Paths.State)
	if err != nil {
		n.report("what was served is not: %v", err)
	}
	s.kept, s.spent, s.broken = text.Entries, text.Spent, err
	s.blocks = n.cfg.Serve
	n.applyServed()
	s.ready.Store(true)
	n.services.run("serve", n.tendServing)
	if !n.opt.Try {
		n.services.run("watching of the configuration", n.watchConfig)
	}
	return nil
}

// tendServing looks after what is served: what ends, what could not be had yet.
func (n *Node) tendServing(ctx context.Context) error {
	s := &n.serving
	defer s.ended.Wait()
	defer n.endServing()
	for {
		wait := servePause
		if next := s.nextEnd(); !next.IsZero() {
			wait = min(wait, max(0, time.Until(next)))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
		n.dropEnded(time.Now())
		n.takeConfiguredNames(ctx)
		n.applyServed()
	}
}

// again has what is served looked after now.
func (s *serving) again() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// endServing ends all listeners.
func (n *Node) endServing() {
	s := &n.serving
	s.changing.Lock() // whoever comes later sees that the node ends
	defer s.changing.Unlock()
	n.closeIngress()
	s.mu.Lock()
	list := slices.Collect(maps.Values(s.listeners))
	t := s.tunnel
	clear(s.listeners)
	s.tunnel = nil
	s.mu.Unlock()
	for _, end := range list {
		end()
	}
	if t != nil {
		_ = t.Close() // which has nothing of the machine's
	}
	if s.log != nil {
		s.log.close()
	}
}

// current is what is in effect. What a command wants counts from its beginning.
func (s *serving) current() []served {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.currentLocked()
}

func (s *serving) currentLocked() []served {
	list := slices.Clone(s.configured)
	for _, k := range s.kept {
		if slices.ContainsFunc(s.sessions, func(w *serveSession) bool { return w.replace && w.has(k) }) {
			continue
		}
		// The configuration wins over what was there before it.
		if slices.ContainsFunc(list, func(c served) bool { return clash(k, c) != nil }) {
			continue
		}
		k.from = fromCommand
		if k.Own && s.self != "" {
			k.Name = s.self
		}
		list = append(list, k)
	}
	for _, w := range s.sessions {
		for _, one := range w.served {
			one.from = fromForeground
			list = append(list, one)
		}
	}
	for i := range list {
		list[i].Access = s.withSpent(list[i].Access)
	}
	sortServed(list)
	return list
}

// add takes what a command wants into what is in effect, unless it clashes with something there.
func (s *serving) add(w *serveSession) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.currentLocked()
	if len(list)+len(w.served) > maxServed {
		return hinted(nil, fmt.Errorf("%d things are served already", len(list)), "")
	}
	if s.broken != nil && w.replace {
		return s.broken
	}
	for _, other := range list {
		for _, one := range w.served {
			if w.replace && other.from == fromCommand && other.same(one) && other.Kind == one.Kind {
				continue
			}
			if err := clash(one, other); err != nil {
				return err
			}
		}
	}
	s.sessions = append(s.sessions, w)
	return nil
}

// remove takes it out again.
func (s *serving) remove(w *serveSession) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions = slices.DeleteFunc(s.sessions, func(o *serveSession) bool { return o == w })
}

// keep has what a command wants go on without it.
func (n *Node) keepServed(w *serveSession) error {
	return n.changeKept("", func(kept []served) ([]served, error) {
		return append(slices.DeleteFunc(kept, w.has), w.served...), nil
	}, w)
}

// changeKept changes the file and what is in effect, or neither. tag is what the caller has read, empty: he does not care.
// done is a session that has what it wanted by that.
func (n *Node) changeKept(tag string, change func([]served) ([]served, error), done *serveSession) error {
	s := &n.serving
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	if tag != "" && tag != (servedText{Entries: s.kept}).tag() {
		return hinted(errStale, errors.New("what is served has changed since it was read"), "read it again: meshdns serve status --json")
	}
	next, err := change(slices.Clone(s.kept))
	if err != nil {
		return err
	}
	sortServed(next)
	if err := checkServed(next); err != nil {
		return err
	}
	if err := saveServed(n.opt.Paths.State, servedText{Entries: next, Spent: s.spent}); err != nil {
		return err
	}
	s.kept = next
	s.sessions = slices.DeleteFunc(s.sessions, func(o *serveSession) bool { return o == done })
	return nil
}

// nextEnd is when the next thing ends by itself; zero: none does.
func (s *serving) nextEnd() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next time.Time
	for _, k := range s.kept {
		if !k.Until.IsZero() && (next.IsZero() || k.Until.Before(next)) {
			next = k.Until
		}
	}
	return next
}

// dropEnded ends what was to last until now. What cannot be written down ends all the same.
func (n *Node) dropEnded(now time.Time) {
	s := &n.serving
	over := func(k served) bool { return !k.Until.IsZero() && !k.Until.After(now) }
	s.mu.Lock()
	some := slices.ContainsFunc(s.kept, over)
	s.mu.Unlock()
	if !some {
		return
	}
	err := n.changeKept("", func(kept []served) ([]served, error) { return slices.DeleteFunc(kept, over), nil }, nil)
	if err != nil {
		n.log.Error("what has ended is still in the file", "err", err)
		s.mu.Lock()
		s.kept = slices.DeleteFunc(slices.Clone(s.kept), over)
		s.mu.Unlock()
	}
}

// applyServed has the server, the ports and the gateway be as what is in effect says.
func (n *Node) applyServed() {
	s := &n.serving
	s.changing.Lock()
	defer s.changing.Unlock()
	if n.services.ctx.Err() != nil {
		return
	}
	self := n.selfName()
	configured, wrong := n.servedByConfig()
	s.mu.Lock()
	s.self, s.configured, s.wrong = self, configured, wrong
	s.mu.Unlock()
	list := s.current()
	err := s.server.Set(entriesOf(list))
	if err != nil {
		n.log.Error("what is served cannot be", "err", err)
	}
	s.mu.Lock()
	s.unready = err
	s.mu.Unlock()
	n.listenServed(list)
	n.showServed(funnelsOf(list))
	n.wantServedCerts(list)
}

// showServed tells the gateway what is for the world, and takes visitors for as long as there is any.
func (n *Node) showServed(list []control.Funnel) {
	s := &n.serving
	if len(list) > 0 {
		n.openIngress(n.services.ctx)
	}
	if slices.EqualFunc(list, s.shown, control.Funnel.Same) {
		return
	}
	s.shown = list
	n.registration.set(list)
	if len(list) == 0 {
		n.closeIngress()
	}
}

// funnelsOf are what the gateway is told.
func funnelsOf(list []served) []control.Funnel {
	var funnels []control.Funnel
	for _, s := range list {
		f := s.funnel()
		if s.Public && !slices.ContainsFunc(funnels, f.Same) {
			funnels = append(funnels, f)
		}
	}
	return funnels
}

func (s served) funnel() control.Funnel {
	return control.Funnel{Name: s.Name, Port: s.Port, Kind: s.Kind}
}

// listenServed listens on the ports of what the tailnet is served, and on no others.
func (n *Node) listenServed(list []served) {
	s := &n.serving
	want := map[netip.AddrPort]bool{}
	for _, one := range list {
		if one.Public {
			continue // visitors come by the ingress
		}
		for _, a := range n.ownAddresses() {
			want[netip.AddrPortFrom(a, one.Port)] = true
		}
	}
	s.mu.Lock()
	var over []func()
	for at, end := range s.listeners {
		if !want[at] {
			over = append(over, end)
			delete(s.listeners, at)
		}
	}
	clear(s.faults)
	for at := range s.listeners {
		delete(want, at)
	}
	s.mu.Unlock()
	for _, end := range over {
		end()
	}
	if len(want) == 0 {
		return
	}
	t, err := n.serveTunnel(n.services.ctx)
	for at := range want {
		failed := err
		if failed == nil {
			failed = n.listenAt(t, at)
		}
		if failed != nil {
			s.fault(at, failed)
		}
	}
}

// fault notes why something is not listened on.
func (s *serving) fault(at netip.AddrPort, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[at] = err
}

// listenAt serves the tailnet at one port of one address.
func (n *Node) listenAt(t *tunnel.Tunnel, at netip.AddrPort) error {
	s := &n.serving
	ln, err := t.Take(n.services.ctx, "tcp", at)
	if err != nil {
		if isAddrInUse(err) {
			return hinted(nil, &heldError{addr: at, holder: portHolder(at), err: err}, "have that program listen on other addresses, or take another port")
		}
		return fmt.Errorf("listening on %s: %w", at, err)
	}
	end := s.listen(n.services.ctx, ln, func(ctx context.Context, ln net.Listener) {
		if err := s.server.Serve(ctx, ln, at.Port(), false); err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
			n.log.Error("a port of what is served has ended", "at", at.String(), "err", err)
			s.mu.Lock()
			delete(s.listeners, at)
			s.mu.Unlock()
		}
	})
	s.mu.Lock()
	s.listeners[at] = end
	s.mu.Unlock()
	return nil
}

// listen has a listener served until end is called, which waits for that.
func (s *serving) listen(ctx context.Context, ln net.Listener, serve func(context.Context, net.Listener)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	s.ended.Go(func() {
		defer close(done)
		defer ln.Close()
		serve(ctx, ln)
	})
	return func() {
		cancel()
		<-done
	}
}

// serveTunnel is what the tailnet is reached by: this node's tunnel, or the link of another program's.
func (n *Node) serveTunnel(ctx context.Context) (*tunnel.Tunnel, error) {
	if t := n.carrier.tunnel; t != nil {
		return t, nil
	}
	s := &n.serving
	if n.cfg.Tunnel.Mode != string(tunnel.Off) {
		return nil, hinted(nil, errNoTunnel, "see: meshdns status")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnel != nil {
		return s.tunnel, nil
	}
	m, _ := n.tailnet.current()
	self, ok := m.Node(n.findSelf(m))
	if !ok {
		return nil, errNoSelf
	}
	t, err := tunnel.New(tunnel.Config{Mode: tunnel.Off, Addresses: self.Addresses, Ranges: m.Ranges(), Logger: n.log})
	if err == nil {
		err = t.Start(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.tunnel = t
	return t, nil
}

// ownAddresses are this node's on the tailnet.
func (n *Node) ownAddresses() []netip.Addr {
	m, _ := n.tailnet.current()
	self, _ := m.Node(n.findSelf(m))
	return self.Addresses
}
