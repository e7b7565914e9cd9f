package resolver

import (
	"fmt"
	"net/netip"
)

// rebind is the checked form of Rebind.
type rebind struct {
	refuse  []netip.Prefix
	private bool
	allow   [][]byte
}

func newRebind(c Rebind) (rebind, error) {
	out := rebind{private: c.Private}
	for _, p := range c.Refuse {
		out.refuse = append(out.refuse, p.Masked())
	}
	for _, name := range c.Allow {
		wire, err := wireName(name)
		if err != nil {
			return rebind{}, fmt.Errorf("reading rebind exception %q: %w", name, err)
		}
		out.allow = append(out.allow, wire)
	}
	return out, nil
}

// SetRebind replaces the protection against rebinding, as when the tailnet's ranges change. What was cached of outside
// names is forgotten: it was judged by the rules before.
func (r *Resolver) SetRebind(c Rebind) error {
	rules, err := newRebind(c)
	if err != nil {
		return err
	}
	r.rebind.Store(&rules)
	for k := range r.generations {
		r.generations[k].Add(1)
	}
	return nil
}

// rebinds reports whether a response for an outside name holds an address that points inside, so that a page in
// a browser could reach the tailnet or this machine under its own name.
func (r *Resolver) rebinds(q *question, resp *response, msg []byte) (netip.Addr, bool) {
	rules := r.rebind.Load()
	for _, suffix := range rules.allow {
		if hasSuffix(q.name(), suffix) {
			return netip.Addr{}, false
		}
	}
	return resp.rebinds(msg, rules.refuse, rules.private)
}
