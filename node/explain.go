package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/resolver"
)

// Explain tells what would answer a question and why, without a running node: as the configuration says, and with
// nobody asked. The node must not run.
func (n *Node) Explain(ctx context.Context, name, kind string) (ExplainResult, error) {
	if err := n.prepareIdle(); err != nil {
		return ExplainResult{}, err
	}
	result, err := n.explain(ctx, name, kind, true)
	result.Daemon = false
	return result, err
}

// prepareIdle reads what a node works from, and starts nothing. Ranges that were not drawn yet stay so: a question
// must not change anything.
func (n *Node) prepareIdle() error {
	err := n.prepareTailnet(func(stateDir string) (drawnRanges, error) {
		if _, err := os.Stat(filepath.Join(stateDir, "ranges.json")); err != nil {
			return drawnRanges{}, nil //nolint:nilerr // not drawn yet, or not for us to read
		}
		return loadRanges(stateDir)
	})
	if err != nil {
		return err
	}
	return n.prepareResolver(nil)
}

// explain tells step by step what answers a question and why. Candidates of the search list are gone through until one
// exists, as libc does.
func (n *Node) explain(ctx context.Context, name, kind string, operator bool) (ExplainResult, error) {
	q, err := parseQuestion(name, kind)
	if err != nil {
		return ExplainResult{}, err
	}
	result := ExplainResult{Schema: "meshdns.dns.explain/v1", Type: q.typeName(), Daemon: true, Steps: []explainStep{}, Answer: []string{}}
	candidates := q.candidates(n.search())
	if len(candidates) > 1 {
		result.step("search", "%s has one label, so these are tried: %s", q.name, strings.Join(candidates, " "))
	}
	for i, candidate := range candidates {
		e, err := n.resolver.Explain(candidate, q.kind, operator)
		if err != nil {
			return ExplainResult{}, hinted(ErrBadRequest, fmt.Errorf("explaining %s: %w", candidate, err), hintOf(err))
		}
		// The steps of candidates that do not exist stay: they show why the name was not found where it was expected.
		result.Name, result.Source = candidate, e.Source
		for _, step := range e.Steps {
			result.step(step.What, "%s", step.Detail)
		}
		if !operator && e.Source == "upstream" {
			result.step("cache", "only root and the daemon's own user are told what it holds")
		}
		if n.explainResult(ctx, &result, q.kind) || i == len(candidates)-1 {
			break
		}
	}
	return result, nil
}

func (r *ExplainResult) step(what, format string, args ...any) {
	r.Steps = append(r.Steps, explainStep{What: what, Detail: fmt.Sprintf(format, args...)})
}

// explainResult adds what the answer is. It reports whether the name exists, or may: without a running resolver nobody
// is asked.
func (n *Node) explainResult(ctx context.Context, r *ExplainResult, kind uint16) bool {
	// What comes from elsewhere needs a running resolver; our own names and the special ones do not.
	outside := r.Source != "local" && r.Source != "special"
	if outside && !n.stub.IsValid() {
		r.step("result", "not asked for, since no daemon runs")
		return true
	}
	query, err := new(dns.Msg).SetQuestion(r.Name, kind).Pack()
	if err != nil {
		r.step("result", "none: %v", err)
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	// Over TCP nothing is cut.
	raw, err := n.resolver.Answer(ctx, query, resolver.TCP)
	reply := new(dns.Msg)
	if err == nil {
		err = reply.Unpack(raw)
	}
	if err != nil {
		r.step("result", "none: %v", err)
		return true
	}
	r.Rcode = dns.RcodeToString[reply.Rcode]
	for _, rr := range reply.Answer {
		r.Answer = append(r.Answer, rr.String())
	}
	r.step("result", "%s", describeReply(r.Rcode, len(reply.Answer), r.Type))
	return reply.Rcode != dns.RcodeNameError
}

func describeReply(rcode string, records int, kind string) string {
	switch {
	case rcode != "NOERROR":
		return rcode
	case records == 0:
		return "NOERROR, and no " + kind + " records"
	case records == 1:
		return "NOERROR, 1 record"
	}
	return fmt.Sprintf("NOERROR, %d records", records)
}
