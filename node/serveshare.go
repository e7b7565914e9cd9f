package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
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

// pathServeShare makes a link that lets one browser in.
const pathServeShare = "/v1/serve/share"

// The times of a link where nothing else is said, and the longest.
const (
	shareTime = 24 * time.Hour
	maxShare  = 90 * 24 * time.Hour
)

// serveShare asks for a link to something that is served in the background. With a link nobody comes in without one, unless another
// way to log in is set.
type serveShare struct {
	serveOff

	Opens string        `json:"opens"` // a path, with all below if it ends in a slash; empty: all
	For   time.Duration `json:"for"`   // until the link ends, if nobody takes it; 0: a day
	Stay  time.Duration `json:"stay"`  // how long its taker stays in; 0: 12 h
}

// serveShareReply is a link, which is a secret.
type serveShareReply struct {
	Schema string    `json:"schema"` // meshdns.serve.share/v1
	ID     string    `json:"id"`
	Link   string    `json:"link"`
	Until  time.Time `json:"until"`
}

// Format prints nothing of the link.
func (r serveShareReply) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "(share link "+r.ID+")")
}

// serveShare makes a link.
func (n *Node) serveShare(r *http.Request, who caller) (any, error) {
	var in serveShare
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if !n.serving.ready.Load() {
		return nil, hinted(ErrTimeout, errStarting, "try again")
	}
	if in.For == 0 {
		in.For = shareTime
	}
	if in.For < time.Minute || in.For > maxShare {
		return nil, hinted(ErrBadRequest, fmt.Errorf("a link ends after a minute to %s, not %s", maxShare, in.For), "")
	}
	if in.Path == "" {
		in.Path = "/"
	}
	meant, err := n.isOver(in.serveOff)
	if err != nil {
		return nil, err
	}
	share, token := funnel.NewShare(time.Now().Add(in.For).UTC().Truncate(time.Second))
	share.Path, share.Lifetime = in.Opens, in.Stay
	link := ""
	err = n.changeKept("", func(kept []served) ([]served, error) {
		i := slices.IndexFunc(kept, func(s served) bool { s.from = fromCommand; return meant(s) && who.mayTouch(s) })
		if i < 0 {
			return nil, hinted(ErrNotFound, errors.New("nothing is served there in the background"), "serve it first, with --bg; see: meshdns serve status")
		}
		access := funnel.Access{}
		if kept[i].Access != nil {
			access = *kept[i].Access
		}
		access.Shares = append(slices.DeleteFunc(slices.Clone(access.Shares), isOldShare(n.serving.spent)), share)
		kept[i].Access = &access
		link = funnel.Entry{Name: kept[i].Name, Port: kept[i].Port}.ShareLink(kept[i].Path, token)
		return kept, nil
	}, nil)
	if err != nil {
		return nil, err
	}
	n.applyServed()
	return serveShareReply{"meshdns.serve.share/v1", share.ID, link, share.Until}, nil
}

// isOldShare tells which links are of no use any more. Those that were taken may have let somebody in who is there yet.
func isOldShare(spent map[string]time.Time) func(funnel.Share) bool {
	return func(s funnel.Share) bool {
		at, taken := spent[s.Hash]
		if !taken {
			return time.Now().After(s.Until)
		}
		return time.Since(at) > maxShare
	}
}

// ServeShare is a request for a link.
func (c Client) ServeShare() serveShare { return serveShare{} }

// ShareServed makes a link to something that is served in the background.
func (c Client) ShareServed(ctx context.Context, share serveShare) (serveShareReply, error) {
	return post[serveShareReply](ctx, c, pathServeShare, share)
}

// HashPassword is what rules on who may come keep of a password. It asks nobody.
func (c Client) HashPassword(password string) (string, error) { return funnel.HashPassword(password) }
