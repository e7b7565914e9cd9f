package control

import (
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/idna"
)

// The bounds of what nodes publish for CAs.
const (
	leaseTime     = 10 * time.Minute // of a value, where nothing else is asked for
	maxLeaseTime  = 15 * time.Minute
	maxTextsName  = 8
	maxTextsNode  = 32
	maxPuts       = 30               // values that a node may write in a minute
	hearTime      = 10 * time.Second // for how long after a call a gateway holds that it has all of a node's values
	maxTextChange = 16               // in one call
)

// challengePrefix begins the names that CAs look values up at (RFC 8555, section 8.4).
const challengePrefix = "_acme-challenge."

// textLease is a TXT value that a node publishes for a while.
type textLease struct {
	Name    string    `json:"name"` // lower-case, no dot at its end
	Value   string    `json:"value"`
	Since   time.Time `json:"since"`
	Expires time.Time `json:"expires"`
	By      string    `json:"by,omitempty"` // the credential that it was written with; empty: the node's control key
}

// textChange is one step of a change: Value at Name is added, or goes.
type textChange struct {
	Name  string
	Value string // empty: every value that the same writer has there goes
	Drop  bool
	Lease time.Duration // zero: leaseTime
	Roll  bool          // where the name is full the writer's oldest value there makes room, as clients of acme-dns expect
}

// foldName is a name as it is kept: lower-case, no dot at its end.
func foldName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// ownNames are a node's names, in full.
func ownNames(zone string, n Node) []string {
	names := []string{n.Name + "." + zone}
	for _, name := range n.Names {
		names = append(names, name+"."+zone)
	}
	return names
}

// ownerOf is the node that a name belongs to: the one whose own it is, else the one whose own name it is a label below.
func ownerOf(owners map[string]string, name string) string {
	if owner := owners[name]; owner != "" {
		return owner
	}
	_, parent, _ := strings.Cut(name, ".")
	return owners[parent]
}

// ownersLocked are the owners of all names in the map.
func (r *Registry) ownersLocked() map[string]string {
	owners := map[string]string{}
	for name, n := range r.nodes {
		if !n.Pending {
			for _, own := range ownNames(r.meta.Zone, n.Node) {
				owners[own] = name
			}
		}
	}
	return owners
}

// mayPublish says why a node may not publish values at a name: nil, it may.
func mayPublish(owners map[string]string, node, name string) error {
	no := func(why string) error {
		return refuse(http.StatusForbidden, codeNotYours, "%.200q: %s", name, why)
	}
	rest, challenge := strings.CutPrefix(name, challengePrefix)
	switch {
	case !challenge:
		return no("values are published at _acme-challenge of a node's own names, and nowhere else")
	case strings.Contains("."+rest, "."+challengePrefix):
		return no("_acme-challenge twice")
	case ownerOf(owners, rest) != node:
		return no("it is no name of " + node + ", nor one label below one")
	}
	label, _, _ := strings.Cut(rest, ".")
	if ascii, err := idna.Lookup.ToASCII(label); err != nil || ascii != label {
		return no("its label " + label + " is none of a host")
	}
	return nil
}

// isDigest reports whether a value is what RFC 8555, section 8.4 has clients publish: SHA-256 in 43 characters of base64url.
// Anything else would make of this a store for whatever other services look up.
func isDigest(value string) bool {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(value)
	return err == nil && len(raw) == 32 && len(value) == 43
}

// changeTexts makes a node's changes, all of them or none. by is the credential of whoever asks. It returns when the values
// that were added end.
func (r *Registry) changeTexts(ctx context.Context, node, by string, list ...textChange) (time.Time, error) {
	var until time.Time
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[node]
	if n == nil || n.Pending {
		return until, unknownNode(node)
	}
	if len(list) > maxTextChange {
		return until, refuse(http.StatusBadRequest, codeBad, "more than %d changes at once", maxTextChange)
	}
	now := r.cfg.Now()
	owners := r.ownersLocked()
	for i := range list {
		c := &list[i]
		c.Name = foldName(c.Name)
		if err := checkChange(owners, node, *c); err != nil {
			return until, err
		}
		if !c.Drop && !r.writes.allow(n.Node.Addresses[0], now) {
			return until, refuse(http.StatusTooManyRequests, codeBusy, "%s writes more than %d values a minute", node, maxPuts)
		}
	}
	err := r.changeLocked(ctx, func() ([]change, error) {
		before := r.certOfLocked(node)
		after := before
		after.Texts = slices.DeleteFunc(slices.Clone(before.Texts), func(t textLease) bool { return !t.Expires.After(now) })
		for _, c := range list {
			var err error
			if after.Texts, err = c.apply(after.Texts, by, now); err != nil {
				return nil, err
			}
		}
		until = lastExpiry(after.Texts)
		if slices.Equal(before.Texts, after.Texts) {
			return nil, nil
		}
		return r.putCert(node, after)
	})
	return until, err
}

func checkChange(owners map[string]string, node string, c textChange) error {
	if err := mayPublish(owners, node, c.Name); err != nil {
		return err
	}
	if c.Drop {
		return nil // what is not there need not be well-formed
	}
	if !isDigest(c.Value) {
		return refuse(http.StatusBadRequest, codeBad, "the value is not a digest in 43 characters of base64url")
	}
	if c.Lease < 0 {
		return refuse(http.StatusBadRequest, codeBad, "a lease of %s", c.Lease)
	}
	return nil
}

// apply makes one change to a node's values.
func (c textChange) apply(texts []textLease, by string, now time.Time) ([]textLease, error) {
	if c.Drop {
		return slices.DeleteFunc(texts, func(t textLease) bool {
			return t.Name == c.Name && (t.Value == c.Value || c.Value == "" && t.By == by)
		}), nil
	}
	lease := min(cmpOr(c.Lease, leaseTime), maxLeaseTime)
	one := textLease{Name: c.Name, Value: c.Value, Since: now.UTC(), Expires: now.Add(lease).UTC(), By: by}
	here, oldest := 0, -1
	for i, t := range texts {
		if t.Name != c.Name {
			continue
		}
		if t.Value == c.Value { // said again: it lasts longer
			texts[i].Expires = one.Expires
			return texts, nil
		}
		here++
		if t.By == by && (oldest < 0 || t.Since.Before(texts[oldest].Since)) {
			oldest = i
		}
	}
	if c.Roll && here >= maxTextsName && oldest >= 0 {
		texts, here = slices.Delete(texts, oldest, oldest+1), here-1
	}
	if here >= maxTextsName || len(texts) >= maxTextsNode {
		return nil, refuse(http.StatusConflict, codeFull, "%d values at %s, %d of the node: there may be %d and %d",
			here, c.Name, len(texts), maxTextsName, maxTextsNode)
	}
	return append(texts, one), nil
}

func lastExpiry(texts []textLease) time.Time {
	var last time.Time
	for _, t := range texts {
		if t.Expires.After(last) {
			last = t.Expires
		}
	}
	return last
}
