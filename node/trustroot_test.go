package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWhetherTheTailnetsCAIsBelieved(t *testing.T) {
	for name, row := range map[string]struct {
		facts       trustFacts
		state, said string // no state: nothing is said
	}{
		"nobody asks":         {trustFacts{}, "", ""},
		"not installed":       {trustFacts{local: true}, findingOK, "do not believe"},
		"installed":           {trustFacts{local: true, told: true, there: true, same: true}, findingOK, "programs believe"},
		"without asking it":   {trustFacts{told: true, there: true, same: true}, findingOK, "programs believe"},
		"it is gone":          {trustFacts{told: true}, findingProblem, "not in the system's store any more"},
		"of another time":     {trustFacts{told: true, there: true}, findingProblem, "an older root"},
		"gateway is away":     {trustFacts{told: true, there: true, err: errors.New("away")}, findingWarning, "not known: away"},
		"a store we know not": {trustFacts{local: true, told: true, err: errors.New("no store")}, findingWarning, "no store"},
	} {
		f, ok := row.facts.judge()
		if ok != (row.state != "") || f.State != row.state || !strings.Contains(f.Detail, row.said) {
			t.Errorf("%s: %+v", name, f)
		}
		if f.State == findingProblem && f.Mend != "sudo meshdns cert trust" {
			t.Errorf("%s: to mend it: %q", name, f.Mend)
		}
	}

	n := &Node{opt: Options{Paths: testPaths(t)}}
	n.cfg.Certs.CA = []string{"letsencrypt", caLocal}
	if f := n.trustFacts(t.Context()); f != (trustFacts{local: true}) {
		t.Errorf("%+v", f)
	}
	note := filepath.Join(n.opt.Paths.State, caDir, trustedFile)
	if err := os.MkdirAll(filepath.Dir(note), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(note, []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	if f := n.trustFacts(t.Context()); !f.told || f.there || f.err == nil {
		t.Errorf("%+v", f)
	}
}
