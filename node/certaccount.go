package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/meshdns/meshdns/certs"
	"github.com/meshdns/meshdns/node/control"
)

// gatewayCall is how long one call about a certificate may take.
const gatewayCall = 10 * time.Second

// certGateways are the gateways that this node has joined.
func (n *Node) certGateways() []gatewayContact {
	m := &n.member
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keeps == nil || n.carrier.tunnel == nil {
		return nil
	}
	return slices.Clone(m.keeps.Gateways)
}

// tellAccount has the gateways name the account that orders are placed with in their CAA records. A gateway that is not
// reached does not stop the order as long as another one is: the CA decides.
func (n *Node) tellAccount(ctx context.Context, uri string) error {
	if n.gateway.server != nil {
		return accountError(n.gateway.server.PutAccount(ctx, n.findSelf(n.tailnet.given()), uri))
	}
	all := n.certGateways()
	for _, patience := range callPatience() {
		errs := make([]error, len(all))
		var wait sync.WaitGroup
		for i, contact := range all {
			wait.Go(func() { errs[i] = n.setAccount(ctx, contact, uri, patience) })
		}
		wait.Wait()
		told, err := judgeCalls(all, errs)
		if told || err == nil || isRefusal(err) || ctx.Err() != nil || patience == gatewayCall {
			return accountError(err)
		}
	}
	return nil
}

// callPatience is how long gateways may take for a call about a certificate: first as long as one of them takes where there
// are others, then as long as it may.
func callPatience() []time.Duration { return []time.Duration{textPatience, gatewayCall} }

// isRefusal reports whether a gateway has answered with a refusal.
func isRefusal(err error) bool {
	var refused *control.RefusedError
	return errors.As(err, &refused)
}

// judgeCalls says what became of a call to each gateway: a refusal counts, and one that does not answer only if all do not.
func judgeCalls(all []gatewayContact, errs []error) (told bool, err error) {
	var lost error
	for i, err := range errs {
		switch {
		case err == nil:
			told = true
		case isRefusal(err):
			return false, fmt.Errorf("gateway %s: %w", all[i].label(), err)
		default:
			lost = fmt.Errorf("gateway %s: %w", all[i].label(), err)
		}
	}
	if told {
		lost = nil
	}
	return told, lost
}

// pendingTime is how long a gateway may take to have a node that has just joined.
const pendingTime = 30 * time.Second

// setAccount tells one gateway. One that is busy is asked again: a node that has just joined may still be pending there.
func (n *Node) setAccount(ctx context.Context, contact gatewayContact, uri string, patience time.Duration) error {
	for start := time.Now(); ; sleep(ctx, time.Second) {
		call, cancel := context.WithTimeout(ctx, patience)
		err := n.clientOf(contact).SetAccount(call, uri, false)
		cancel()
		var refused *control.RefusedError
		if !errors.As(err, &refused) || !refused.Busy() || ctx.Err() != nil || time.Since(start) > pendingTime {
			return err
		}
	}
}

// askFirst asks gateways one after the other until one answers. It returns which one that was.
func (n *Node) askFirst(ctx context.Context, ask func(context.Context, *control.Client) error) (asked string, err error) {
	all := n.certGateways()
	for _, patience := range callPatience() {
		for _, contact := range all {
			call, cancel := context.WithTimeout(ctx, patience)
			err = ask(call, n.clientOf(contact))
			cancel()
			if asked = contact.label(); err == nil || isRefusal(err) {
				return asked, err
			}
		}
	}
	return asked, err
}

// accountError says what to do about a CA that a gateway does not know.
func accountError(err error) error {
	var refused *control.RefusedError
	if err == nil || errors.As(err, &refused) && refused.Busy() {
		return err
	}
	return hinted(nil, err, "name the CA on the gateway: gateway.issuers: [HOST=NAME]")
}

// awaitTurn asks a gateway whether a first certificate may be ordered: all nodes share what the CA lets their domain have.
func (n *Node) awaitTurn(ctx context.Context, ca string, names []string) error {
	var place, retry int
	if g := n.gateway.server; g != nil {
		answer, err := g.Turn(ctx, n.findSelf(n.tailnet.given()), ca, names)
		if err != nil || answer.Granted {
			return err
		}
		place, retry = answer.Place, answer.Retry
	} else {
		granted := true
		asked, err := n.askFirst(ctx, func(ctx context.Context, client *control.Client) error {
			answer, err := client.Turn(ctx, ca, names)
			granted, place, retry = answer.Granted, answer.Place, answer.Retry
			return err
		})
		if err != nil {
			return fmt.Errorf("asking gateway %s for a turn: %w", asked, err)
		}
		if granted {
			return nil
		}
	}
	return &certs.LaterError{
		Until: time.Now().Add(time.Duration(retry) * time.Second),
		Err:   fmt.Errorf("the tailnet has had its first certificates of this week; this one is number %d in the queue", place),
	}
}

// turnsLeft says how many first certificates all nodes together may order yet this week; nothing where no gateway counts.
func (n *Node) turnsLeft(ctx context.Context) (finding, bool) {
	const what = "first certificates"
	ctx, cancel := context.WithTimeout(ctx, gatewayCall)
	defer cancel()
	var left, limit int
	if g := n.gateway.server; g != nil {
		a := g.TurnsLeft()
		left, limit = a.Left, a.Limit
	} else {
		asked, err := n.askFirst(ctx, func(ctx context.Context, client *control.Client) error {
			a, err := client.TurnsLeft(ctx)
			left, limit = a.Left, a.Limit
			return err
		})
		switch {
		case asked == "":
			return finding{}, false
		case err != nil:
			return warn(what, "meshdns status", "gateway %s does not say how many are left: %v", asked, err), true
		}
	}
	if left == 0 {
		return warn(what, "those that are ordered wait for their turn; gateway.pace has the limit", "none of this week's %d is left to the tailnet", limit), true
	}
	return fine(what, "%d of this week's %d are left to the tailnet; renewals are not counted", left, limit), true
}
