package node

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong in a configuration, a map or what a source gave. It says where and which value,
// so that nobody has to search.
type Problem struct {
	File   string `json:"file,omitempty"`   // a path, a variable or a source; empty if unknown
	Line   int    `json:"line,omitempty"`   // from 1; 0 if unknown
	Column int    `json:"column,omitempty"` // from 1, in characters; 0 if unknown
	Field  string `json:"field,omitempty"`  // what the value is: "address", "dns.takeover"
	Value  string `json:"value,omitempty"`  // the value, as written
	Msg    string `json:"message"`
	Advice string `json:"hint,omitempty"` // what the user can do; Hint returns it
}

// Error gives the place, what the value is, the value and what is wrong with it, as far as they are known:
// "map.yaml:12:14: address 192.0.2.1: outside the tailnet's ranges 100.64.0.0/10".
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.place())
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	what := strings.TrimSpace(p.Field + " " + shownValue(p.Value))
	if what != "" {
		b.WriteString(what)
		b.WriteString(": ")
	}
	b.WriteString(p.Msg)
	return b.String()
}

// Hint says what the user can do, or nothing.
func (p Problem) Hint() string { return p.Advice }

func (p Problem) place() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.File == "" && p.Column == 0:
		return fmt.Sprintf("line %d", p.Line)
	case p.File == "":
		return fmt.Sprintf("line %d:%d", p.Line, p.Column)
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	default:
		return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
	}
}

// maxShown is how many bytes of a value a problem repeats.
const maxShown = 80

// shownValue is a value as a problem repeats it: quoted where it would otherwise blur into the sentence or write to
// the terminal, and cut where it is long.
func shownValue(s string) string {
	if s == "" {
		return ""
	}
	cut := s
	if len(cut) > maxShown {
		cut = strings.ToValidUTF8(cut[:maxShown], "")
	}
	q := fmt.Sprintf("%q", cut)
	if len(cut) < len(s) {
		return q + "…"
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || r == ':' }) && !strings.Contains(s, "::") || q != `"`+s+`"` {
		return q
	}
	return s
}

// Problems is an error made of everything that is wrong, in the order of the file.
type Problems []Problem

// Error gives the problems one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap leads to each problem.
func (ps Problems) Unwrap() []error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errs
}

// Hint is the hint of the first problem that has one.
func (ps Problems) Hint() string {
	for _, p := range ps {
		if p.Advice != "" {
			return p.Advice
		}
	}
	return ""
}

// maxProblems bounds what one file can make us say.
const maxProblems = 200

// err is nil if there are no problems, or else ps sorted by place and cut to a readable number.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	ps = ps.sorted()
	if more := len(ps) - maxProblems; more > 0 {
		file := ps[0].File
		ps = append(ps[:maxProblems:maxProblems], Problem{File: file, Msg: fmt.Sprintf("and %d more problems", more)})
	}
	return ps
}

// sorted is ps in the order of the files and places.
func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return ps
}

// located gives the problems that have a place in a file but not its name that name. What a flag or a default says
// stands in no file.
func (ps Problems) located(file string) Problems {
	for i := range ps {
		if ps[i].File == "" && ps[i].Line > 0 {
			ps[i].File = file
		}
	}
	return ps
}

// named gives every problem without a file the name of the one it is in.
func (ps Problems) named(file string) Problems {
	for i := range ps {
		if ps[i].File == "" {
			ps[i].File = file
		}
	}
	return ps
}

// position is a place in a file, or a variable that gave the value instead.
type position struct {
	file         string // empty: the file being read
	line, column int
}

func (at position) problem(field, value, msg string) Problem {
	return Problem{File: at.file, Line: at.line, Column: at.column, Field: field, Value: value, Msg: msg}
}
