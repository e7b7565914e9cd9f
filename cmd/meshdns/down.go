package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// downTimeout is how long `down` waits: longer than a node's own bound of 2 s on putting things back.
const downTimeout = 10 * time.Second

// downCommand ends the daemon. Right after it another one can start.
func (a *app) downCommand() *cobra.Command {
	cmd := a.leaf("down", "End the running node", func(ctx context.Context, _ []string) error {
		ctx, cancel := context.WithTimeout(ctx, downTimeout)
		defer cancel()
		if err := a.client().Down(ctx); err != nil {
			return err
		}
		a.say("down")
		return nil
	})
	cmd.Long = "End the running node, and return when it has put everything back."
	return cmd
}
