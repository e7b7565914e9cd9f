package resolver

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
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
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if !p.IsValid() {
			return rebind{}, fmt.Errorf("reading range %s: not a range of addresses", p)
		}
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

func (b *rebind) equal(o *rebind) bool {
	return b.private == o.private && slices.Equal(b.refuse, o.refuse) && slices.EqualFunc(b.allow, o.allow, bytes.Equal)
}

// SetRebind replaces the protection against rebinding, as when the tailnet's ranges change. What was cached under other
// rules is forgotten.
func (r *Resolver) SetRebind(c Rebind) error {
	rules, err := newRebind(c)
	if err != nil {
		return err
	}
	if old := r.rebind.Swap(&rules); old == nil || !old.equal(&rules) {
		r.forgetAll()
	}
	return nil
}

// rebinds reports whether a response for an outside name holds an address that points inside, so that a page in
// a browser could reach the tailnet or this machine under its own name. The domains that the network itself named, such
// as home.arpa, are full of private addresses and may be.
func (r *Resolver) rebinds(q *question, k kind, resp *response, msg []byte) (netip.Addr, bool) {
	if k == kindExplicit {
		return netip.Addr{}, false
	}
	rules := r.rebind.Load()
	for _, suffix := range rules.allow {
		if hasSuffix(q.name(), suffix) {
			return netip.Addr{}, false
		}
	}
	return resp.rebinds(msg, rules.refuse, rules.private && k == kindBase)
}
