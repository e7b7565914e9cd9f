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

func (a *app) queryCommand() *cobra.Command {
	var server string
	cmd := a.leaf("query NAME [TYPE]", "Ask the resolver for a name's records", func(ctx context.Context, args []string) error {
		result, err := ask(ctx, func(ctx context.Context) (node.QueryResult, error) {
			if server == "" {
				return a.client().Query(ctx, args[0], argument(args, 1))
			}
			at, err := parseServer(server)
			if err != nil {
				return node.QueryResult{}, err
			}
			return node.Query(ctx, at, args[0], argument(args, 1))
		})
		if err != nil {
			return err
		}
		return a.printAnswer(result)
	})
	cmd.Long = "Ask the resolver for a name's records, as any program on this machine would, and print their data.\n" +
		"TYPE is A unless given, and PTR for an address."
	cmd.ValidArgsFunction = a.completeNames
	cmd.Flags().StringVar(&server, "server", "", "ask this `address` instead of the daemon's")
	return a.withJSON(cmd)
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
	name := strings.TrimSuffix(r.Name, ".")
	switch {
	case r.Rcode == "NXDOMAIN":
		return fmt.Errorf("%s: no such name (NXDOMAIN, from %s): %w", name, from, node.ErrNotFound)
	case r.Rcode != "NOERROR":
		return &answerError{name: name, result: r, from: from}
	case len(r.Answer) == 0:
		return fmt.Errorf("%s: the name has no %s records (NOERROR, from %s): %w", name, r.Type, from, node.ErrNotFound)
	case !a.json:
		a.say("%s from %s in %.1f ms", r.Rcode, from, r.Elapsed)
	}
	return nil
}

// answerError is an answer that says that the server could not or would not answer.
type answerError struct {
	name   string
	result node.QueryResult
	from   string
}

func (e *answerError) Error() string {
	why := e.result.Rcode
	if e.result.Extended != "" {
		why += ": " + e.result.Extended
	}
	return fmt.Sprintf("%s: %s (from %s)", e.name, why, e.from)
}

// Hint says how to find out more.
func (e *answerError) Hint() string {
	return fmt.Sprintf("see why: meshdns dns explain %s %s", e.name, e.result.Type)
}

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
	return a.withJSON(cmd)
}

// explainAlone explains from the configuration, and says so.
func (a *app) explainAlone(ctx context.Context, name, qtype string) (node.ExplainResult, error) {
	cfg, options, err := a.load(false)
	if err != nil {
		return node.ExplainResult{}, err
	}
	a.say("no daemon runs: this is what the configuration would do, without a cache or what the network tells")
	return node.Explain(ctx, cfg, options, name, qtype)
}

func writeExplanation(w io.Writer, r node.ExplainResult) {
	fmt.Fprintf(w, "%s %s\n", strings.TrimSuffix(r.Name, "."), r.Type)
	for i, step := range r.Steps {
		fmt.Fprintf(w, "%2d. %s\t%s\n", i+1, step.What, step.Detail)
	}
	for _, record := range r.Answer {
		fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(record, "\t", " "))
	}
}

func (a *app) flushCommand() *cobra.Command {
	cmd := a.leaf("flush [NAME]", "Drop a name from the cache, or everything", func(ctx context.Context, args []string) error {
		result, err := ask(ctx, func(ctx context.Context) (node.FlushResult, error) {
			return a.client().Flush(ctx, argument(args, 0))
		})
		if err != nil {
			return err
		}
		return a.print(result, func(w io.Writer) {
			fmt.Fprintf(w, "dropped %s\n", count(result.Dropped, "cache entry", "cache entries"))
		})
	})
	return a.withJSON(cmd)
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

// parseServer reads a server's address, with port 53 if it has none.
func parseServer(s string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr, 53), nil
	}
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, &usageError{
			err:     fmt.Errorf("--server %q is neither an address nor an address with a port", s),
			command: "meshdns dns query",
		}
	}
	return at, nil
}
