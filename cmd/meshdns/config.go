package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshdns/meshdns/node"
)

// configCommand is the tree below "config".
func (a *app) configCommand() *cobra.Command {
	return a.group("config", "Check the configuration, and show it", a.configCheckCommand(), a.configShowCommand())
}

// checkResult is what `meshdns config check --json` prints.
type checkResult struct {
	Schema string      `json:"schema"` // meshdns.config.check/v1
	Files  []fileCheck `json:"files"`
}

type fileCheck struct {
	File     string         `json:"file"`
	Kind     string         `json:"kind"` // config or map
	Problems []node.Problem `json:"problems"`
}

// configCheckCommand prints every problem as an error of its own, and on stdout a line for each file.
func (a *app) configCheckCommand() *cobra.Command {
	cmd := a.leaf("check [FILE...]", "Find everything that is wrong in configurations and maps", func(_ context.Context, args []string) error {
		files, err := a.filesToCheck(args)
		if err != nil {
			return err
		}
		result := checkResult{Schema: "meshdns.config.check/v1", Files: []fileCheck{}}
		var problems node.Problems
		for _, c := range node.CheckFiles(files...) {
			result.Files = append(result.Files, fileCheck{c.File, c.Kind, append([]node.Problem{}, c.Problems...)})
			problems = append(problems, c.Problems...)
		}
		err = a.print(result, func(w io.Writer) {
			for _, c := range result.Files {
				fmt.Fprintf(w, "%s: %s, %s\n", c.File, c.Kind, count(len(c.Problems), "problem", "problems"))
			}
		})
		if err != nil || len(problems) == 0 {
			return err
		}
		return problems
	})
	cmd.Long = "Find everything that is wrong in configurations and maps, and in how they go together.\n" +
		"Without FILE these are the configuration and the map that `meshdns up` would use."
	cmd.ValidArgsFunction = nil // files
	return withJSON(cmd)
}

// filesToCheck are the files named, or else those that up would read and that exist.
func (a *app) filesToCheck(args []string) ([]string, error) {
	if len(args) > 0 {
		return args, nil
	}
	paths, err := a.places(false)
	if err != nil {
		return nil, err
	}
	// A map that somebody named has to exist; what is wrong with the configuration itself is told when it is checked.
	cfg, _ := node.LoadConfigFile(paths.Config)
	_ = cfg.ApplyEnv(a.lookup)
	a.override(&cfg)
	files := []string{}
	for _, file := range []struct {
		path  string
		named bool
	}{{paths.Config, a.paths.Config != ""}, {cmp.Or(cfg.Map, paths.Map), cfg.Map != ""}} {
		if _, err := os.Stat(file.path); file.named || !errors.Is(err, fs.ErrNotExist) {
			files = append(files, file.path)
		}
	}
	if len(files) == 0 {
		a.say("there is neither %s nor %s: the defaults have no problems", paths.Config, paths.Map)
	}
	return files, nil
}

// showResult is what `meshdns config show --json` prints.
type showResult struct {
	Schema   string         `json:"schema"` // meshdns.config.show/v1
	Settings []node.Setting `json:"settings"`
}

// defaultsResult is what `meshdns config show --defaults --json` prints.
type defaultsResult struct {
	Schema string     `json:"schema"` // meshdns.config.defaults/v1
	Keys   []node.Key `json:"keys"`
}

// configShowCommand shows what is in effect, or would be. All three forms of it are YAML that can be read back.
func (a *app) configShowCommand() *cobra.Command {
	var defaults, daemon bool
	cmd := a.leaf("show", "Show the configuration in effect, and where each value comes from", func(ctx context.Context, _ []string) error {
		switch {
		case defaults && daemon:
			return &usageError{errors.New("--defaults and --daemon exclude each other"), "meshdns config show"}
		case defaults:
			var text strings.Builder
			if err := node.WriteDefaults(&text); err != nil {
				return err
			}
			return a.print(defaultsResult{"meshdns.config.defaults/v1", node.Describe()}, rawText(text.String()))
		case daemon:
			text, err := ask(ctx, a.client().Config)
			if err != nil {
				return err
			}
			return a.print(daemonConfig{"meshdns.config/v1", text}, rawText(text))
		}
		cfg, options, err := a.load(false)
		if err != nil {
			return err
		}
		settings := cfg.Settings(options.Paths.Config)
		return a.print(showResult{"meshdns.config.show/v1", settings}, func(w io.Writer) { writeSettings(w, settings) })
	})
	cmd.Flags().BoolVar(&defaults, "defaults", false, "show every key with its type, default and comment instead")
	cmd.Flags().BoolVar(&daemon, "daemon", false, "show what the running daemon uses instead")
	return withJSON(cmd)
}

// daemonConfig is what `meshdns config show --daemon --json` prints.
type daemonConfig struct {
	Schema string `json:"schema"` // meshdns.config/v1
	YAML   string `json:"yaml"`
}

// rawText writes text as it is, past the columns.
func rawText(text string) func(io.Writer) {
	return func(w io.Writer) { _, _ = io.WriteString(w, text) } // print looks at the error, when it flushes
}

// writeSettings writes the settings as YAML, with where they come from as comments.
func writeSettings(w io.Writer, settings []node.Setting) {
	var open []string // the blocks that the last key was in
	for _, s := range settings {
		blocks := strings.Split(s.Path, ".")
		key := blocks[len(blocks)-1]
		blocks = blocks[:len(blocks)-1]
		same := 0
		for same < len(open) && same < len(blocks) && open[same] == blocks[same] {
			same++
		}
		for i := same; i < len(blocks); i++ {
			fmt.Fprintf(w, "%s%s:\t\n", strings.Repeat("  ", i), blocks[i])
		}
		open = blocks
		fmt.Fprintf(w, "%s%s: %s\t# %s\n", strings.Repeat("  ", len(blocks)), key, s.Value, s.Source)
	}
}
