package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/certs"
	"github.com/meshdns/meshdns/node/control"
)

// The times of values for CAs.
const (
	textFirstRetry = 250 * time.Millisecond
	textLastRetry  = 5 * time.Second
	textSeen       = 10 * time.Second // in which a gateway that took a value has to serve it
	textUndo       = 10 * time.Second
	textCall       = 5 * time.Second  // that one call may take
	textPulse      = 4 * time.Second  // how often a gateway that serves values hears of this node
	textLife       = 10 * time.Minute // of a value
	// deafTime is how long a gateway is not spoken to that was not reached, before the CA is let to look: by then it says of this
	// node's values that it may lack some, and no longer that there are none.
	deafTime = 11 * time.Second
	maxDeaf  = 2 // calls in a row that are lost
)

// textGateway is a gateway that values for CAs are written to.
type textGateway struct {
	name   string
	set    func(ctx context.Context, name, value string) error
	clear  func(ctx context.Context, name, value string) error
	hear   func(ctx context.Context) error                          // has it know that this node is there and has told it everything
	values func(ctx context.Context, name string) ([]string, error) // as its public name server tells them
}

// gatewayTexts publishes values for CAs at every gateway of the tailnet.
type gatewayTexts struct {
	gateways func() []textGateway
	life     func() context.Context // of the node
	log      *slog.Logger

	mu   sync.Mutex
	deaf map[string]int // orders that go on without a gateway, by its name: meanwhile it is not spoken to
}

// SetTXT publishes a value, and returns once every gateway that this node reaches serves it: a CA asks any one of them. A
// gateway that is not reached stays silent by itself (see deafTime). name is in lower case, without a dot at its end.
func (g *gatewayTexts) SetTXT(ctx context.Context, name, value string) (undo func(context.Context) error, err error) {
	all := g.gateways()
	if len(all) == 0 {
		return nil, hinted(nil, errors.New("publishing a value for a CA: this node has joined no gateway"),
			"join one: meshdns join, or set another writer of DNS records")
	}
	began := time.Now()
	written, silent, lost, err := g.write(ctx, all, name, value)
	for _, one := range written {
		certs.Report(ctx, certs.Step{Stage: certs.Published, Name: name, Detail: "gateway " + one.name})
	}
	undo = g.undo(written, silent, name, value)
	if err == nil && len(silent) > 0 {
		sleep(ctx, time.Until(lost.Add(deafTime)))
		err = ctx.Err()
	}
	if err == nil && time.Since(began) > textPulse {
		// The first ones have waited for the others, and may be about to fall silent.
		forEach(written, func(_ int, one textGateway) { _ = one.hear(ctx) })
	}
	if err != nil {
		away, cancel := context.WithTimeout(context.WithoutCancel(ctx), textUndo)
		defer cancel()
		return nil, errors.Join(err, undo(away))
	}
	return undo, nil
}

// textResult is what came of writing to one gateway.
type textResult struct {
	gateway textGateway
	lost    time.Time // when it was last called in vain; zero: it serves the value, or refuses it
	err     error
}

