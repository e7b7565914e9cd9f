package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// The states of a finding, and of a diagnosis as a whole.
const (
	findingOK      = "ok"
	findingWarning = "warning" // worth knowing; everything works
	findingProblem = "problem" // something does not work
)

// diagnosis is what Diagnose found: everything that was looked at, the worst first.
type diagnosis struct {
	Schema   string    `json:"schema"` // meshdns.doctor/v1
	State    string    `json:"state"`  // of the worst finding
	Findings []finding `json:"findings"`
	Unseen   []string  `json:"unseen"` // what only root would have seen
}

// finding is one thing that was looked at.
type finding struct {
	Name   string   `json:"name"`
	State  string   `json:"state"` // ok, warning or problem
	Detail string   `json:"detail"`
	Mend   string   `json:"mend"`  // what to do about it; a command where there is one; empty if it is ok
	Facts  []string `json:"facts"` // what led to it
}

func fine(name, format string, args ...any) finding {
	return newFinding(name, findingOK, "", fmt.Sprintf(format, args...))
}

func warn(name, mend, format string, args ...any) finding {
	return newFinding(name, findingWarning, mend, fmt.Sprintf(format, args...))
}

func wrong(name, mend, format string, args ...any) finding {
	return newFinding(name, findingProblem, mend, fmt.Sprintf(format, args...))
}

// newFinding cleans what may hold words of other programs: they must not write to the terminal.
func newFinding(name, state, mend, detail string) finding {
	return finding{Name: name, State: state, Detail: onOneLine(detail), Mend: onOneLine(mend), Facts: []string{}}
}

func onOneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}

// Count is how many findings are in a state.
func (d diagnosis) Count(state string) int {
	n := 0
	for _, f := range d.Findings {
		if f.State == state {
			n++
		}
	}
	return n
}

// Diagnose looks at everything that names on this machine depend on, and says of what is not right how to mend it. It
// changes nothing, and is done in about ten seconds whatever hangs. Where no node runs, idle is one that does not: what
// it would do is looked at then.
func (c Client) Diagnose(ctx context.Context, idle func() (*Node, error)) diagnosis {
	ctx, cancel := context.WithTimeout(ctx, doctorTime)
	defer cancel()
	return diagnose(gatherFacts(ctx, c, idle))
}

// diagnose judges the facts.
func diagnose(f doctorFacts) diagnosis {
	d := diagnosis{Schema: "meshdns.doctor/v1", State: findingOK, Findings: []finding{}, Unseen: notNil(f.unseen)}
	for _, judge := range []func(doctorFacts) []finding{
		judgeDaemon, judgeProblems, judgePort, judgeOwner, judgeTakeover, judgeStub, judgeLookups, judgeSearch,
		judgeOutside, judgePortal, judgeUpstreams, judgeContainers, judgeTunnels, judgeCerts, judgeServers, judgeClock, judgeLink,
	} {
		d.Findings = append(d.Findings, judge(f)...)
	}
	slices.SortStableFunc(d.Findings, func(a, b finding) int { return cmp.Compare(gravity(b.State), gravity(a.State)) })
	if len(d.Findings) > 0 {
		d.State = d.Findings[0].State
	}
	return d
}

// gravity orders the states.
func gravity(state string) int {
	return slices.Index([]string{findingOK, findingWarning, findingProblem}, state)
}
