package node

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/meshdns/meshdns/funnel"
)

// maxSpent bounds how many share links are remembered as taken. The oldest are forgotten first: links end, too.
const maxSpent = 10000

// spendShare writes down that a link was taken, so that it is not taken again after a restart.
func (n *Node) spendShare(_ context.Context, _ string, share funnel.Share) error {
	s := &n.serving
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	next := maps.Clone(s.spent)
	if next == nil {
		next = map[string]time.Time{}
	}
	next[share.Hash] = share.Spent.UTC().Truncate(time.Second)
	if len(next) > maxSpent {
		old := slices.MinFunc(slices.Collect(maps.Keys(next)), func(a, b string) int { return next[a].Compare(next[b]) })
		delete(next, old)
	}
	if err := saveServed(n.opt.Paths.State, servedText{Entries: s.kept, Spent: next}); err != nil {
		return err
	}
	s.spent = next
	return nil
}

// withSpent are rules whose links say whether they were taken.
func (s *serving) withSpent(a *funnel.Access) *funnel.Access {
	if a == nil || len(a.Shares) == 0 || len(s.spent) == 0 {
		return a
	}
	b := *a
	b.Shares = slices.Clone(a.Shares)
	for i := range b.Shares {
		if at, ok := s.spent[b.Shares[i].Hash]; ok && b.Shares[i].Spent.IsZero() {
			b.Shares[i].Spent = at
		}
	}
	return &b
}
