package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// group runs the parts of a node that live as long as it does.
type group struct {
	ctx    context.Context // ends when the parts have to
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error // the first part that ended by itself

	mu    sync.Mutex
	parts map[string]int // that run, by name
}

func newGroup() *group {
	g := &group{failed: make(chan error, 1), parts: map[string]int{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// run starts a part. A part that ends before it has to, with or without an error, is a failure of the node.
func (g *group) run(name string, part func(ctx context.Context) error) {
	g.count(name, 1)
	g.wg.Go(func() {
		defer g.count(name, -1)
		err := part(g.ctx)
		if g.ctx.Err() != nil && err == nil {
			return
		}
		select {
		case g.failed <- fmt.Errorf("running the %s: %w", name, orEnded(err)):
		default:
		}
	})
}

func orEnded(err error) error {
	if err == nil {
		return errEnded
	}
	return err
}

func (g *group) count(name string, by int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.parts[name] += by; g.parts[name] == 0 {
		delete(g.parts, name)
	}
}

// sayTime is how much sooner a wait ends than who waits for it gives up, so that what it was for can be said.
const sayTime = 50 * time.Millisecond

// stop ends the parts and waits for them until ctx ends. Its error names those that have not ended.
func (g *group) stop(ctx context.Context) error {
	g.cancel()
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-sayTime))
		defer cancel()
	}
	err := orAbandon(ctx, func() error {
		g.wg.Wait()
		return nil
	})
	if err == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return fmt.Errorf("%w: still running: %s", err, strings.Join(slices.Sorted(maps.Keys(g.parts)), ", "))
}
