package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	var lost error
	told := false
	for _, contact := range n.certGateways() {
		err := n.setAccount(ctx, contact, uri)
		var refused *control.RefusedError
		switch {
		case errors.As(err, &refused):
			return accountError(fmt.Errorf("gateway %s: %w", contact.label(), err))
		case err != nil:
			lost = fmt.Errorf("gateway %s: %w", contact.label(), err)
		default:
			told = true
		}
	}
	if told {
		return nil
	}
	return lost
}

// pendingTime is how long a gateway may take to have a node that has just joined.
const pendingTime = 30 * time.Second

// setAccount tells one gateway. One that is busy is asked again: a node that has just joined may still be pending there.
func (n *Node) setAccount(ctx context.Context, contact gatewayContact, uri string) error {
	for start := time.Now(); ; sleep(ctx, time.Second) {
		call, cancel := context.WithTimeout(ctx, gatewayCall)
		err := n.clientOf(contact).SetAccount(call, uri, false)
		cancel()
		var refused *control.RefusedError
		if !errors.As(err, &refused) || !refused.Busy() || ctx.Err() != nil || time.Since(start) > pendingTime {
			return err
		}
	}
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
	ctx, cancel := context.WithTimeout(ctx, gatewayCall)
	defer cancel()
	var place, retry int
	if g := n.gateway.server; g != nil {
		answer, err := g.Turn(ctx, n.findSelf(n.tailnet.given()), ca, names)
		if err != nil || answer.Granted {
			return err
		}
		place, retry = answer.Place, answer.Retry
	} else {
		all := n.certGateways()
		if len(all) == 0 {
			return nil
		}
		answer, err := n.clientOf(all[0]).Turn(ctx, ca, names)
		if err != nil {
			return fmt.Errorf("asking gateway %s for a turn: %w", all[0].label(), err)
		}
		if answer.Granted {
			return nil
		}
		place, retry = answer.Place, answer.Retry
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
		all := n.certGateways()
		if len(all) == 0 {
			return finding{}, false
		}
		a, err := n.clientOf(all[0]).TurnsLeft(ctx)
		if err != nil {
			return warn(what, "meshdns status", "gateway %s does not say how many are left: %v", all[0].label(), err), true
		}
		left, limit = a.Left, a.Limit
	}
	if left == 0 {
		return warn(what, "those that are ordered wait for their turn; gateway.pace has the limit", "none of this week's %d is left to the tailnet", limit), true
	}
	return fine(what, "%d of this week's %d are left to the tailnet; renewals are not counted", left, limit), true
}
