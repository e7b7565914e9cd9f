package main

import (
	"context"

	"github.com/spf13/cobra"
)

// connectCommand is one connection to a node on stdin and stdout.
func (a *app) connectCommand() *cobra.Command {
	cmd := a.leaf("nc NODE PORT", "Connect stdin and stdout to a node's port", func(ctx context.Context, args []string) error {
		return a.client().Connect(ctx, args[0], args[1], a.stdin, a.stdout)
	})
	cmd.Long = "Connect stdin and stdout to a TCP port of a node, through the running daemon. It works where the tailnet is inside\n" +
		"the daemon, too, as ssh's way there:\n\n  ssh -o ProxyCommand='meshdns nc %h %p' nas"
	cmd.ValidArgsFunction = a.completeNames
	return cmd
}
