package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// serveShareCommand makes a link that lets one browser in.
func (a *app) serveShareCommand(f serveFlags) *cobra.Command {
	var opens string
	var lasts, stay time.Duration
	cmd := a.leaf("share", "Make a link that lets one browser in, once", func(ctx context.Context, _ []string) error {
		kind, port, err := f.place()
		if err != nil {
			return err
		}
		share := a.client().ServeShare()
		share.Public, share.Kind, share.Port, share.Name, share.Domain, share.Path = f.public, kind, port, f.name, f.domain, f.path
		share.Opens, share.For, share.Stay = opens, lasts, stay
		reply, err := a.client().ShareServed(ctx, share)
		if err != nil {
			return err
		}
		return a.print(reply, func(w io.Writer) {
			fmt.Fprintf(w, "%s\n", reply.Link)
			a.say("it works once, until %s; without a link, or another way to log in, nobody comes in any more", minute(reply.Until))
		})
	})
	f.places(cmd)
	cmd.Flags().StringVar(&opens, "opens", "", "`path` that it opens, with all below if it ends in a slash; all if not given")
	cmd.Flags().DurationVar(&lasts, "for", 0, "`time` in which it can be taken; a day if not given")
	cmd.Flags().DurationVar(&stay, "stay", 0, "`time` for which whoever takes it stays in; 12h if not given")
	cmd.Long = "Make a link to what is served in the background. The first browser that opens it stays in for --stay; others are told that it was\n" +
		"taken. From the first link on nobody comes in without one, unless passwords or a login are set (--access)."
	return withJSON(cmd)
}

// servePasswordCommand hashes a password for the rules.
func (a *app) servePasswordCommand() *cobra.Command {
	cmd := a.leaf("password", "Hash a password for the users of --access", func(ctx context.Context, _ []string) error {
		var password string
		var err error
		if tty, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(tty.Fd())) {
			password, err = a.askSecret(ctx, tty, "password: ")
		} else if password, err = firstLine(a.stdin, "stdin"); err == nil && password == "" {
			err = &usageError{errors.New("there is no password to read"), "meshdns serve password"}
		}
		if err != nil {
			return err
		}
		hash, err := a.client().HashPassword(password)
		if err != nil {
			return &usageError{err, "meshdns serve password"}
		}
		fmt.Fprintln(a.stdout, hash)
		return nil
	})
	cmd.Long = "Read a password from the terminal, or a line of stdin, and print the hash for the rules: {\"basic\": {\"users\": {\"ann\": HASH}}}."
	return cmd
}
