package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string //nolint:gochecknoglobals // the linker can set nothing else

// versionResult is what `meshdns version --json` prints.
type versionResult struct {
	Schema  string `json:"schema"` // meshdns.version/v1
	Version string `json:"version"`
	Go      string `json:"go"`
	System  string `json:"system"`
}

// versionCommand prints what a report of a problem should begin with.
func (a *app) versionCommand() *cobra.Command {
	return withJSON(a.leaf("version", "Print the version", func(context.Context, []string) error {
		v := versionResult{
			Schema:  "meshdns.version/v1",
			Version: currentVersion(),
			Go:      runtime.Version(),
			System:  runtime.GOOS + "/" + runtime.GOARCH,
		}
		return a.print(v, func(w io.Writer) {
			fmt.Fprintf(w, "meshdns %s (%s, %s)\n", v.Version, v.Go, v.System)
		})
	}))
}

// currentVersion is this program's version.
func currentVersion() string {
	info, _ := debug.ReadBuildInfo()
	return versionOf(version, info)
}

// versionOf is the linker's version, or the module's as `go install` records it, or the commit that was built.
func versionOf(linked string, info *debug.BuildInfo) string {
	if linked != "" {
		return linked
	}
	if info == nil {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	commit, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			commit = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if commit == "" {
		return "devel"
	}
	return "devel-" + commit + dirty
}