// write writes to all gateways at once. silent are those that were not reached, the last of them when it was lost.
func (g *gatewayTexts) write(ctx context.Context, all []textGateway, name, value string) (written, silent []textGateway, lost time.Time, err error) {
	pause := textFirstRetry
	left := all
	for {
		var errs, losses []error
		var again []textGateway
		results := writeEach(ctx, left, name, value)
		for _, r := range results {
			switch {
			case r.err == nil:
				written = append(written, r.gateway)
			case r.lost.IsZero():
				errs = append(errs, fmt.Errorf("gateway %s: %w", r.gateway.name, r.err))
			default:
				losses = append(losses, fmt.Errorf("gateway %s: %w", r.gateway.name, r.err))
				again = append(again, r.gateway)
				lost = later(lost, r.lost)
			}
		}
		switch {
		case len(errs) > 0:
			return written, silent, lost, fmt.Errorf("publishing a value for a CA: %w", errors.Join(errs...))
		case len(again) == 0:
			return written, silent, lost, nil
		case len(written) > 0:
			for _, one := range again {
				g.log.Warn("a gateway is not reached; the CA is answered by the others", "gateway", one.name)
			}
			g.quiet(again, 1)
			return written, again, lost, nil
		}
		left = again
		sleep(ctx, pause)
		pause = min(2*pause, textLastRetry)
		if ctx.Err() != nil {
			return written, silent, lost, fmt.Errorf("publishing a value for a CA: %w", errors.Join(losses...))
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// writeEach writes to each, and waits for all.
func writeEach(ctx context.Context, all []textGateway, name, value string) []textResult {
	results := make([]textResult, len(all))
	forEach(all, func(i int, one textGateway) { results[i] = one.write(ctx, name, value) })
	return results
}

// forEach speaks to gateways at the same time, and waits for all.
func forEach(all []textGateway, do func(i int, one textGateway)) {
	var wait sync.WaitGroup
	for i, one := range all {
		wait.Go(func() { do(i, one) })
	}
	wait.Wait()
}

// write writes to one gateway. What may pass is waited for: the CA has not been asked to look yet, so nothing is lost.
func (t textGateway) write(ctx context.Context, name, value string) textResult {
	r := textResult{gateway: t}
	pause := textFirstRetry
	lost := 0
	for {
		r.err = t.call(ctx, name, value)
		if r.err == nil {
			r.err = t.await(ctx, name, value)
			return r
		}
		var refused *control.RefusedError
		switch {
		case errors.As(r.err, &refused) && !passes(refused.Status):
			return r
		case refused == nil:
			if lost++; lost >= maxDeaf || ctx.Err() != nil {
				r.lost = time.Now()
				return r
			}
		}
		sleep(ctx, pause-rand.N(pause/4))
		pause = min(2*pause, textLastRetry)
		if ctx.Err() != nil {
			return r
		}
	}
}

// call makes one call.
func (t textGateway) call(ctx context.Context, name, value string) error {
	ctx, cancel := context.WithTimeout(ctx, textCall)
	defer cancel()
	return t.set(ctx, name, value)
}

// passes reports whether a refusal may be another answer in a moment.
func passes(status int) bool {
	return status == http.StatusServiceUnavailable || status == http.StatusConflict || status == http.StatusTooManyRequests
}

// await waits until a gateway's public name server tells of a value.
func (t textGateway) await(ctx context.Context, name, value string) error {
	ctx, cancel := context.WithTimeout(ctx, textSeen)
	defer cancel()
	pause := textFirstRetry / 10
	for {
		values, err := t.values(ctx, name)
		if err == nil && slices.Contains(values, value) {
			return nil
		}
		sleep(ctx, pause)
		pause = min(2*pause, textLastRetry)
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("it took the value, and its name server does not tell of it (%d others at the name)", len(values)), err)
		}
	}
}

// quiet notes that gateways are not spoken to, or are again.
func (g *gatewayTexts) quiet(gateways []textGateway, by int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deaf == nil {
		g.deaf = map[string]int{}
	}
	for _, one := range gateways {
		g.deaf[one.name] += by
	}
}

// isQuiet reports whether a gateway is not to be spoken to.
func (g *gatewayTexts) isQuiet(name string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.deaf[name] > 0
}

// undo lets the gateways hear of this node until it is called, and then takes the value away.
func (g *gatewayTexts) undo(written, silent []textGateway, name, value string) func(context.Context) error {
	ctx, cancel := context.WithTimeout(g.life(), textLife)
	var wait sync.WaitGroup
	for _, one := range written {
		wait.Go(func() { one.pulse(ctx) })
	}
	once := sync.OnceFunc(func() {
		cancel()
		wait.Wait()
		g.quiet(silent, -1)
	})
	return func(ctx context.Context) error {
		once()
		var errs []error
		for _, one := range written {
			err := one.clear(ctx, name, value)
			for try := 1; err != nil && try < maxDeaf && ctx.Err() == nil; try++ {
				sleep(ctx, textFirstRetry)
				err = one.clear(ctx, name, value)
			}
			if err != nil {
				g.log.Warn("a value for a CA stays until it ends by itself", "gateway", one.name, "err", err)
				errs = append(errs, fmt.Errorf("gateway %s: %w", one.name, err))
			}
		}
		return errors.Join(errs...)
	}
}

// pulse lets a gateway hear of this node until ctx ends.
func (t textGateway) pulse(ctx context.Context) {
	for {
		sleep(ctx, textPulse)
		if ctx.Err() != nil {
			return
		}
		_ = t.hear(ctx) // one that does not hear says so to the CA
	}
}

// textGateways are the gateways of this node's tailnet, this node itself if it is one.
func (n *Node) textGateways() []textGateway {
	if n.gateway.server != nil {
		return []textGateway{n.ownTexts()}
	}
	m := &n.member
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keeps == nil || n.carrier.tunnel == nil {
		return nil
	}
	var list []textGateway
	for _, contact := range m.keeps.Gateways {
		list = append(list, n.textsOf(contact))
	}
	return list
}

// ownTexts is this gateway, for its own certificates.
func (n *Node) ownTexts() textGateway {
	g := &n.gateway
	self := n.findSelf(n.tailnet.given())
	return textGateway{
		name:  self,
		set:   func(ctx context.Context, name, value string) error { return g.server.PutText(ctx, self, name, value) },
		clear: func(ctx context.Context, name, value string) error { return g.server.DropText(ctx, self, name, value) },
		hear:  func(context.Context) error { g.server.Hear(self); return nil },
		values: func(_ context.Context, name string) ([]string, error) {
			query, err := textQuery(name).Pack()
			if err != nil {
				return nil, err
			}
			return textValues(n.queryPublic(query, netip.IPv4Unspecified(), true))
		},
	}
}

// textsOf is a gateway that this node has joined.
func (n *Node) textsOf(contact gatewayContact) textGateway {
	call := n.clientOf(contact)
	return textGateway{
		name:  contact.label(),
		set:   func(ctx context.Context, name, value string) error { return call.SetText(ctx, name, value, textLife) },
		clear: call.ClearText,
		hear:  func(ctx context.Context) error { _, err := call.Published(ctx); return err },
		values: func(ctx context.Context, name string) ([]string, error) {
			conn, err := n.carrier.tunnel.Dial(ctx, "tcp", netip.AddrPortFrom(contact.Server, portUpdates))
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			c := dns.Conn{Conn: conn}
			if err := c.WriteMsg(textQuery(name)); err != nil {
				return nil, err
			}
			reply, err := c.ReadMsgHeader(nil)
			if err != nil {
				return nil, err
			}
			return textValues(reply)
		},
	}
}

func textQuery(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name+".", dns.TypeTXT) }

