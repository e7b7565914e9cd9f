package node

import (
	"reflect"
	"strings"
)

// ApplyEnv overrides the configuration with variables: MESHDNS_ and the key's path in capitals, MESHDNS_DNS_UPSTREAMS
// for dns.upstreams. Lists are separated by commas; mappings are written as in the file, on one line. An empty variable
// counts as unset. There is no variable for what may run commands: that comes from files that root owns (S20). The
// error is a Problems.
func (c *Config) ApplyEnv(lookup func(name string) (string, bool)) error {
	if c.where == nil {
		c.where = map[string]position{}
	}
	d := decoder{where: c.where}
	for _, k := range Describe() {
		text, ok := lookup(k.Env)
		if k.Env == "" || !ok || text == "" {
			continue
		}
		before := len(d.problems)
		d.variable(k, text, reflect.ValueOf(c).Elem())
		for i := range d.problems[before:] {
			d.problems[before+i].File, d.problems[before+i].Line, d.problems[before+i].Column = k.Env, 0, 0
		}
	}
	return d.problems.err()
}

// variable reads the text of a variable into the field of key k.
func (d *decoder) variable(k Key, text string, config reflect.Value) {
	field := config
	for name := range strings.SplitSeq(k.Path, ".") {
		field, _ = fieldByKey(field, name)
	}
	at := position{file: k.Env}
	if field.Kind() == reflect.Map || strings.HasPrefix(text, "[") && field.Kind() == reflect.Slice {
		root, problems := parseYAML([]byte(text))
		d.problems = append(d.problems, problems...)
		if root != nil {
			d.value(root, k.Path, field)
		}
		d.where[k.Path] = at
		return
	}
	it := &item{kind: scalarItem, at: at, text: text}
	if field.Kind() == reflect.Slice {
		it = &item{kind: sequenceItem, at: at}
		for word := range strings.SplitSeq(text, ",") {
			it.items = append(it.items, &item{kind: scalarItem, at: at, text: strings.TrimSpace(word)})
		}
	}
	d.value(it, k.Path, field)
}
