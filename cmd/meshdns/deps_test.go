package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const modulePath = "github.com/meshdns/meshdns"

// edges are the imports between our packages that may be; everything else may not. A package below another's internal,
// or its test helpers (PACKAGE/PACKAGEtest), belong to that package.
var edges = map[string][]string{
	"cmd/meshdns":      {"node"},
	"cmd/meshdns-demo": {"node"},
	"node":             {"resolver", "osconfig", "certs", "funnel", "node/tunnel", "node/control"},
	"resolver":         nil,
	"osconfig":         nil,
	"certs":            nil,
	"funnel":           nil,
	"node/tunnel":      nil,
	"node/control":     nil,
	"node/bench":       {"node", "node/control", "certs"},
	"resolver/bench":   nil,
}

// goPackage is what `go list -json` says of one package.
type goPackage struct {
	ImportPath   string
	Name         string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// repository is the module's top directory.
func repository(t *testing.T) string {
	t.Helper()
	top, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return top
}

// packages lists the module's packages as they are on Linux.
func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Name,Dir,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = repository(t)
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("running go list: %v", err)
	}
	var list []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatalf("reading what go list printed: %v", err)
		}
		list = append(list, p)
	}
}

// owner is the package in edges that path, relative to the module, belongs to, or "".
func owner(path string) string {
	if _, ok := edges[path]; ok {
		return path
	}
	if parent, _, ok := strings.Cut(path, "/internal/"); ok {
		return owner(parent)
	}
	dir, last := filepath.Split(path)
	dir = strings.TrimSuffix(dir, "/")
	if dir != "" && last == filepath.Base(dir)+"test" {
		return owner(dir)
	}
	return ""
}

// forbiddenEdge says what is wrong with an import of imported by importer, both relative to the module; "" if nothing is.
func forbiddenEdge(importer, imported string) string {
	from, to := owner(importer), owner(imported)
	switch {
	case from == "":
		return importer + " has no place in the diamond of imports"
	case to == "":
		return importer + " imports " + imported + ", which has no place in the diamond of imports"
	case from == to, slices.Contains(edges[from], to):
		return ""
	}
	return importer + " imports " + imported
}

func TestImportsFormADiamond(t *testing.T) {
	seen := 0
	for _, p := range packages(t) {
		importer := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, modulePath), "/")
		if owner(importer) == "" {
			t.Errorf("%s has no place in the diamond of imports", importer)
		}
		for _, path := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			imported, ours := strings.CutPrefix(path, modulePath+"/")
			if !ours {
				continue
			}
			seen++
			if wrong := forbiddenEdge(importer, imported); wrong != "" {
				t.Error(wrong)
			}
		}
	}
	if seen == 0 {
		t.Error("go list showed no import of ours at all")
	}
}

func TestForbiddenEdgesAreSeen(t *testing.T) {
	for _, test := range []struct {
		importer, imported string
		ok                 bool
	}{
		{"cmd/meshdns", "node", true},
		{"cmd/meshdns", "resolver", false},
		{"node", "osconfig", true},
		{"node", "node/tunnel", true},
		{"node", "node/internal/yamlpos", true},
		{"node", "resolver/internal/slab", true}, // the compiler forbids it already
		{"osconfig", "osconfig/osconfigtest", true},
		{"resolver", "node", false},
		{"resolver", "osconfig", false},
		{"node/tunnel", "node", false},
		{"node", "util", false},
		{"pkg/common", "node", false},
	} {
		if got := forbiddenEdge(test.importer, test.imported) == ""; got != test.ok {
			t.Errorf("%s imports %s: allowed = %t, want %t", test.importer, test.imported, got, test.ok)
		}
	}
}

func TestOneProgramAndItsDemo(t *testing.T) {
	programs := []string{modulePath + "/cmd/meshdns", modulePath + demo}
	for _, p := range packages(t) {
		if p.Name == "main" && !slices.Contains(programs, p.ImportPath) {
			t.Errorf("%s is another program", p.ImportPath)
		}
	}
}

const (
	demo   = "/cmd/meshdns-demo"
	pebble = "github.com/letsencrypt/pebble/"
)

// The CA for tests is in no program that anybody uses, and the demo drives nodes as others do: it has nothing else to help it.
func TestTheTestCAIsTheDemosAlone(t *testing.T) {
	found := false
	for _, p := range packages(t) {
		for _, path := range p.Imports {
			isPebble, isDemo := strings.HasPrefix(path, pebble), p.ImportPath == modulePath+demo
			switch {
			case isPebble && !isDemo:
				t.Errorf("%s imports %s", p.ImportPath, path)
			case isPebble:
				found = true
			case isDemo && strings.Contains(path, ".") && path != modulePath+"/node" && path != "golang.org/x/sys/unix":
				t.Errorf("the demo imports %s", path)
			}
		}
	}
	if !found {
		t.Error("go list showed no import of Pebble at all")
	}
}

func TestTopHoldsOnlyWhatBelongsThere(t *testing.T) {
	entries, err := os.ReadDir(repository(t))
	if err != nil {
		t.Fatal(err)
	}
	belongs := []string{
		"go.mod", "go.sum", "README.md", "Makefile", "LICENSE",
		"cmd", "node", "resolver", "osconfig", "certs", "funnel",
		"meshdns", // what make builds
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(belongs, e.Name()) {
			t.Errorf("%s stands at the top of the repository; a helper lives beside its user", e.Name())
		}
	}
}
