package node

import (
	"errors"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// FileCheck is what CheckFiles found in one file.
type FileCheck struct {
	File     string
	Kind     string // config or map
	Problems []Problem
}

// The kinds of files.
const (
	kindConfig = "config"
	kindMap    = "map"
)

// CheckFiles finds everything that is wrong in configurations and maps, and in how they go together: every
// configuration is checked against every map. A file that cannot be read has that as its problem. Which kind a file is
// is told from its keys. The environment has no say: what is checked are the files.
func CheckFiles(files ...string) []FileCheck {
	checks := make([]FileCheck, len(files))
	configs := map[int]Config{}
	var sound []*Map
	for i, file := range files {
		c, m, check := checkFile(file)
		checks[i] = check
		if m != nil {
			sound = append(sound, m)
		}
		if check.Kind == kindConfig {
			configs[i] = c
		}
	}
	for i, c := range configs {
		for _, m := range sound {
			checks[i].add(c.ValidateWith(m))
		}
		checks[i].Problems = Problems(checks[i].Problems).sorted()
	}
	return checks
}

// checkFile reads and checks one file. The map is nil if it is none or not valid.
func checkFile(file string) (Config, *Map, FileCheck) {
	check := FileCheck{File: file, Kind: kindOf(file, nil)}
	data, err := readFile(file, maxMap)
	if err != nil {
		check.add(err)
		return DefaultConfig(), nil, check
	}
	check.Kind = kindOf(file, data)
	if check.Kind == kindMap {
		m, err := parseMap(file, data)
		check.add(err)
		return Config{}, m, check
	}
	// By its file, since who may write that decides whether it may name commands.
	c, problems, err := readConfigFile(file)
	check.add(err)
	check.add(problems.err())
	if err == nil {
		check.add(c.Validate())
	}
	return c, nil, check
}

// add notes what an error says, unless something was said about the same place already: a value that cannot be read
// cannot be right either.
func (f *FileCheck) add(err error) {
	var problems Problems
	if err != nil && !errors.As(err, &problems) {
		problems = Problems{{Msg: err.Error(), Advice: hintOf(err)}}
	}
	before := f.Problems
	for _, p := range problems {
		same := func(q Problem) bool { return p.Line > 0 && q.Line == p.Line && q.Column == p.Column }
		if !slices.ContainsFunc(before, same) {
			f.Problems = append(f.Problems, p)
		}
	}
}

// kindOf tells from its keys whether data is a configuration or a map. Where they could be either's the file's name
// tells, and then which of the two it would be without a problem.
func kindOf(file string, data []byte) string {
	keys := topKeys(data)
	forConfig, forMap := keysIn(keys, reflect.TypeFor[Config]()), keysIn(keys, reflect.TypeFor[mapFile]())
	named := strings.Contains(strings.ToLower(filepath.Base(file)), "map")
	switch {
	case forConfig != forMap:
		if forMap > forConfig {
			return kindMap
		}
	case named:
		return kindMap
	case len(keys) > 0:
		var d decoder
		c := DefaultConfig()
		if d.document(data, &c); len(d.problems) == 0 {
			return kindConfig
		}
		if _, err := parseMap(file, data); err == nil {
			return kindMap
		}
	}
	return kindConfig
}

// topKeys are the keys of a document, also of one that is not quite YAML.
func topKeys(data []byte) []string {
	var keys []string
	if root, _ := parseYAML(data); root != nil {
		for _, key := range root.keys {
			keys = append(keys, key.text)
		}
		return keys
	}
	for _, match := range regexp.MustCompile(`(?m)^([a-z]+)[ \t]*:`).FindAllSubmatch(data, -1) {
		keys = append(keys, string(match[1]))
	}
	return keys
}

// keysIn counts the keys that a struct type reads.
func keysIn(keys []string, t reflect.Type) int {
	known, n := keysOf(t), 0
	for _, key := range keys {
		if slices.Contains(known, key) {
			n++
		}
	}
	return n
}
