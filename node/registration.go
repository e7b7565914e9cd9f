package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// registration keeps what this node shows to the world registered with its gateway, whatever ends meanwhile: the gateway, the
// stream, this node's name. Whoever has something to show only says so.
type registration struct {
	wake chan struct{}

	mu      sync.Mutex
	wanted  []control.Funnel
	told    []control.Funnel // what the gateway says of them
	why     error            // why it was not told of them; nil: it was
	wish    uint64           // counts what is wanted
	known   uint64           // the wish that the gateway knows, or has refused
	given   bool             // it was ever told of any
	changed chan struct{}    // closed when one of these is another one
}

// The pauses between tries.
const (
	firstRegistration = 100 * time.Millisecond
	lastRegistration  = 3 * time.Second
)

func newRegistration() *registration {
	return &registration{wake: make(chan struct{}, 1), changed: make(chan struct{})}
}

// set says all that this node wants to show from now on.
func (r *registration) set(list []control.Funnel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.EqualFunc(list, r.wanted, control.Funnel.Same) {
		return
	}
	r.wanted = slices.Clone(list)
	r.wish++
	r.changedLocked()
	r.again()
}

// again has the gateway told once more: it may have forgotten.
func (r *registration) again() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *registration) changedLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// state is what the gateway says of what is shown, and a channel that is closed when that is another thing. settled: it is about
// what was set last. Then err is why nothing is shown at all.
func (r *registration) state() (list []control.Funnel, settled bool, changed <-chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.told), r.known == r.wish, r.changed, r.why
}

// wishes are what the gateway has to be told; pending: it was never told of any, and need not be now.
func (r *registration) wishes() (list []control.Funnel, wish uint64, needless bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wanted, r.wish, len(r.wanted) == 0 && !r.given
}

// took notes what came of telling the gateway of a wish. again: it has to be told once more.
func (r *registration) took(wish uint64, told []control.Funnel, err error) (again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var refused *control.RefusedError
	final := err == nil || errors.As(err, &refused) && !refused.Busy()
	if err == nil {
		r.told, r.given = told, true
	}
	if final {
		r.known = wish
	}
	r.why = err
	r.changedLocked()
	return !final
}

// hears takes what the gateway says by itself: a domain points elsewhere, the policy is another one.
func (r *registration) hears(list []control.Funnel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(list) != len(r.wanted) {
		return // of an older wish
	}
	r.told = list
	r.changedLocked()
}

// tendRegistration tells the gateway, until ctx ends. A stream that is opened again wakes it.
func (n *Node) tendRegistration(ctx context.Context) error {
	r := n.registration
	pause := firstRegistration
	for {
		again := false
		if list, wish, needless := r.wishes(); !needless {
			told, err := n.register(ctx, list)
			if again = r.took(wish, told, err); err != nil {
				n.log.Debug("what is shown to the world is not registered", "err", err, "again", again)
			}
		}
		after := time.Hour
		if again {
			after, pause = pause, min(2*pause, lastRegistration)
		} else {
			pause = firstRegistration
		}
		timer := time.NewTimer(after)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// errNoGateway says that there is nobody who could show anything to the world.
var errNoGateway = errors.New("this machine has joined no gateway, and is none")

// hintGateway is how to get one.
const hintGateway = "make a gateway on a machine with a public address: meshdns gateway init; then here: meshdns join"

// register tells the gateway, which may be this machine.
func (n *Node) register(ctx context.Context, list []control.Funnel) ([]control.Funnel, error) {
	call, err := n.funnelCaller()
	if err != nil {
		return nil, err
	}
	return call.SetFunnels(ctx, list)
}

// tryFromOutside has the gateway go a visitor's way to something that this node shows.
func (n *Node) tryFromOutside(ctx context.Context, f control.Funnel) (control.Funnel, error) {
	call, err := n.funnelCaller()
	if err != nil {
		return f, err
	}
	return call.TryFunnel(ctx, f)
}

// takeServiceNames has this node have these service names in the tailnet, and none else.
func (n *Node) takeServiceNames(ctx context.Context, names []string) error {
	call, err := n.funnelCaller()
	if err != nil {
		return err
	}
	return call.SetNames(ctx, names)
}

// visitKeys are those by which a gateway's word for a visitor is known (S14).
func (n *Node) visitKeys() [][]byte {
	call, err := n.funnelCaller()
	if err != nil {
		return nil
	}
	return call.VisitKeys()
}

// funnelCaller is how the gateway is spoken to about what this node shows.
type funnelCaller interface {
	SetFunnels(ctx context.Context, list []control.Funnel) ([]control.Funnel, error)
	TryFunnel(ctx context.Context, f control.Funnel) (control.Funnel, error)
	SetNames(ctx context.Context, names []string) error
	VisitKeys() [][]byte
}

func (n *Node) funnelCaller() (funnelCaller, error) {
	if n.gateway.server != nil {
		return ownFunnels{n, n.findSelf(n.tailnet.given())}, nil
	}
	if call := n.member.caller(); call != nil {
		return call, nil
	}
	return nil, hinted(nil, errNoGateway, hintGateway)
}

// ownFunnels is the gateway, that shows something itself.
type ownFunnels struct {
	n    *Node
	self string
}

// SetFunnels says what this gateway shows.
func (o ownFunnels) SetFunnels(ctx context.Context, list []control.Funnel) ([]control.Funnel, error) {
	return o.n.registerFunnels(ctx, o.self, list)
}

// TryFunnel goes a visitor's way.
func (o ownFunnels) TryFunnel(ctx context.Context, f control.Funnel) (control.Funnel, error) {
	return o.n.tryFunnel(ctx, o.self, f)
}

// SetNames gives this gateway service names.
func (o ownFunnels) SetNames(ctx context.Context, names []string) error {
	return o.n.gateway.registry.SetNames(ctx, o.self, names)
}

// VisitKeys is the key of visits to this machine itself.
func (o ownFunnels) VisitKeys() [][]byte { return [][]byte{o.n.gateway.funnels.self} }
