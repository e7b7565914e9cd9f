package node

import (
	"context"
	"fmt"
	"sync"
)

// group runs the parts of a node that live as long as it does.
type group struct {
	ctx    context.Context // ends when the parts have to
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error // the first part that ended by itself
}

func newGroup() *group {
	g := &group{failed: make(chan error, 1)}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// run starts a part. A part that ends before it has to, with or without an error, is a failure of the node.
func (g *group) run(name string, part func(ctx context.Context) error) {
	g.wg.Go(func() {
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

// stop ends the parts and waits for them until ctx ends.
func (g *group) stop(ctx context.Context) error {
	g.cancel()
	return orAbandon(ctx, func() error {
		g.wg.Wait()
		return nil
	})
}