// textValues are the values in an answer. One that fails says that there may be others.
func textValues(reply []byte) ([]string, error) {
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		return nil, fmt.Errorf("reading the name server's answer: %w", err)
	}
	var values []string
	for _, rr := range m.Answer {
		if t, ok := rr.(*dns.TXT); ok {
			values = append(values, strings.Join(t.Txt, ""))
		}
	}
	if m.Rcode == dns.RcodeServerFailure {
		return nil, errors.New("it says that it may not know all values")
	}
	return values, nil
}

// heardTexts lets a gateway hear of this node for as long as it holds values that a program on this node has written there.
type heardTexts struct {
	mu    sync.Mutex
	until time.Time
	wake  chan struct{}
}

// tell takes note until when a gateway wants to hear of this node.
func (h *heardTexts) tell(until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until = later(h.until, until)
	if limit := time.Now().Add(2 * textLife); h.until.After(limit) {
		h.until = limit // whatever the gateway says
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *heardTexts) wanted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.until)
}

// tendHeard lets the gateway whose stream this node holds hear of it while it wants to.
func (n *Node) tendHeard(ctx context.Context) error {
	h := &n.heard
	for ctx.Err() == nil {
		if !h.wanted() {
			select {
			case <-h.wake:
			case <-ctx.Done():
			}
			continue
		}
		n.member.mu.Lock()
		name := n.member.keeps.Gateways[0].label()
		n.member.mu.Unlock()
		if !n.texts.isQuiet(name) {
			if _, err := n.member.caller().Published(ctx); err != nil {
				n.log.Debug("the gateway has not heard of this node", "err", err)
			}
		}
		sleep(ctx, textPulse)
	}
	return nil
}
