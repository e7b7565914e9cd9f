//go:build !unix

package certs

import (
	"os"
	"strings"
)

// syncDir does nothing: directories cannot be synced here.
func syncDir(string) error { return nil }

// point writes target to the file at path, in one step: links need a privilege here.
func point(path, target string) error { return writeFile(path, []byte(target+"\n"), 0o600) }

// pointed is what the file at path says.
func pointed(path string) (string, error) {
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), err
}
