package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// joinCommand takes a place in a tailnet.
func (a *app) joinCommand() *cobra.Command {
	var name, file string
	var up bool
	cmd := a.leaf("join [INVITE]", "Join a tailnet by an invite", func(ctx context.Context, args []string) error {
		if up && a.json {
			return &usageError{errors.New("--up goes on with a node, which has no result as JSON"), "meshdns join"}
		}
		invite, err := a.readInvite(args, file)
		if err != nil {
			return err
		}
		return a.join(ctx, invite, name, up)
	})
	cmd.Long = "Join the tailnet that an invite of `meshdns gateway invite` is for. The invite is a secret: it is read from stdin, or from\n" +
		"--file. INVITE on the command line works, but the machine's other users can read it there."
	cmd.Flags().StringVar(&name, "name", "", "this machine's `name`, with an invite that has none")
	cmd.Flags().StringVar(&file, "file", "", "`file` that holds the invite")
	cmd.Flags().BoolVar(&up, "up", false, "go on as `meshdns up`")
	return withJSON(cmd)
}

func (a *app) join(ctx context.Context, invite, name string, up bool) error {
	paths, err := a.places(false)
	if err != nil {
		return err
	}
	joined, err := paths.Join(ctx, invite, name, func(line string) { a.say("%s", line) })
	if err != nil {
		return err
	}
	err = a.print(joined, func(w io.Writer) {
		fmt.Fprintf(w, "node\t%s\n", joined.Node)
		fmt.Fprintf(w, "addresses\t%s\n", addressWords(joined.Addresses))
	})
	if err != nil {
		return err
	}
	if joined.Lock {
		a.say("other nodes speak to this one once the tailnet's owner has signed it")
	}
	if up {
		return a.up(ctx, false, false)
	}
	a.say("next: meshdns up")
	return nil
}

// maxInviteText bounds what is read as an invite.
const maxInviteText = 4096

// readInvite reads the invite from where it is.
func (a *app) readInvite(args []string, file string) (string, error) {
	var from io.Reader = a.stdin
	switch {
	case len(args) > 0 && file != "":
		return "", &usageError{errors.New("an invite and --file"), "meshdns join"}
	case len(args) > 0 && args[0] != "-":
		a.say("an invite on the command line can be read by this machine's other users, and stays in the shell's history")
		a.hint("give it on stdin, or in a file: meshdns join --file FILE")
		return args[0], nil
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		from = f
	case isTerminal(a.stdin):
		a.say("paste the invite, then Enter:")
	}
	line, err := bufio.NewReader(io.LimitReader(from, maxInviteText)).ReadString('\n')
	line = strings.TrimSpace(line)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return "", fmt.Errorf("reading the invite: %w", err)
	case line == "":
		return "", &usageError{errors.New("there is no invite to read"), "meshdns join"}
	}
	return line, nil
}
