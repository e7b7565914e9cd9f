package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshdns/meshdns/node"
)

// askTimeout is how long a command waits for the daemon: longer than the daemon's own bound of 4 s on a question.
const askTimeout = 6 * time.Second

// app is one run of the program: what the process gives, and the flags that many commands share.
type app struct {
	process
	json  bool
	paths node.Paths // as flags and the environment say; empty where they do not
	flags upFlags
}

// rootCommand is the whole tree.
func (a *app) rootCommand() *cobra.Command {
	root := a.group("meshdns", "Names for the machines of a private network",
		a.upCommand(), a.downCommand(), a.statusCommand(), a.pingCommand(), a.connectCommand(), a.joinCommand(), a.gatewayCommand(), a.keyCommand(), a.certCommand(), a.serveCommand(), a.funnelCommand(), a.doctorCommand(), a.dnsCommand(), a.configCommand(), a.serviceCommand(),
		a.dropCommand(), a.lockCommand(),
		a.versionCommand(), a.completionCommand())
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(helpCommand())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err: err, command: cmd.CommandPath()}
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.paths.Config, "config", a.getenv("MESHDNS_CONFIG"), "this machine's configuration `file`")
	flags.StringVar(&a.paths.Map, "map", "", "the map's `file`")
	flags.StringVar(&a.paths.State, "state-dir", a.getenv("MESHDNS_STATE_DIR"), "`directory` for what is kept")
	flags.StringVar(&a.paths.Socket, "socket", a.getenv("MESHDNS_SOCKET"), "the daemon's control `socket`")
	flags.BoolVar(&a.json, "json", false, "print the result as JSON")
	return root
}

// dnsCommand is the tree below "dns".
func (a *app) dnsCommand() *cobra.Command {
	return a.group("dns", "Ask the resolver, and look at the machine's DNS",
		a.dnsStatusCommand(), a.queryCommand(), a.explainCommand(), a.flushCommand(),
		a.planCommand(), a.applyCommand(), a.confirmCommand(), a.restoreCommand())
}

// group is a command that only holds others. Cobra alone would print help and succeed on a word it does not know.
func (a *app) group(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				err = fmt.Errorf("%w (did you mean %q?)", err, near[0])
			}
			return &usageError{err: err, command: cmd.CommandPath()}
		},
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(commands...)
	return cmd
}

// leaf is a command that does something. use names its arguments; at most as many as it names are taken, and those not
// in brackets are needed.
func (a *app) leaf(use, short string, do func(ctx context.Context, args []string) error) *cobra.Command {
	words := strings.Fields(use)[1:]
	most, least := len(words), 0
	for _, word := range words {
		if !strings.HasPrefix(word, "[") {
			least++
		}
		if strings.Contains(word, "...") {
			most = 1 << 10
		}
	}
	return &cobra.Command{
		Use:               use,
		Short:             short,
		ValidArgsFunction: cobra.NoFileCompletions,
		Args: func(cmd *cobra.Command, args []string) error {
			var err error
			switch {
			case len(args) < least:
				err = fmt.Errorf("%s is missing", words[len(args)])
			case len(args) > most:
				err = fmt.Errorf("unexpected argument %q", args[most])
			default:
				return nil
			}
			return &usageError{err: err, command: cmd.CommandPath()}
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.json && cmd.Annotations[hasResult] == "" {
				return errNoJSON(cmd)
			}
			return do(cmd.Context(), args)
		},
	}
}

// errNoJSON refuses --json where there is nothing to print as JSON.
func errNoJSON(cmd *cobra.Command) error {
	return &usageError{errors.New("--json: this command prints no result"), cmd.CommandPath()}
}

// helpCommand is cobra's, but a command that does not exist is an error: cobra shows the help of what is above it.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 {
				err = fmt.Errorf("unknown command %q for %q", rest[0], found.CommandPath())
			}
			if err != nil {
				return &usageError{err: err, command: found.CommandPath()}
			}
			return found.Help()
		},
	}
}

// hasResult marks the commands that print a result.
const hasResult = "result"

// withJSON marks a command that prints a result, so that it takes --json. The flag belongs to the whole tree: that is
// what lets it stand before the command.
func withJSON(cmd *cobra.Command) *cobra.Command {
	cmd.Annotations = map[string]string{hasResult: "yes"}
	return cmd
}

// client speaks to the running daemon.
func (a *app) client() node.Client { return node.Client{Socket: a.paths.Socket} }

// ask runs one call to the daemon within the time that a user waits.
func ask[T any](ctx context.Context, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return call(ctx)
}

// noDaemon reports whether err says that none runs, so that a command may do without.
func noDaemon(err error) bool { return errors.Is(err, node.ErrNoDaemon) }
