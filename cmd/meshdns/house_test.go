package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// The limits of the house, for every file of the module.
const (
	maxFunctionLines = 80
	maxFileLines     = 700
	maxParameters    = 5
	maxFileImports   = 20
	maxExported      = 35 // names a package exports, methods aside
)

// house collects what breaks the limits.
type house struct {
	files    *token.FileSet
	exported map[string]int // by directory
	findings []string
}

func TestHouseLimits(t *testing.T) {
	h := &house{files: token.NewFileSet(), exported: map[string]int{}}
	top := repository(t)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != top && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		return h.read(path, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, n := range h.exported {
		if n > maxExported {
			h.findings = append(h.findings, fmt.Sprintf("%s: %d exported names, at most %d", dir, n, maxExported))
		}
	}
	for _, finding := range h.findings {
		t.Error(strings.TrimPrefix(finding, top+"/"))
	}
}

// read checks one file; src is its text, or nil to read it.
func (h *house) read(path string, src any) error {
	file, err := parser.ParseFile(h.files, path, src, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	isTest := strings.HasSuffix(path, "_test.go")
	if lines := h.files.File(file.Pos()).LineCount(); lines > maxFileLines {
		h.say(file, "%d lines, at most %d", lines, maxFileLines)
	}
	if len(file.Imports) > maxFileImports {
		h.say(file, "%d imports, at most %d", len(file.Imports), maxFileImports)
	}
	for _, decl := range file.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			h.function(decl, file.Name.Name, isTest)
		case *ast.GenDecl:
			if !isTest {
				h.count(path, decl)
			}
		}
	}
	return nil
}

func (h *house) say(at ast.Node, format string, args ...any) {
	h.findings = append(h.findings, h.files.Position(at.Pos()).String()+": "+fmt.Sprintf(format, args...))
}

// function checks one function. A test may call panic and os.Exit, and be as long as its table.
func (h *house) function(f *ast.FuncDecl, pkg string, isTest bool) {
	lines := h.files.Position(f.End()).Line - h.files.Position(f.Pos()).Line + 1
	if lines > maxFunctionLines && !isTest {
		h.say(f, "%s has %d lines, at most %d", f.Name.Name, lines, maxFunctionLines)
	}
	if n := f.Type.Params.NumFields(); n > maxParameters {
		h.say(f, "%s has %d parameters, at most %d", f.Name.Name, n, maxParameters)
	}
	if f.Recv == nil && f.Name.Name == "init" {
		h.say(f, "init: what starts has to be called")
	}
	if isTest {
		return
	}
	if f.Recv == nil && f.Name.IsExported() {
		h.exported[filepath.Dir(h.files.Position(f.Pos()).Filename)]++
	}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		switch name := callee(call); {
		case name == "panic":
			h.say(call, "%s calls panic", f.Name.Name)
		case (name == "os.Exit" || strings.HasPrefix(name, "log.Fatal")) && (pkg != "main" || f.Name.Name != "main"):
			h.say(call, "%s calls %s, which only main may", f.Name.Name, name)
		}
		return true
	})
}

// callee is the name that is called, with its package if it is written so.
func callee(call *ast.CallExpr) string {
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		if x, ok := fun.X.(*ast.Ident); ok {
			return x.Name + "." + fun.Sel.Name
		}
	}
	return ""
}

// count counts the names that decl exports, and checks that package variables are values that nobody changes: errors,
// compiled expressions and tables. The linker sets main.version.
func (h *house) count(path string, decl *ast.GenDecl) {
	for _, spec := range decl.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			if spec.Name.IsExported() {
				h.exported[filepath.Dir(path)]++
			}
		case *ast.ValueSpec:
			for _, name := range spec.Names {
				if name.IsExported() {
					h.exported[filepath.Dir(path)]++
				}
				if decl.Tok == token.VAR && len(spec.Values) == 0 && name.Name != "version" {
					h.say(name, "%s is a package variable without a value, so something changes it", name.Name)
				}
			}
		}
	}
}

func TestHouseLimitsAreSeen(t *testing.T) {
	long := "func f() {\n" + strings.Repeat("\t_ = 0\n", maxFunctionLines) + "}\n"
	for name, test := range map[string]struct {
		file, code, want string
	}{
		"long function":        {"a.go", long, "f has 82 lines"},
		"long function test":   {"a_test.go", long, ""},
		"long file":            {"a_test.go", strings.Repeat("// x\n", maxFileLines), "701 lines, at most"},
		"many parameters":      {"a.go", "func f(a, b, c int, d, e, f string) {}", "f has 6 parameters"},
		"init":                 {"a.go", "func init() {}", "init: "},
		"method init":          {"a.go", "func (t T) init() {}", ""},
		"panic":                {"a.go", `func f() { panic("x") }`, "f calls panic"},
		"panic in a closure":   {"a.go", `func f() { _ = func() { panic("x") } }`, "f calls panic"},
		"panic in a test":      {"a_test.go", `func f() { panic("x") }`, ""},
		"os.Exit":              {"a.go", "func f() { os.Exit(1) }", "f calls os.Exit"},
		"os.Exit in main":      {"a.go", "func main() { os.Exit(1) }", ""},
		"variable":             {"a.go", "var state int", "state is a package variable"},
		"variable with value":  {"a.go", `var errX = errors.New("x")`, ""},
		"the linker's version": {"a.go", "var version string", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := &house{files: token.NewFileSet(), exported: map[string]int{}}
			if err := h.read(test.file, "package main\n"+test.code); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(h.findings, "\n")
			if test.want == "" && got != "" || !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
