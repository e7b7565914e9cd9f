package control

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// certKey begins the records of what nodes have published for CAs. Each is a node's, and goes with it (S5).
const certKey = "cert/"

// certRecord is what a node needs a gateway for to get certificates.
type certRecord struct {
	Texts       []textLease  `json:"texts,omitempty"`
	Accounts    []string     `json:"accounts,omitempty"` // at CAs, that its own orders are of
	Credentials []credential `json:"credentials,omitempty"`
}

func (c certRecord) empty() bool {
	return len(c.Texts) == 0 && len(c.Accounts) == 0 && len(c.Credentials) == 0
}

// certView is what the public may see of that, at the time when it was made. It is never changed.
type certView struct {
	Texts []textLease         // those that have not ended
	Next  time.Time           // when the next one ends; zero: there is none
	Issue map[string][]string // who may issue for a name, as CAA records say it (RFC 8659, section 4.2); names without a dot at their end

	owners map[string]string // of all names of the nodes with a record
}

// certOfLocked is a node's record.
func (r *Registry) certOfLocked(node string) certRecord {
	if c := r.certs[node]; c != nil {
		return *c
	}
	return certRecord{}
}

// putCert is the change that writes a node's record, or removes it when nothing is in it.
func (r *Registry) putCert(node string, c certRecord) ([]change, error) {
	if c.empty() {
		return r.dropCert(node), nil
	}
	return r.puts(certKey+node, c)
}

// dropCert is the change that removes a node's record, if it has one.
func (r *Registry) dropCert(node string) []change {
	if r.certs[node] == nil {
		return nil
	}
	return []change{r.drop(certKey + node)}
}

// viewCertsLocked makes the view of what the registry holds now.
func (r *Registry) viewCertsLocked() {
	v := &certView{Issue: map[string][]string{}, owners: map[string]string{}}
	now, all := r.cfg.Now(), r.ownersLocked()
	for name, c := range r.certs {
		n := r.nodes[name]
		if n == nil || n.Pending {
			continue
		}
		values := r.issueValues(*c)
		for _, own := range ownNames(r.meta.Zone, n.Node) {
			v.owners[own] = name
			if len(values) > 0 {
				v.Issue[own] = values
			}
		}
		for _, t := range c.Texts {
			if t.Expires.After(now) && mayPublish(all, name, t.Name) == nil { // a service name may be another's by now
				v.Texts = append(v.Texts, t)
				if v.Next.IsZero() || t.Expires.Before(v.Next) {
					v.Next = t.Expires
				}
			}
		}
	}
	slices.SortFunc(v.Texts, func(a, b textLease) int { return strings.Compare(a.Name+" "+a.Value, b.Name+" "+b.Value) })
	r.certView.Store(v)
	close(r.certsChanged)
	r.certsChanged = make(chan struct{})
}

// Certs is what the public may see of what nodes have published for CAs, and a channel that is closed when that is another.
func (r *Registry) Certs() (view *certView, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.certView.Load(); !v.Next.IsZero() && !v.Next.After(r.cfg.Now()) {
		r.viewCertsLocked()
	}
	return r.certView.Load(), r.certsChanged
}

// Unsure reports whether this gateway may lack values at a name that begins with _acme-challenge: it has not heard the node
// whose name it is for a while, so that others may have been told of values meanwhile. Names of nobody, and of nodes that have
// published nothing, are like that too: otherwise anybody could ask which nodes there are (S11). It waits for no disk.
func (r *Registry) Unsure(name string) bool {
	owner := ownerOf(r.certView.Load().owners, strings.TrimPrefix(name, challengePrefix))
	return owner == "" || !r.heard.lately(owner, r.cfg.Now())
}

// pulses are when nodes were heard, that is when they last told or asked for what they publish.
type pulses struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (p *pulses) hear(node string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.at) >= maxNodes {
		maps.DeleteFunc(p.at, func(_ string, at time.Time) bool { return now.Sub(at) > hearTime })
	}
	p.at[node] = now
}

func (p *pulses) lately(node string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, known := p.at[node]
	return known && now.Sub(at) < hearTime
}

// hear takes note that a node was heard, unless it is none any more.
func (r *Registry) hear(node string) { r.heard.hear(node, r.cfg.Now()) }

// changeCert makes a change to what a node has published.
func (r *Registry) changeCert(ctx context.Context, node string, edit func(*certRecord) error) error {
	return r.changeNode(ctx, node, func(n *nodeRecord) ([]change, error) {
		if n.Pending {
			return nil, refuse(http.StatusConflict, codeBusy, "%s has not finished joining", node)
		}
		c := r.certOfLocked(node)
		c.Accounts, c.Credentials = slices.Clone(c.Accounts), slices.Clone(c.Credentials)
		if err := edit(&c); err != nil {
			return nil, err
		}
		return r.putCert(node, c)
	})
}
