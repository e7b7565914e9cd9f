package node

import (
	"cmp"
	"fmt"
	"reflect"
	"strings"
)

// Setting is one key of the configuration in effect.
type Setting struct {
	Path   string `json:"path"`   // dns.upstreams
	Value  string `json:"value"`  // as YAML on one line
	Source string `json:"source"` // default, a place in a file, or the variable that gave it
}

// Settings lists what the configuration says, key by key in the order of the file. file is the name of the file that
// it was read from.
func (c *Config) Settings(file string) []Setting {
	var list []Setting
	c.settings(&list, "", file, reflect.ValueOf(c).Elem())
	return list
}

func (c *Config) settings(list *[]Setting, path, file string, v reflect.Value) {
	t := v.Type()
	for i := range t.NumField() {
		name, ok := t.Field(i).Tag.Lookup("yaml")
		if !ok {
			continue
		}
		key := join(path, name)
		if isBlock(t.Field(i).Type) {
			c.settings(list, key, file, v.Field(i))
			continue
		}
		s := Setting{Path: key, Value: flowText(v.Field(i)), Source: "default"}
		if at, given := c.where[key]; given {
			s.Source = at.named(file)
		}
		*list = append(*list, s)
	}
}

// named is the place in words; file is the file being read.
func (at position) named(file string) string {
	if at.line == 0 {
		return cmp.Or(at.file, file)
	}
	return fmt.Sprintf("%s:%d", cmp.Or(at.file, file), at.line)
}

// flowText is a value as YAML on one line, blocks and lists of them included. Fields that say nothing are left out.
func flowText(v reflect.Value) string {
	var words []string
	switch {
	case isBlockList(v.Type()):
		for i := range v.Len() {
			words = append(words, flowText(v.Index(i)))
		}
		return "[" + strings.Join(words, ", ") + "]"
	case isBlock(v.Type()):
		for i := range v.NumField() {
			f := v.Field(i)
			empty := f.IsZero() || f.Kind() == reflect.Slice && f.Len() == 0
			if name, ok := v.Type().Field(i).Tag.Lookup("yaml"); ok && !empty {
				words = append(words, name+": "+flowText(f))
			}
		}
		return "{" + strings.Join(words, ", ") + "}"
	}
	return yamlText(v)
}
