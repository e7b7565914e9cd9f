package control

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// Fifty nodes join at the same time, and each is told of all of them, of a new name and of a removal; the gateway knows that.
func TestACrowdHasOneMap(t *testing.T) {
	const crowd = 50
	r := newRig(t)
	r.serve()
	var mu sync.Mutex
	have := map[string]*Map{}
	errs := make(chan error, 2*crowd)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for i := range crowd {
		name := fmt.Sprintf("n%d", i)
		invite, key, wireguard := r.invite(InviteOptions{Name: name}), newPrivateKey(t), newPair(t)
		running.Go(func() {
			answer, err := r.client(invite.Address, key).Join(ctx, JoinRequest{Key: wireguard})
			if err == nil {
				_, err = r.registry.Handshaken(ctx, wireguard)
			}
			if err != nil {
				errs <- fmt.Errorf("%s joins: %w", name, err)
				return
			}
			c, m := r.client(answer.Node.Addresses[0], key), &answer.Map
			err = c.Stream(ctx, m, func(e Event) error {
				next, err := e.Newer(m)
				if err != nil {
					errs <- fmt.Errorf("%s is told: %w", name, err)
					return err
				}
				m = next
				mu.Lock()
				have[name] = m
				mu.Unlock()
				return c.Report(ctx, Report{Epoch: m.Epoch, Version: m.Version})
			})
			if ctx.Err() == nil && name != "n7" {
				errs <- fmt.Errorf("%s's stream: %w", name, err)
			}
		})
	}
	all := func(what string, count int, but string) {
		t.Helper()
		until(t, what, func() bool {
			select {
			case err := <-errs:
				t.Fatal(err)
			default:
			}
			m, _ := r.registry.Map()
			for _, s := range r.registry.Nodes() {
				if s.Pending || s.Invited || s.Name != "edge" && s.Version != m.Version {
					return false
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for i := range crowd {
				if name := fmt.Sprintf("n%d", i); name != but && (have[name] == nil || mapNames(have[name]) != mapNames(m)) {
					return false
				}
			}
			return len(m.Nodes) == count
		})
	}
	all("all to know all", crowd+1, "")
	if err := r.registry.Rename(t.Context(), "n3", "renamed", time.Time{}); err != nil {
		t.Fatal(err)
	}
	all("all to know the new name", crowd+1, "")
	if _, err := r.registry.Remove(t.Context(), "n7", time.Time{}); err != nil {
		t.Fatal(err)
	}
	all("all to know of the removal", crowd, "n7")
}
