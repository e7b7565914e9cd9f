package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshdns/meshdns/node"
)

// statusCommand shows how the node is. That it is degraded is a result and no failure, unless --check asks for that.
func (a *app) statusCommand() *cobra.Command {
	var check bool
	cmd := a.leaf("status", "Show how the node is", func(ctx context.Context, _ []string) error {
		status, err := ask(ctx, a.client().Status)
		if err != nil {
			return err
		}
		err = a.print(status, func(w io.Writer) { a.writeStatus(w, status) })
		if err == nil && check && status.State != "ok" {
			return errDegraded
		}
		return err
	})
	cmd.Flags().BoolVar(&check, "check", false, "exit with 6 if the node is degraded")
	return withJSON(cmd)
}

// writeStatus writes the state in two columns, what is wrong right below the state, then the nodes.
func (a *app) writeStatus(w io.Writer, s node.Status) {
	colour := green
	if s.State != "ok" {
		colour = yellow
	}
	fmt.Fprintf(w, "state\t%s, up %s, pid %d, version %s\n", a.paint(a.stdout, colour, s.State),
		time.Since(s.Started).Round(time.Second), s.PID, s.Version)
	for _, problem := range append(s.Problems, s.Map.Problems...) {
		fmt.Fprintf(w, "problem\t%s\n", problem)
	}
	fmt.Fprintf(w, "node\t%s\n", s.Node)
	fmt.Fprintf(w, "zone\t%s: %s, %s (%s)\n", s.Zone, count(s.Map.Nodes, "node", "nodes"),
		count(s.Map.Records, "record", "records"), s.Map.Source)
	writeTunnel(w, s)
	writeDNS(w, s.DNS)
	for _, c := range s.Certs {
		line := c.State
		if c.NotAfter != nil {
			line += ", until " + minute(*c.NotAfter)
		}
		fmt.Fprintf(w, "certificate\t%s: %s\n", c.Name, line)
	}
	for _, f := range s.Funnels {
		fmt.Fprintf(w, "funnel\t%s: %s\n", f.Node, f)
	}
	for _, vpn := range s.VPNs {
		fmt.Fprintf(w, "vpn\t%s\n", vpn)
	}
	fmt.Fprintln(w)
	for _, n := range s.Nodes {
		name := n.Name
		if n.Self {
			name += " *"
		}
		names := n.Names
		if n.Doubt != "" {
			names = append(slices.Clip(names), "(not spoken to: "+n.Doubt+")")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", name, joinAddrs(n.Addresses), strings.Join(names, " "))
	}
}

// writeDNS writes the lines that status and dns status have in common.
func writeDNS(w io.Writer, s node.DNSStatus) {
	fmt.Fprintf(w, "stub\t%s\n", strings.Join(append([]string{s.Stub}, s.Listen...), " "))
	fmt.Fprintf(w, "takeover\t%s\n", takeoverLine(s.Takeover))
	if c := s.Containers; c.Service != "" {
		fmt.Fprintf(w, "containers\t%s: %s; networks %s\n", c.Service, c.Answers, orNone(strings.Join(c.Networks, ", ")))
		for _, copied := range c.Copies {
			if copied.Mend != "" {
				fmt.Fprintf(w, "containers\tof %s ask %s; to mend: %s\n", copied.Engine, strings.Join(copied.Servers, " "), copied.Mend)
			}
		}
	}
	fmt.Fprintf(w, "base\t%s\n", orNone(strings.Join(s.Base, " ")))
	if p := s.Portal; p.State == "up" && p.Since != nil {
		line := "up for " + time.Since(*p.Since).Round(time.Second).String()
		if p.URI != "" {
			line += "; sign in at " + p.URI
		}
		fmt.Fprintf(w, "portal\t%s: %s\n", line, p.Reason)
	}
}

// takeoverLine is a takeover in one line: "on (direct): /etc/resolv.conf names the stub".
func takeoverLine(t node.Takeover) string {
	line := t.State
	switch {
	case t.Mode != "" && t.Asks == "split":
		line += " (" + t.Mode + ", for the tailnet's names and routes)"
	case t.Mode != "" && t.Asks != "":
		line += " (" + t.Mode + ", for all names)"
	case t.Mode != "":
		line += " (" + t.Mode + ")"
	}
	if t.Reason != "" {
		line += ": " + t.Reason
	}
	if t.Until != nil {
		line += fmt.Sprintf("; undone in %s unless confirmed", time.Until(*t.Until).Round(time.Second))
	}
	return line
}

func (a *app) dnsStatusCommand() *cobra.Command {
	return withJSON(a.leaf("status", "Show how the resolver is and who answers for the machine's DNS",
		func(ctx context.Context, _ []string) error {
			s, err := ask(ctx, a.client().DNSStatus)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) {
				fmt.Fprintf(w, "zone\t%s\n", s.Zone)
				fmt.Fprintf(w, "search\t%s\n", orNone(strings.Join(s.Search, " ")))
				writeDNS(w, s)
				writeRoutes(w, s)
				for _, u := range s.Upstreams {
					fmt.Fprintf(w, "upstream\t%s for %s: %s, %.1f ms, %s, %s\n", u.Upstream, listSuffixes(u.Routes), u.State, u.RTT,
						count(int(u.Queries), "query", "queries"), count(int(u.Failures), "failure", "failures"))
				}
				fmt.Fprintf(w, "cache\t%s, %d KiB, %d hits, %d misses\n", count(s.Cache.Entries, "entry", "entries"),
					(s.Cache.Bytes+1023)/1024, s.Cache.Hits, s.Cache.Misses)
				fmt.Fprintf(w, "queries\t%d\n", s.Queries)
			})
		}))
}

// writeRoutes writes the routes that somebody chose a line each. Those learnt from the network are many, so those that
// go to the same servers share one; --json has them all.
func writeRoutes(w io.Writer, s node.DNSStatus) {
	learnt := map[string][]string{}
	var order []string
	for _, r := range s.Routes {
		servers := strings.Join(r.Upstreams, " ")
		if r.Source != "learnt" {
			fmt.Fprintf(w, "route\t%s: %s (%s)\n", r.Suffix, servers, r.Source)
			continue
		}
		if learnt[servers] == nil {
			order = append(order, servers)
		}
		learnt[servers] = append(learnt[servers], r.Suffix)
	}
	for _, servers := range order {
		fmt.Fprintf(w, "learnt\t%s: %s\n", listSuffixes(learnt[servers]), servers)
	}
}

// listSuffixes names suffixes but only counts reverse zones, of which a private range alone has 16.
func listSuffixes(suffixes []string) string {
	var words []string
	reverse := 0
	for _, suffix := range suffixes {
		if s := strings.TrimSuffix(suffix, "."); strings.HasSuffix(s, ".in-addr.arpa") || strings.HasSuffix(s, ".ip6.arpa") {
			reverse++
			continue
		}
		words = append(words, suffix)
	}
	if reverse > 0 {
		words = append(words, count(reverse, "reverse zone", "reverse zones"))
	}
	return strings.Join(words, ", ")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func joinAddrs(addrs []netip.Addr) string {
	words := make([]string, len(addrs))
	for i, addr := range addrs {
		words[i] = addr.String()
	}
	return strings.Join(words, " ")
}
