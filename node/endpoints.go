package node

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// maxConfirm bounds how long a takeover may wait for its confirmation.
const maxConfirm = time.Hour

// endpoints are the calls of the control API. Reads are GET, with parameters in the URL; changes are POST, with a JSON
// body, and for the operator alone. The configuration is too: it may name commands and servers that are nobody else's
// business (S20).
func (n *Node) endpoints() []endpoint {
	list := []endpoint{
		{pattern: "GET " + pathStatus, serve: func(*http.Request, caller) (any, error) { return n.status(), nil }},
		{pattern: "GET " + pathDNSStatus, serve: func(*http.Request, caller) (any, error) { return n.dnsStatus(), nil }},
		{pattern: "GET " + pathQuery, serve: n.serveQuery},
		{pattern: "GET " + pathExplain, serve: n.serveExplain},
		{pattern: "GET " + pathPlan, serve: n.servePlan},
		{pattern: "GET " + pathPing, serve: n.servePing},
		{pattern: "GET " + pathConfig, operator: true, serve: n.serveConfig},
		{pattern: "GET " + pathMetrics, stream: n.metricsHandler()},
		{pattern: "POST " + pathFlush, operator: true, serve: n.serveFlush},
		{pattern: "POST " + pathApply, operator: true, serve: n.serveApply},
		{pattern: "POST " + pathConfirm, operator: true, serve: n.serveConfirm},
		{pattern: "POST " + pathRestore, operator: true, serve: n.serveRestore},
		{pattern: "POST " + pathRotate, operator: true, serve: n.serveRotate},
		{pattern: "GET " + pathDrop, serve: n.serveDropped},
		{pattern: "POST " + pathDrop, operator: true, serve: n.serveDrop},
		{pattern: "GET " + pathLock, operator: true, serve: n.serveLock},
		{pattern: "POST " + pathLock, operator: true, serve: n.serveSign},
		{pattern: "POST " + pathDown, operator: true, serve: n.serveDown},
		{pattern: "POST " + pathConnect, operator: true, stream: http.HandlerFunc(n.serveConnect)},
	}
	return slices.Concat(list, n.gatewayEndpoints(), n.credentialEndpoints(), n.trustEndpoints(), n.certEndpoints(), n.serveEndpoints())
}

// serveQuery asks the stub over its socket, not the resolver by a call: the answer is then what any program gets.
func (n *Node) serveQuery(r *http.Request, _ caller) (any, error) {
	q, err := parseQuestion(r.FormValue("name"), r.FormValue("type"))
	if err != nil {
		return nil, err
	}
	result, err := q.search(r.Context(), n.stub, n.search())
	if err != nil {
		return nil, err
	}
	// Which part answers is told beforehand by the same tables; what the cache holds is not for strangers to know.
	if e, err := n.resolver.Explain(result.Name, q.kind, false); err == nil {
		result.Source = e.Source
	}
	return result, nil
}

// serveExplain tells strangers all but what is cached, which says what others on this machine have looked up (S20).
func (n *Node) serveExplain(r *http.Request, who caller) (any, error) {
	return n.explain(r.Context(), r.FormValue("name"), r.FormValue("type"), who.operator)
}

// serveFlush drops names from the cache. Short names are not tried with the search list: nothing below the zone is
// cached.
func (n *Node) serveFlush(r *http.Request, _ caller) (any, error) {
	var in flushRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if in.Name != "" {
		q, err := parseQuestion(in.Name, "")
		if err != nil {
			return nil, err
		}
		in.Name = dns.Fqdn(q.name)
	}
	dropped, err := n.resolver.Flush(in.Name)
	if err != nil {
		return nil, hinted(ErrBadRequest, fmt.Errorf("flushing %s: %w", in.Name, err), hintOf(err))
	}
	return flushReply{Schema: "meshdns.dns.flush/v1", Name: in.Name, Dropped: dropped}, nil
}

func (n *Node) servePlan(r *http.Request, _ caller) (any, error) { return n.takeover.plan(r.Context()) }

func (n *Node) serveConfig(*http.Request, caller) (any, error) {
	var b bytes.Buffer
	err := writeConfig(&b, n.cfg, false)
	return configReply{Schema: "meshdns.config/v1", YAML: b.String()}, err
}

func (n *Node) serveApply(r *http.Request, _ caller) (any, error) {
	var in applyRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	// Before it is multiplied, which could make 0 of it: a takeover for ever.
	if in.ConfirmSeconds < 0 || in.ConfirmSeconds > int(maxConfirm/time.Second) {
		return nil, hinted(ErrBadRequest, fmt.Errorf("a takeover waits for its confirmation for at most %s", maxConfirm), "")
	}
	return n.changed(n.takeover.apply(r.Context(), time.Duration(in.ConfirmSeconds)*time.Second))
}

func (n *Node) serveConfirm(r *http.Request, _ caller) (any, error) {
	if err := decode(r, &emptyRequest{}); err != nil {
		return nil, err
	}
	return n.changed(n.takeover.confirm())
}

func (n *Node) serveRestore(r *http.Request, _ caller) (any, error) {
	if err := decode(r, &emptyRequest{}); err != nil {
		return nil, err
	}
	return n.changed(n.takeover.restore(r.Context(), "asked for by dns restore"))
}

// changed is the answer to a change of the takeover.
func (n *Node) changed(err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return n.takeover.state(), nil
}

// serveDown answers when all is put back but this connection; by then its own listener is gone too.
func (n *Node) serveDown(r *http.Request, _ caller) (any, error) {
	if err := decode(r, &emptyRequest{}); err != nil {
		return nil, err
	}
	// The answer has to go out although the request's own time is up when the node hurries.
	return struct{}{}, n.end(context.WithoutCancel(r.Context()))
}
