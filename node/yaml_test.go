package node

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestYAMLReadsWhatPeopleWrite(t *testing.T) {
	tests := []struct {
		name, text string
		want       any
	}{
		{"nothing", "", nil},
		{"only comments", "# a\n\n  # b\n", nil},
		{"a byte order mark", "\ufeffa: b\n", map[string]any{"a": "b"}},
		{"CRLF", "a: b\r\nc:\r\n  - d\r\n", map[string]any{"a": "b", "c": []any{"d"}}},
		{"scalars", "a: 1\nb: 0x10\nc: 1.5\nd: true\ne: ~\nf: null\ng: .inf\nh: 010\n",
			map[string]any{"a": "1", "b": "0x10", "c": "1.5", "d": "true", "e": nil, "f": nil, "g": ".inf", "h": "010"}},
		{"quotes", `a: "x: y # \"z\""` + "\nb: 'it''s'\nc: \"null\"\n", map[string]any{"a": `x: y # "z"`, "b": "it's", "c": "null"}},
		{"addresses without quotes", "a: fd00::1\nb: 10.0.0.1:53\nc: fd00::/48\n", map[string]any{"a": "fd00::1", "b": "10.0.0.1:53", "c": "fd00::/48"}},
		{"a list in the key's column", "a:\n- b\n- c\nd: e\n", map[string]any{"a": []any{"b", "c"}, "d": "e"}},
		{"a list further in", "a:\n  - b\n  -\n  - c\n", map[string]any{"a": []any{"b", nil, "c"}}},
		{"a list of mappings", "a:\n  - b: 1\n    c: 2\n  - d: 3\n",
			map[string]any{"a": []any{map[string]any{"b": "1", "c": "2"}, map[string]any{"d": "3"}}}},
		{"a list of lists", "- - a\n  - b\n- c\n", []any{[]any{"a", "b"}, "c"}},
		{"flow over lines", "a: [b,\n  c, {d: e,\n f: [g]}]\n", map[string]any{"a": []any{"b", "c", map[string]any{"d": "e", "f": []any{"g"}}}}},
		{"empty brackets", "a: []\nb: {}\n", map[string]any{"a": []any{}, "b": map[string]any{}}},
		{"a comma at the end", "a: [b, ]\nc: {d: e, }\n", map[string]any{"a": []any{"b"}, "c": map[string]any{"d": "e"}}},
		{"a key without a value", "a:\nb:\n  c:\n", map[string]any{"a": nil, "b": map[string]any{"c": nil}}},
		{"a literal block", "a: |\n  b\n   c # d\n\n  e\nf: g\n", map[string]any{"a": "b\n c # d\n\ne\n", "f": "g"}},
		{"a literal block, stripped", "a: |-\n  b\n", map[string]any{"a": "b"}},
		{"a folded block", "a: >\n  b\n  c\n", map[string]any{"a": "b c\n"}},
		{"one document", "---\na: b\n...\n", map[string]any{"a": "b"}},
		{"deep but not too deep", strings.Repeat("[", 30) + strings.Repeat("]", 30), nested(30)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root, problems := parseYAML([]byte(tt.text))
			if len(problems) > 0 {
				t.Fatalf("problems: %v", problems)
			}
			if got := plain(root); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %#v, want %#v", got, tt.want)
			}
		})
	}
}

func nested(n int) any {
	if n == 1 {
		return []any{}
	}
	return []any{nested(n - 1)}
}

func TestYAMLSaysWhereItStopsToBeOne(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"not UTF-8", "a: b\nc: \xff\n", "line 2: not UTF-8"},
		{"a control character", "a: \x07", "line 1: control character U+0007"},
		{"a bracket left open", "a: [b, c\n", "line 1:8: the file ends here: a bracket is not closed"},
		{"a brace left open", "a: {b: c\n", "line 1:8: the file ends here: a bracket is not closed"},
		{"a missing colon", "a: b\nnode nas\n", "line 2"},
		{"wrong indentation", "a:\n  b: c\n d: e\n", "line 3:2"},
		{"a mapping beside a value", "a: b: c\n", "line 1:4"},
		{"a list on its key's line", "a: - b\n", "line 1:4"},
		{"an anchor", "a: &x b\n", "line 1:4: anchors and aliases are not read here"},
		{"an alias", "a: *x\n", "line 1:4: anchors and aliases are not read here"},
		{"a merge", "a: 1\n<<: b\n", "line 2:1"},
		{"a tag", "a: !x b\n", "line 1:4: tags are not read here"},
		{"a complex key", "? a\n: b\n", "line 1:1"},
		{"two documents", "a: b\n---\nc: d\n", "line 2:1: a second document"},
		{"an open quote", "a: \"b\n", "line 1:4"},
		{"too deep", strings.Repeat("[", 40) + strings.Repeat("]", 40), "line 1:33: nested deeper than 32 levels"},
		{"no comma", "a: [b c: d]\n", "line 1"},
		{"an item beside a key", "a: b\n- c\n", "line 2:1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, problems := parseYAML([]byte(tt.text))
			if len(problems) != 1 || !strings.HasPrefix(problems.Error(), tt.want) {
				t.Errorf("got %q, want %q", problems.Error(), tt.want)
			}
		})
	}
}

func TestYAMLPlacesCountCharacters(t *testing.T) {
	root, problems := parseYAML([]byte("# é\nñame: {k: v, ö: x}\nlast:\n    - y\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for i, want := range []position{{line: 2, column: 1}, {line: 3, column: 1}} {
		if got := root.keys[i].at; got != want {
			t.Errorf("key %d: got %+v, want %+v", i, got, want)
		}
	}
	inner := root.items[0]
	if got, want := inner.items[1].at, (position{line: 2, column: 17}); got != want {
		t.Errorf("x: got %+v, want %+v", got, want)
	}
	if got, want := root.items[1].items[0].at, (position{line: 4, column: 7}); got != want {
		t.Errorf("y: got %+v, want %+v", got, want)
	}
}

// A map of 20,000 nodes must not take quadratic time: the bound is far above what it takes and far below that.
func TestYAMLTakesLinearTime(t *testing.T) {
	var b strings.Builder
	b.WriteString("nodes:\n")
	for i := range 20_000 {
		fmt.Fprintf(&b, "  n%d: {addresses: [10.1.%d.%d]}\n", i, i>>8, i&255)
	}
	start := time.Now()
	root, problems := parseYAML([]byte(b.String()))
	if len(problems) > 0 || len(root.items[0].keys) != 20_000 {
		t.Fatalf("got %v", problems)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

func FuzzYAML(f *testing.F) {
	f.Add("a: [b, {c: d}]\ne:\n  - f\n  - |\n    g\n")
	f.Add("- - a\n  - b: c\n    d: >-\n      e\n")
	f.Fuzz(func(t *testing.T, text string) {
		root, problems := parseYAML([]byte(text))
		if root == nil && len(problems) == 0 {
			t.Error("neither a document nor a problem")
		}
		lines := strings.Count(text, "\n") + strings.Count(text, "\r") + 1
		for _, p := range problems {
			if p.Line < 0 || p.Line > lines+1 {
				t.Errorf("line %d of %d: %v", p.Line, lines, p)
			}
		}
	})
}
