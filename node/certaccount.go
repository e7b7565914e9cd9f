package node

import (
	"context"
	"errors"
	"fmt"
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
	return append([]gatewayContact(nil), m.keeps.Gateways...)
}

// tellAccount has the gateways name the account that orders are placed with in their CAA records. A gateway that is not
// reached does not stop the order as long as another one is: the CA decides.
func (n *Node) tellAccount(ctx context.Context, uri string) error {
	if n.gateway.server != nil {
		return accountError(n.gateway.server.PutAccount(ctx, n.findSelf(n.tailnet.static), uri))
	}
	var lost error
	told := false
	for _, contact := range n.certGateways() {
		call, cancel := context.WithTimeout(ctx, gatewayCall)
		err := n.clientOf(contact).SetAccount(call, uri, false)
		cancel()
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

// accountError says what to do about a CA that a gateway does not know.
func accountError(err error) error {
	if err == nil {
		return nil
	}
	return hinted(nil, err, "name the CA on the gateway: gateway.issuers: [HOST=NAME]")
}

// awaitTurn asks a gateway whether a first certificate may be ordered: all nodes share what the CA lets their domain have.
func (n *Node) awaitTurn(ctx context.Context, ca string, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, gatewayCall)
	defer cancel()
	var place, retry int
	if g := n.gateway.server; g != nil {
		answer, err := g.Turn(ctx, n.findSelf(n.tailnet.static), ca, names)
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
