//go:build !unix

package node

import (
	"cmp"
	"path/filepath"
)

// systemPaths are an administrator's.
func systemPaths(getenv func(string) string) Paths {
	dir := filepath.Join(cmp.Or(getenv("ProgramData"), `C:\ProgramData`), "meshdns")
	return Paths{
		Config: filepath.Join(dir, "meshdns.yaml"),
		Map:    filepath.Join(dir, "map.yaml"),
		State:  filepath.Join(dir, "state"),
		Socket: filepath.Join(dir, "meshdns.sock"),
	}
}
