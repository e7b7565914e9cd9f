package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completionTimeout is how long somebody who pressed Tab is kept waiting for the daemon.
const completionTimeout = time.Second

// completionCommand prints cobra's scripts. They call the hidden command __complete, so that they never grow old.
func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	cmd := a.leaf("completion SHELL", "Print the completion script of a shell: "+strings.Join(shells, ", "), nil)
	cmd.Example = "  meshdns completion bash > /etc/bash_completion.d/meshdns"
	cmd.ValidArgs = shells
	cmd.ValidArgsFunction = nil
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.json {
			return errNoJSON(cmd)
		}
		root := cmd.Root()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(a.stdout, true)
		case "zsh":
			return root.GenZshCompletion(a.stdout)
		case "fish":
			return root.GenFishCompletion(a.stdout, true)
		case "powershell":
			return root.GenPowerShellCompletionWithDesc(a.stdout)
		}
		err := fmt.Errorf("unknown shell %q: it is one of %s", args[0], strings.Join(shells, ", "))
		return &usageError{err: err, command: cmd.CommandPath()}
	}
	return cmd
}

// completeNames completes the names of the tailnet, which only the daemon knows.
func (a *app) completeNames(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	// Errors stay unsaid: they would land in the middle of what somebody is typing.
	status, err := a.client().Status(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, n := range status.Nodes {
		for _, label := range append([]string{n.Name}, n.Names...) {
			if name := label + "." + status.Zone; strings.HasPrefix(name, start) {
				names = append(names, name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
