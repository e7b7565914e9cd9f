package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshdns/meshdns/node"
)

// queryCommand asks through the daemon, which knows the search list and what will answer, or another server by itself.
func (a *app) queryCommand() *cobra.Command {
	var server addrPort
	cmd := a.leaf("query NAME [TYPE]", "Ask the resolver for a name's records", func(ctx context.Context, args []string) error {
		result, err := ask(ctx, func(ctx context.Context) (node.QueryResult, error) {
			if at := netip.AddrPort(server); at.IsValid() {
				return node.Query(ctx, at, args[0], argument(args, 1))
			}
			return a.client().Query(ctx, args[0], argument(args, 1))
		})
		if err != nil {
			return err
		}
		return a.printAnswer(result)
	})
	cmd.Long = "Ask the resolver for a name's records, as any program on this machine would, and print their data.\n" +
		"TYPE is A unless given, and PTR for an address."
	cmd.ValidArgsFunction = a.completeNames
	cmd.Flags().Var(&server, "server", "ask this `address` instead of the daemon")
	return withJSON(cmd)
}

// printAnswer prints the data of records alone, so that a script can use it as it is, and what else there is to tell
// on stderr.
func (a *app) printAnswer(r node.QueryResult) error {
	err := a.print(r, func(w io.Writer) {
		for _, record := range r.Answer {
			fmt.Fprintln(w, record.Data)
		}
	})
	if err != nil {
		return err
	}
	from := r.Server
	if r.Source != "" {
		from = r.Source + " at " + r.Server
	}
	problem := &answerError{result: r, from: from}
	switch {
	case r.Rcode == "NXDOMAIN":
		problem.text, problem.kind = "no such name", node.ErrNotFound
	case r.Rcode != "NOERROR":
		problem.text = "no answer"
	case len(r.Answer) == 0:
		problem.text, problem.kind = "no "+r.Type+" records", node.ErrNotFound
	default:
		if !a.json {
			a.say("%s from %s in %.1f ms", r.Rcode, from, r.Elapsed)
		}
		return nil
	}
	return problem
}

// answerError is an answer without the records that were asked for.
type answerError struct {
	text   string
	kind   error // node.ErrNotFound, or nil
	result node.QueryResult
	from   string
}

func (e *answerError) Error() string {
	why := e.result.Rcode
	if e.result.Extended != "" {
		why += ", " + e.result.Extended
	}
	return fmt.Sprintf("%s: %s (%s from %s)", strings.TrimSuffix(e.result.Name, "."), e.text, why, e.from)
}

func (e *answerError) Unwrap() error { return e.kind }

// Hint says how to find out more.
func (e *answerError) Hint() string {
	return fmt.Sprintf("see why: meshdns dns explain %s %s", strings.TrimSuffix(e.result.Name, "."), e.result.Type)
}

// explainCommand tells what answers a name. Not knowing a name is a result here, so the exit code is that of success.
func (a *app) explainCommand() *cobra.Command {
	cmd := a.leaf("explain NAME [TYPE]", "Tell step by step what answers a name and why", func(ctx context.Context, args []string) error {
		result, err := ask(ctx, func(ctx context.Context) (node.ExplainResult, error) {
			result, err := a.client().Explain(ctx, args[0], argument(args, 1))
			if !noDaemon(err) {
				return result, err
			}
			return a.explainAlone(ctx, args[0], argument(args, 1))
		})
		if err != nil {
			return err
		}
		return a.print(result, func(w io.Writer) { writeExplanation(w, result) })
	})
	cmd.Long = "Tell step by step what answers a name and why. Without a daemon it is made out from the configuration."
	cmd.ValidArgsFunction = a.completeNames
	return withJSON(cmd)
}

// explainAlone explains from the configuration, and says so.
func (a *app) explainAlone(ctx context.Context, name, qtype string) (node.ExplainResult, error) {
	n, err := a.idleNode()
	if err != nil {
		return node.ExplainResult{}, err
	}
	a.say("no daemon runs: this is what the configuration would do")
	return n.Explain(ctx, name, qtype)
}

// writeExplanation numbers the steps, so that people can talk about them, and ends with the records.
func writeExplanation(w io.Writer, r node.ExplainResult) {
	fmt.Fprintf(w, "%s %s\n", strings.TrimSuffix(r.Name, "."), r.Type)
	for i, step := range r.Steps {
		fmt.Fprintf(w, "%2d. %s\t%s\n", i+1, step.What, step.Detail)
	}
	for _, record := range r.Answer {
		fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(record, "\t", " "))
	}
}

// flushResult is what `meshdns dns flush --json` prints.
type flushResult struct {
	Schema  string `json:"schema"` // meshdns.dns.flush/v1
	Name    string `json:"name"`   // empty: everything
	Dropped int    `json:"dropped"`
}

// flushCommand drops what is cached. Nothing to drop is no error: afterwards it is as was asked for.
func (a *app) flushCommand() *cobra.Command {
	cmd := a.leaf("flush [NAME]", "Drop a name from the cache, or everything", func(ctx context.Context, args []string) error {
		name := argument(args, 0)
		dropped, err := ask(ctx, func(ctx context.Context) (int, error) { return a.client().Flush(ctx, name) })
		if err != nil {
			return err
		}
		return a.print(flushResult{"meshdns.dns.flush/v1", name, dropped}, func(w io.Writer) {
			fmt.Fprintf(w, "dropped %s\n", count(dropped, "cache entry", "cache entries"))
		})
	})
	return withJSON(cmd)
}

// argument is args[i], or "" if there are fewer.
func argument(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

// count is "1 node" or "2 nodes".
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
