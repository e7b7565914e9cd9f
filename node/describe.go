package node

import (
	"bufio"
	"encoding"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// Key is one key of meshdns.yaml.
type Key struct {
	Path    string `json:"path"`    // dns.upstreams
	Type    string `json:"type"`    // "text", "list of addresses", …
	Default string `json:"default"` // as YAML on one line
	Env     string `json:"env"`     // the variable that overrides it; empty if there is none
	Doc     string `json:"doc"`
}

// Describe lists every key that has a value of its own, in the order of the file.
func Describe() []Key { return describe("", reflect.ValueOf(DefaultConfig())) }

func describe(path string, v reflect.Value) []Key {
	var keys []Key
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		name, ok := f.Tag.Lookup("yaml")
		if !ok {
			continue
		}
		p := join(path, name)
		if isBlock(f.Type) {
			keys = append(keys, describe(p, v.Field(i))...)
			continue
		}
		k := Key{Path: p, Type: typeWord(f.Type), Default: yamlText(v.Field(i)), Doc: f.Tag.Get("doc")}
		if !isBlockList(f.Type) {
			k.Env = "MESHDNS_" + strings.ToUpper(strings.ReplaceAll(p, ".", "_"))
		}
		keys = append(keys, k)
	}
	return keys
}

// typeWord is what a type is called in comments.
func typeWord(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return "address"
	case reflect.TypeFor[netip.AddrPort]():
		return "address:port"
	case reflect.TypeFor[ByteSize]():
		return "size"
	case reflect.TypeFor[time.Duration]():
		return "time"
	case reflect.TypeFor[control.ControlKey]():
		return "key"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "list of " + typeWord(t.Elem())
	case reflect.Map:
		return "mapping of text to " + typeWord(t.Elem())
	case reflect.Struct:
		return "mapping"
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true/false"
	default:
		return "number"
	}
}

// isBlock reports whether t is a block of keys, not a value.
func isBlock(t reflect.Type) bool { return t.Kind() == reflect.Struct && !isText(t) }

// isBlockList reports whether t is a list of blocks.
func isBlockList(t reflect.Type) bool { return t.Kind() == reflect.Slice && isBlock(t.Elem()) }

// WriteDefaults writes every key with its default, its type and its comment. It can be read back.
func WriteDefaults(w io.Writer) error { return writeConfig(w, DefaultConfig(), true) }

// writeConfig writes c as YAML that LoadConfig reads back, with comments if wanted.
func writeConfig(w io.Writer, c Config, comments bool) error {
	cw := configWriter{w: bufio.NewWriter(w), comments: comments}
	cw.block("", reflect.ValueOf(c))
	if err := cw.w.Flush(); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

// configWriter writes blocks. Its errors come out at Flush.
type configWriter struct {
	w        *bufio.Writer
	comments bool
}

// commentColumn is where comments start, if the value leaves room.
const commentColumn = 32

func (cw *configWriter) block(indent string, v reflect.Value) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		name, ok := f.Tag.Lookup("yaml")
		if !ok {
			continue
		}
		switch {
		case isBlock(f.Type):
			cw.line(indent+name+":", "", f.Tag.Get("doc"))
			cw.block(indent+"  ", v.Field(i))
		case isBlockList(f.Type):
			cw.blockList(indent, f, v.Field(i))
		default:
			cw.line(indent+name+": "+yamlText(v.Field(i)), typeWord(f.Type), f.Tag.Get("doc"))
		}
	}
}

// blockList writes the blocks of a list, or one as a comment to show its keys.
func (cw *configWriter) blockList(indent string, f reflect.StructField, v reflect.Value) {
	name := f.Tag.Get("yaml")
	if v.Len() > 0 {
		cw.line(indent+name+":", typeWord(f.Type), f.Tag.Get("doc"))
	} else {
		cw.line(indent+name+": []", typeWord(f.Type), f.Tag.Get("doc"))
	}
	for i := range v.Len() {
		fmt.Fprintf(cw.w, "%s  -\n", indent)
		(&configWriter{w: cw.w}).block(indent+"    ", v.Index(i))
	}
	if v.Len() == 0 && cw.comments {
		cw.block(indent+"#     ", reflect.Zero(f.Type.Elem()))
	}
}

func (cw *configWriter) line(text, typ, doc string) {
	if !cw.comments {
		fmt.Fprintln(cw.w, text)
		return
	}
	if typ != "" {
		doc = typ + "; " + doc
	}
	fmt.Fprintf(cw.w, "%-*s # %s\n", commentColumn, text, doc)
}

// yamlText is a value as YAML on one line.
func yamlText(v reflect.Value) string {
	if d, ok := v.Interface().(time.Duration); ok {
		return d.String()
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil || len(text) == 0 {
			return `""`
		}
		return yamlWord(string(text))
	}
	switch v.Kind() {
	case reflect.String:
		return yamlWord(v.String())
	case reflect.Slice:
		words := make([]string, v.Len())
		for i := range words {
			words[i] = yamlText(v.Index(i))
		}
		return "[" + strings.Join(words, ", ") + "]"
	case reflect.Map:
		var words []string
		for _, key := range slices.Sorted(maps.Keys(v.Interface().(map[string][]string))) {
			words = append(words, yamlWord(key)+": "+yamlText(v.MapIndex(reflect.ValueOf(key))))
		}
		return "{" + strings.Join(words, ", ") + "}"
	default:
		return fmt.Sprint(v.Interface())
	}
}

// yamlWord quotes a string unless it is a plain word that no reader of YAML takes for anything else.
func yamlWord(s string) string {
	plain := s != "" && (s[0] >= 'a' && s[0] <= 'z' || s[0] == '/') && !slices.Contains([]string{"null", "true", "false", "yes", "no", "on", "off", "y", "n"}, s)
	for _, c := range []byte(s) {
		plain = plain && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("./_-", c) >= 0)
	}
	if plain {
		return s
	}
	return strconv.Quote(s)
}
