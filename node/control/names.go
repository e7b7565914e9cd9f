package control

import (
	"context"
	"net/http"
	"slices"
	"time"
)

// SetNames gives a node service names, instead of those that it had. One that it gives up is anybody's, but for a while that in
// which a certificate for it may be in use.
func (r *Registry) SetNames(ctx context.Context, node string, names []string) error {
	if len(names) > maxServiceNames {
		return refuse(http.StatusBadRequest, codeFull, "more than %d service names", maxServiceNames)
	}
	names = slices.Clone(names)
	for i := range names {
		names[i] = foldName(names[i])
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return r.changeNode(ctx, node, func(n *nodeRecord) ([]change, error) {
		if slices.Equal(names, n.Node.Names) {
			return nil, nil
		}
		if n.Pending {
			return nil, refuse(http.StatusConflict, codeBusy, "%s has not finished joining", node)
		}
		if len(r.cfg.Lock) > 0 || n.Node.Signature != nil {
			return nil, refuse(http.StatusForbidden, codeLocked, "names are what the owner has signed of %s, and cannot be changed", node)
		}
		fresh := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(n.Node.Names, name) })
		for _, name := range fresh {
			if g := r.gone[name]; g != nil && g.By == node {
				continue // it comes back to what was its own
			}
			if err := r.freeNameLocked(name, nil); err != nil {
				return nil, err
			}
		}
		if err := r.cfg.MayHave(n.Node, names); err != nil {
			return nil, refuse(http.StatusForbidden, codeNotYours, "%v", err)
		}
		given := 0
		for _, g := range r.gone {
			if g.By == node {
				given++
			}
		}
		if given >= maxGivenUp && len(fresh) > 0 {
			return nil, refuse(http.StatusTooManyRequests, codeFull, "%s has given up %d names, which rest", node, given)
		}
		next := *n
		next.Node.Names = names
		pairs := []any{nodeKey + node, next}
		for _, name := range n.Node.Names {
			if !slices.Contains(names, name) {
				pairs = append(pairs, goneKey+name, goneRecord{Name: name, Reserved: r.cfg.Now().Add(nameRest).UTC(), By: node})
			}
		}
		return r.puts(pairs...)
	})
}

const (
	// nameRest is how long a service name that a node has given up stays nobody else's: it may have a certificate for it.
	nameRest   = 90 * 24 * time.Hour
	maxGivenUp = 256 // names that rest because of one node
)
