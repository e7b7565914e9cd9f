package osconfig

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// planSystem says what would be written where the operating system itself says whom programs ask, as a diff to nothing
// of ours.
func planSystem(mode string, c Config) string {
	var b strings.Builder
	add := func(text string) {
		for line := range strings.Lines(text) {
			b.WriteString("+" + printable(strings.TrimSuffix(line, "\n")) + "\n")
		}
	}
	switch mode {
	case modeResolvd:
		b.WriteString("--- no proposal of ours\n+++ a proposal of ours to resolvd, and a line in " + confPath + "\n")
		for _, addr := range c.written() {
			fmt.Fprintf(&b, "+nameserver %s %s%s\n", addr, resolvdMark, resolvdLink)
		}
		add(string(withSearch(nil, c.Search, "")))
	case modeScutil:
		files := resolverFiles(c)
		delete(files, ".")
		for _, name := range slices.Sorted(maps.Keys(files)) {
			fmt.Fprintf(&b, "--- no file of ours\n+++ %s/%s\n", resolverDir, name)
			add(files[name])
		}
		if c.takesAll() {
			fmt.Fprintf(&b, "--- nothing of ours in configd's store\n+++ what scutil is told\n")
			add(scutilScript(c))
		}
	case modeNRPT:
		rules, _ := nrptRules(c)
		for _, rule := range rules {
			fmt.Fprintf(&b, "--- no rule of ours\n+++ HKLM\\%s\\%s\n", nrptLocal, rule.key)
			for _, v := range rule.values {
				add(v.name + " " + v.value.String())
			}
		}
		if len(c.Search) > 0 {
			fmt.Fprintf(&b, "--- HKLM\\%s\\%s\n+++ the same, with ours before\n", tcpip, searchList)
			add(strings.Join(c.Search, ","))
		}
	}
	return b.String()
}

func (v regValue) String() string {
	switch v.Kind {
	case regStrings:
		return strings.Join(v.List, " ")
	case regNumber:
		return fmt.Sprint(v.Number)
	}
	return v.Text
}
