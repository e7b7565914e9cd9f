package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshdns/meshdns/node"
)

const (
	// confirmTime is how long a takeover with --confirm lasts unless it is confirmed: time enough to open a second
	// session and see whether names still resolve.
	confirmTime = 30 * time.Second
	// changeTimeout is how long a change of the machine's DNS may take, its verification by a real lookup included.
	changeTimeout = 20 * time.Second
)

// planCommand shows what would change. It asks the daemon first, since that knows its stub's real address.
func (a *app) planCommand() *cobra.Command {
	cmd := a.leaf("plan", "Show what taking over the machine's DNS would change, and why in that way",
		func(ctx context.Context, _ []string) error {
			plan, err := ask(ctx, func(ctx context.Context) (node.PlanResult, error) {
				plan, err := a.client().Plan(ctx)
				if !noDaemon(err) {
					return plan, err
				}
				return a.planAlone(ctx)
			})
			if err != nil {
				return err
			}
			return a.print(plan, func(w io.Writer) { writePlan(w, plan) })
		})
	cmd.Long = "Show what taking over the machine's DNS would change, and why in that way. It changes nothing."
	return withJSON(cmd)
}

func (a *app) planAlone(ctx context.Context) (node.PlanResult, error) {
	n, err := a.idleNode()
	if err != nil {
		return node.PlanResult{}, err
	}
	return n.Plan(ctx)
}

// writePlan writes the mode, the facts that led to it, and the change as a diff.
func writePlan(w io.Writer, p node.PlanResult) {
	if p.Possible {
		fmt.Fprintf(w, "mode\t%s\n", p.Mode)
	} else {
		fmt.Fprintf(w, "mode\tnone: %s\n", p.Reason)
		if p.Hint != "" {
			fmt.Fprintf(w, "hint\t%s\n", p.Hint)
		}
	}
	for _, fact := range p.Trace {
		fmt.Fprintf(w, "fact\t%s\n", fact)
	}
	if p.Diff != "" {
		fmt.Fprintf(w, "\n%s", p.Diff)
	}
}

// applyCommand takes over the machine's DNS. It needs the daemon: without a resolver there is nothing to point at.
func (a *app) applyCommand() *cobra.Command {
	var confirm bool
	cmd := a.leaf("apply", "Take over the machine's DNS", func(ctx context.Context, _ []string) error {
		// Whoever cuts off the session that they came by cannot undo it; sshd looks clients' names up, for one.
		if a.getenv("SSH_CONNECTION") != "" && !confirm {
			a.hint("this session came over SSH: meshdns dns apply --confirm undoes itself after 30 s unless confirmed")
		}
		var limit time.Duration
		if confirm {
			limit = confirmTime
		}
		result, err := a.change(ctx, func(ctx context.Context) (node.Takeover, error) {
			return a.client().Apply(ctx, limit)
		})
		if err != nil || !confirm {
			return err
		}
		return a.awaitConfirmation(ctx, result)
	})
	cmd.Long = "Have the running node take over the machine's DNS, after dns restore gave it back or where it was off."
	cmd.Flags().BoolVar(&confirm, "confirm", false, "undo it after 30 s unless confirmed")
	return withJSON(cmd)
}

// awaitConfirmation waits for Enter on a terminal. Elsewhere it is for `dns confirm` to come in time.
func (a *app) awaitConfirmation(ctx context.Context, result node.Takeover) error {
	if result.Until == nil {
		return nil
	}
	if !isTerminal(a.stdin) {
		a.hint("keep it with: meshdns dns confirm; without that it is undone in 30 s")
		return nil
	}
	fmt.Fprintf(a.stderr, "meshdns: press Enter to keep it; without that it is undone in 30 s: ")
	ctx, cancel := context.WithDeadline(ctx, *result.Until)
	defer cancel()
	pressed := make(chan error, 1)
	// A read from a terminal cannot be cut short; the process ends soon after, and this goroutine with it.
	go func() {
		_, err := bufio.NewReader(a.stdin).ReadString('\n')
		pressed <- err
	}()
	select {
	case err := <-pressed:
		if err != nil {
			return fmt.Errorf("reading the confirmation: %w", err)
		}
		_, err = a.client().Confirm(ctx)
		if err == nil {
			a.say("confirmed")
		}
		return err
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
		if ctx.Err() == context.Canceled {
			return ctx.Err()
		}
		return fmt.Errorf("not confirmed, so the machine's DNS was put back: %w", node.ErrTimeout)
	}
}

func (a *app) confirmCommand() *cobra.Command {
	return withJSON(a.leaf("confirm", "Keep what dns apply --confirm did", func(ctx context.Context, _ []string) error {
		_, err := a.change(ctx, a.client().Confirm)
		return err
	}))
}

// restoreCommand gives the machine's DNS back, whether a node runs, died, or was never there.
func (a *app) restoreCommand() *cobra.Command {
	cmd := a.leaf("restore", "Give the machine's DNS back", func(ctx context.Context, _ []string) error {
		result, err := a.change(ctx, func(ctx context.Context) (node.Takeover, error) {
			result, err := a.client().Restore(ctx)
			if !noDaemon(err) {
				return result, err
			}
			return a.restoreAlone(ctx)
		})
		if err == nil && len(result.Left) > 0 {
			return errDegraded
		}
		return err
	})
	cmd.Long = "Give the machine's DNS back. A running node does it and leaves it alone until dns apply; without one the\n" +
		"journal of the node that died says what to put back. What was there is not written over what has come since.\n" +
		"Then it asks managers whether they have forgotten the node, tries the nameservers, and tells each step. What is\n" +
		"left to be done by somebody is told with its command, and then it ends with 6. It is safe to call at any time."
	return withJSON(cmd)
}

// restoreAlone needs no configuration but the places: a broken configuration must not keep a machine without DNS.
func (a *app) restoreAlone(ctx context.Context) (node.Takeover, error) {
	paths, err := a.places(false)
	if err != nil {
		return node.Takeover{}, err
	}
	return paths.Restore(ctx, a.root)
}

// change runs a change of the machine's DNS and prints what came of it.
func (a *app) change(ctx context.Context, call func(context.Context) (node.Takeover, error)) (node.Takeover, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	result, err := call(ctx)
	if err != nil {
		return result, err
	}
	return result, a.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "takeover: %s\n", takeoverLine(result))
		for _, step := range result.Steps {
			if step != result.Reason {
				fmt.Fprintf(w, "step: %s\n", step)
			}
		}
		for _, left := range result.Left {
			fmt.Fprintf(w, "left: %s\n", left)
		}
	})
}
