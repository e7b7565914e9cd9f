package node

import (
	"testing"
)

// mustParse is parseMap of a text that is valid.
func mustParse(t *testing.T, text string) *Map {
	t.Helper()
	m, err := parseMap("map.yaml", []byte(text))
	if err != nil {
		t.Fatalf("parseMap: %v", err)
	}
	return m
}
