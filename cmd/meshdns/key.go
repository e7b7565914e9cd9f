package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// keyCommand is the tree below "key".
func (a *app) keyCommand() *cobra.Command {
	return a.group("key", "Show this machine's keys, or change them", a.keyShowCommand())
}

// keyShowCommand prints the public keys, and makes the keys where there are none: a static map needs them before a start.
func (a *app) keyShowCommand() *cobra.Command {
	cmd := a.leaf("show", "Print this machine's public keys", func(context.Context, []string) error {
		paths, err := a.places(false)
		if err != nil {
			return err
		}
		keys, err := paths.Keys()
		if err != nil {
			return err
		}
		return a.print(keys, func(w io.Writer) {
			fmt.Fprintf(w, "wireguard\t%s\n", keys.WireGuard)
			fmt.Fprintf(w, "control\t%s\n", keys.Control)
		})
	})
	cmd.Long = "Print this machine's public keys: the one of WireGuard, which a map names it by, and the one that it shows its gateway.\n" +
		"They are made where there are none."
	return withJSON(cmd)
}
