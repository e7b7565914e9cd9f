package node

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/meshdns/meshdns/node/control"
)

// serveReply is what is served.
type serveReply struct {
	Schema   string        `json:"schema"` // meshdns.serve.status/v1
	Node     string        `json:"node"`
	Entries  []servedState `json:"entries"`
	Problems []string      `json:"problems"` // of all together
	// ETag is of what is kept in the background: the content of If-Match for a change of just that.
	ETag string `json:"etag"`
}

// servedState is one thing that is served, and how it is with it. Only the operator is told what stands behind it.
type servedState struct {
	served
	URL      string           `json:"url"`
	Source   string           `json:"source"` // background, foreground or configuration
	Place    string           `json:"place,omitempty"`
	State    string           `json:"state"` // ok, waiting or failed
	Problems []string         `json:"problems"`
	At       []netip.AddrPort `json:"at,omitempty"` // where visitors come in
}

// The states of what is served.
const (
	servedOK      = "ok"
	servedWaiting = "waiting"
	servedFailed  = "failed"
)

// servedStatus is how all that is served is.
func (n *Node) servedStatus(who caller) serveReply {
	s := &n.serving
	list := s.current()
	r := serveReply{Schema: "meshdns.serve.status/v1", Node: n.selfName(), Entries: []servedState{}, Problems: []string{}}
	s.mu.Lock()
	r.ETag = servedText{Entries: s.kept}.tag()
	for _, err := range []error{s.broken, s.bad, s.unready} {
		if err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
	}
	r.Problems = append(r.Problems, s.wrong...)
	s.mu.Unlock()
	for _, one := range list {
		state := n.servedState(one)
		if !who.mayTouch(one) {
			// Rules are not for other users to know (S20), nor are paths of files and what else a target says.
			state.Target, state.Headers, state.Access, state.TLSPin, state.TLSName, state.Place = "", nil, nil, "", "", ""
		} else if one.Access != nil {
			access := one.Access.Redacted()
			state.Access = &access
		}
		r.Entries = append(r.Entries, state)
	}
	return r
}

// servedState is how it is with one thing.
func (n *Node) servedState(one served) servedState {
	st := servedState{served: one, URL: n.urlOf(one), Source: one.from, Place: one.at, State: servedOK, Problems: []string{}}
	add := func(state string, problem string) {
		if state == servedFailed || st.State == servedOK {
			st.State = state
		}
		st.Problems = append(st.Problems, problem)
	}
	for _, problem := range n.listenFaults(one) {
		add(servedFailed, problem)
	}
	if one.secure() {
		if state, problem := n.certFault(one.Name); problem != "" {
			add(state, problem)
		}
	}
	if one.Public {
		f, state, problem := n.gatewaysWord(one)
		st.At = f.At
		if len(f.At) > 0 { // the gateway's port may be another one than the usual
			at := one
			at.Port = f.At[0].Port()
			st.URL = n.urlOf(at)
		}
		if problem != "" {
			add(state, problem)
		}
	}
	return st
}

// listenFaults are why the tailnet, or the gateway, does not reach something.
func (n *Node) listenFaults(one served) (list []string) {
	port := one.Port
	if one.Public {
		port = ingressPort
	}
	s := &n.serving
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, err := range s.faults {
		if at.Port() == port && !slices.Contains(list, err.Error()) {
			list = append(list, err.Error())
		}
	}
	slices.Sort(list)
	return list
}

// certFault is why a name has no certificate; empty: it has one.
func (n *Node) certFault(name string) (state, problem string) {
	c := n.certs.state()
	switch {
	case errors.Is(c.reason, errStarting):
		return servedWaiting, "the node is starting"
	case c.manager == nil:
		return servedFailed, "there are no certificates: " + c.reason.Error()
	case hasCertificate(c.manager, name):
		return "", ""
	}
	for _, info := range c.manager.List() {
		if !slices.Contains(info.Names, name) {
			continue
		}
		if info.Trouble != nil {
			return servedFailed, fmt.Sprintf("there is no certificate for %s: %s; tried again at %s", name, info.Trouble.Error, info.Renewal.Local().Format("15:04"))
		}
		return servedWaiting, "the certificate for " + name + " is being got"
	}
	return servedFailed, "there is no certificate for " + name + "; see: meshdns cert " + name
}

// gatewaysWord is what the gateway says of something public.
func (n *Node) gatewaysWord(one served) (f control.Funnel, state, problem string) {
	list, settled, _, err := n.registration.state()
	i := slices.IndexFunc(list, one.funnel().Same)
	switch {
	case !n.hasGateway():
		return f, servedFailed, errNoGateway.Error()
	case err != nil:
		return f, servedFailed, "the gateway does not show it: " + err.Error()
	case i >= 0 && list[i].Open:
		return list[i], "", ""
	case i >= 0 && list[i].Why != "":
		return list[i], servedFailed, "the gateway does not show it: " + list[i].Why
	case !settled || i < 0:
		return f, servedWaiting, "the gateway has not said yet that it shows it"
	}
	return list[i], servedWaiting, "the gateway does not show it yet"
}

// selfName is this node's full name, empty if it has none.
func (n *Node) selfName() string {
	m, _ := n.tailnet.current()
	if self := n.findSelf(m); self != "" {
		return m.FQDN(self)
	}
	return ""
}

// urlOf is the address of something that is served.
func (n *Node) urlOf(s served) string {
	if s.Name == "" {
		s.Name = n.selfName()
	}
	return s.url()
}

// problems are what somebody has to do something about.
func (n *Node) servedProblems() []string {
	if !n.serving.ready.Load() {
		return nil
	}
	var list []string
	r := n.servedStatus(caller{})
	list = append(list, r.Problems...)
	for _, one := range r.Entries {
		if one.State != servedFailed || one.Source == fromForeground { // whose command tells it
			continue
		}
		for _, p := range one.Problems {
			list = append(list, one.URL+": "+p)
		}
	}
	return list
}

// serveServed tells what is served.
func (n *Node) serveServed(_ *http.Request, who caller) (any, error) {
	if !n.serving.ready.Load() {
		return nil, hinted(ErrTimeout, errStarting, "try again")
	}
	return n.servedStatus(who), nil
}
