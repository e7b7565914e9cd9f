package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// rotateTimeout is how long a change of keys is waited for: longer than the daemon waits for its gateway.
const rotateTimeout = 20 * time.Second

// keyCommand is the tree below "key".
func (a *app) keyCommand() *cobra.Command {
	return a.group("key", "Show this machine's keys, or change them", a.keyShowCommand(), a.keyRotateCommand())
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

// keyRotateCommand changes the keys of a machine that has joined.
func (a *app) keyRotateCommand() *cobra.Command {
	var both bool
	cmd := a.leaf("rotate", "Change this machine's WireGuard key", func(ctx context.Context, _ []string) error {
		ctx, cancel := context.WithTimeout(ctx, rotateTimeout)
		defer cancel()
		keys, err := a.client().RotateKey(ctx, both)
		if err != nil {
			return err
		}
		return a.print(keys, func(w io.Writer) {
			fmt.Fprintf(w, "wireguard\t%s\n", keys.WireGuard)
			fmt.Fprintf(w, "control\t%s\n", keys.Control)
		})
	})
	cmd.Long = "Change the WireGuard key of this machine, which has joined a gateway. The old control key vouches for the new keys, so other\n" +
		"nodes believe them; where the owner has set a lock, its signature is needed anew. Connections go on."
	cmd.Flags().BoolVar(&both, "control", false, "change the control key too")
	return withJSON(cmd)
}
