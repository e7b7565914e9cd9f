package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// dropCommand has this machine speak to a node no more.
func (a *app) dropCommand() *cobra.Command {
	var undo bool
	cmd := a.leaf("drop [NODE]", "Speak to a node no more, without its gateway", func(ctx context.Context, args []string) error {
		if len(args) == 0 && undo {
			return &usageError{errors.New("NODE is missing"), "meshdns drop"}
		}
		client := a.client()
		reply, err := client.Dropped(ctx)
		if len(args) > 0 {
			reply, err = client.Drop(ctx, args[0], undo)
		}
		if err != nil {
			return err
		}
		return a.print(reply, func(w io.Writer) {
			for _, d := range reply.Dropped {
				fmt.Fprintf(w, "%s\t%s\tsince %s\n", d.Name, d.Key, d.Since.Local().Format(time.DateTime))
			}
			if len(reply.Dropped) == 0 {
				fmt.Fprintln(w, "no node is dropped")
			}
		})
	})
	cmd.Long = "Have this machine speak to a node no more, whatever its gateway or map says, until --undo. The node is known by its keys: a new\n" +
		"name or a start changes nothing. Its names still resolve. Without NODE, list who is dropped.\n\n" +
		"--undo also forgets what speaks against the keys that the map has for NODE now: other keys before, or a removal."
	cmd.Flags().BoolVar(&undo, "undo", false, "speak to it again, with the keys that the map has for it now")
	return withJSON(cmd)
}
