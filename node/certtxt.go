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
	textPatience   = 2 * time.Second  // with a gateway that does not answer, where another one does
	textSeen       = 10 * time.Second // in which a gateway that took a value has to serve it
	textUndo       = 10 * time.Second
	textCall       = 8 * time.Second  // that one call may take
	textPulse      = 4 * time.Second  // how often a gateway that serves values hears of this node
	textLife       = 10 * time.Minute // of a value
	maxClears      = 2                // calls in a row that are lost
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
	place    func(ctx context.Context, name string) (string, error) // where the value of a name has to stand
	life     func() context.Context                                 // of the node
	log      *slog.Logger
	ears     ears
}

// SetTXT publishes a value, and returns once every gateway that this node reaches serves it: a CA asks any one of them. A
// gateway that is not reached is silent by itself (see ears). name is in lower case, without a dot at its end.
func (g *gatewayTexts) SetTXT(ctx context.Context, name, value string) (undo func(context.Context) error, err error) {
	all := g.gateways()
	if len(all) == 0 {
		return nil, hinted(nil, errors.New("publishing a value for a CA: this node has joined no gateway"),
			"join one: meshdns join, or set another writer of DNS records")
	}
	if name, err = g.place(ctx, name); err != nil {
		return nil, fmt.Errorf("publishing a value for a CA: %w", err)
	}
	began := time.Now()
	written, silent, err := g.write(ctx, all, name, value)
	for _, one := range written {
		certs.Report(ctx, certs.Step{Stage: certs.Published, Name: name, Detail: "gateway " + one.name})
	}
	undo = g.undo(written, silent, name, value)
	if err == nil {
		err = g.ears.outlast(ctx, silent)
	}
	if err == nil && time.Since(began) > textPulse {
		// The first ones have waited for the others, and may be about to fall silent.
		forEach(written, func(_ int, one textGateway) { g.tell(ctx, one) })
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
	lost    bool // it does not answer; else it serves the value, or refuses it
	err     error
}

// write writes to all gateways at once. silent are those that do not answer, which are not spoken to until undo.
func (g *gatewayTexts) write(ctx context.Context, all []textGateway, name, value string) (written, silent []textGateway, err error) {
	left := slices.DeleteFunc(slices.Clone(all), func(one textGateway) bool { return g.ears.quiet(one.name) })
	if len(left) == 0 {
		left = all
	}
	patience := textPatience
	for pause := textFirstRetry; ; pause = min(2*pause, textLastRetry) {
		var errs, losses []error
		var again []textGateway
		for _, r := range writeEach(ctx, left, patience, name, value) {
			err := fmt.Errorf("gateway %s: %w", r.gateway.name, r.err)
			switch {
			case r.err == nil:
				written = append(written, r.gateway)
			case r.lost:
				losses, again = append(losses, err), append(again, r.gateway)
			default:
				errs = append(errs, err)
			}
		}
		switch {
		case len(errs) > 0:
			return written, nil, fmt.Errorf("publishing a value for a CA: %w", errors.Join(errs...))
		case len(written) > 0:
			for _, one := range again {
				g.log.Warn("a gateway does not answer; the CA is answered by the others", "gateway", one.name)
			}
			silent = slices.DeleteFunc(slices.Clone(all), func(one textGateway) bool {
				return slices.ContainsFunc(written, func(w textGateway) bool { return w.name == one.name })
			})
			g.ears.silence(silent)
			return written, silent, nil
		}
		left = again
		sleep(ctx, pause)
		if ctx.Err() != nil {
			return written, nil, fmt.Errorf("publishing a value for a CA: %w", errors.Join(losses...))
		}
		patience = min(2*patience, textCall)
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// writeEach writes to each, and waits for all.
func writeEach(ctx context.Context, all []textGateway, patience time.Duration, name, value string) []textResult {
	results := make([]textResult, len(all))
	forEach(all, func(i int, one textGateway) {
		results[i].gateway = one
		results[i].lost, results[i].err = one.write(ctx, patience, name, value)
	})
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

// write writes to one gateway. A refusal that may pass is waited for: the CA has not been asked to look yet, so nothing is
// lost. A gateway that does not answer is not waited for longer than patience.
func (t textGateway) write(ctx context.Context, patience time.Duration, name, value string) (lost bool, err error) {
	until := time.Now().Add(patience)
	for pause := textFirstRetry; ; pause = min(2*pause, textLastRetry) {
		call, cancel := context.WithDeadline(ctx, until)
		err = t.set(call, name, value)
		cancel()
		if err == nil {
			return t.await(ctx, patience, name, value)
		}
		pause := pause - rand.N(pause/4)
		var refused *control.RefusedError
		switch {
		case errors.As(err, &refused) && !passes(refused.Status):
			return false, err
		case refused != nil:
			until = time.Now().Add(pause + patience) // it is there
		case ctx.Err() != nil, time.Now().Add(pause).After(until):
			return true, err
		}
		if sleep(ctx, pause); ctx.Err() != nil {
			return refused == nil, err
		}
	}
}

// passes reports whether a refusal may be another answer in a moment.
func passes(status int) bool {
	return status == http.StatusServiceUnavailable || status == http.StatusConflict || status == http.StatusTooManyRequests
}

// await waits until a gateway's public name server tells of a value. lost says that it does not answer.
func (t textGateway) await(ctx context.Context, patience time.Duration, name, value string) (lost bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, textSeen)
	defer cancel()
	patient := time.Now().Add(patience)
	answered := false
	for pause := textFirstRetry / 10; ; pause = min(2*pause, textLastRetry) {
		until := patient
		if answered {
			until = time.Now().Add(patience)
		}
		one, cancel := context.WithDeadline(ctx, until)
		values, err := t.values(one, name)
		cancel()
		if err == nil && slices.Contains(values, value) {
			return false, nil
		}
		answered = answered || err == nil || errors.Is(err, errUnsure)
		if !answered && time.Now().Add(pause).After(patient) {
			return true, fmt.Errorf("it took the value, and its name server does not answer: %w", err)
		}
		if sleep(ctx, pause); ctx.Err() != nil {
			return false, errors.Join(fmt.Errorf("it took the value, and its name server does not tell of it (%d others at the name)", len(values)), err)
		}
	}
}

// undo lets the gateways hear of this node until it is called, and then takes the value away.
func (g *gatewayTexts) undo(written, silent []textGateway, name, value string) func(context.Context) error {
	ctx, cancel := context.WithTimeout(g.life(), textLife)
	var wait sync.WaitGroup
	for _, one := range written {
		wait.Go(func() { g.pulse(ctx, one) })
	}
	once := sync.OnceFunc(func() {
		cancel()
		wait.Wait()
		g.ears.release(silent)
	})
	return func(ctx context.Context) error {
		once()
		var errs []error
		for _, one := range written {
			if err := g.clear(ctx, one, name, value); err != nil {
				g.log.Warn("a value for a CA stays until it ends by itself", "gateway", one.name, "err", err)
				errs = append(errs, fmt.Errorf("gateway %s: %w", one.name, err))
			}
		}
		return errors.Join(errs...)
	}
}

// clear takes a value away, unless the gateway must not hear of this node.
func (g *gatewayTexts) clear(ctx context.Context, one textGateway, name, value string) error {
	if g.ears.quiet(one.name) {
		return errQuiet
	}
	err := one.clear(ctx, name, value)
	for try := 1; err != nil && try < maxClears && ctx.Err() == nil; try++ {
		sleep(ctx, textFirstRetry)
		err = one.clear(ctx, name, value)
	}
	return err
}

// pulse lets a gateway hear of this node until ctx ends.
func (g *gatewayTexts) pulse(ctx context.Context, one textGateway) {
	for {
		sleep(ctx, textPulse)
		if ctx.Err() != nil {
			return
		}
		g.tell(ctx, one)
	}
}

// tell lets a gateway hear of this node. One that does not hear says so to the CA.
func (g *gatewayTexts) tell(ctx context.Context, one textGateway) {
	if g.ears.quiet(one.name) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, textCall)
	defer cancel()
	_ = one.hear(ctx)
}

// challengeLabel begins the names that CAs look values up at.
const challengeLabel = "_acme-challenge."

// textPlace is where a value has to stand that a CA looks for at name: there, or for a name that is not this node's where the
// CNAMEs at it lead, since gateways take values for a node's own names and nothing else.
func (n *Node) textPlace(ctx context.Context, name string) (string, error) {
	m, _ := n.tailnet.current()
	if m.owns(n.findSelf(m), strings.TrimPrefix(name, challengeLabel)) {
		return name, nil
	}
	inZone := func(name string) bool { return strings.HasSuffix(name, "."+m.zone) }
	at, err := certs.Lookup{Resolvers: n.publicResolvers}.Target(ctx, name)
	switch {
	case err == nil && inZone(at):
		return at, nil
	case inZone(name):
		return name, nil // which the gateway refuses, and says why
	case err != nil:
		return "", fmt.Errorf("%s is no name of this tailnet, and where it leads is not known: %w", name, err)
	case at != name:
		err = fmt.Errorf("%s leads to %s, which is no name of this tailnet", name, at)
	default:
		err = fmt.Errorf("%s is no name of this tailnet, and leads to none", name)
	}
	own := "NAME." + m.zone
	if self := n.findSelf(m); self != "" {
		own = m.FQDN(self)
	}
	return "", hinted(nil, err, "have its owner add: "+name+". CNAME "+challengeLabel+own+".")
}

// owns reports whether a name is one of a node's, or one label below one.
func (m *Map) owns(node, name string) bool {
	machine, ok := m.Node(node)
	if node == "" || !ok {
		return false
	}
	_, parent, _ := strings.Cut(name, ".")
	for _, own := range append([]string{machine.Name}, machine.Names...) {
		if full := m.FQDN(own); name == full || parent == full {
			return true
		}
	}
	return false
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
	call.Dial = n.texts.ears.listening(contact.label(), call.Dial)
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

// errUnsure is a gateway's answer that it has not heard of the node for a while.
var errUnsure = errors.New("it says that it may not know all values")

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
		return nil, errUnsure
	}
	return values, nil
}
