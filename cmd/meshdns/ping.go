package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshdns/meshdns/node"
)

// pingResult is what a ping found, all of it.
type pingResult struct {
	Schema   string  `json:"schema"` // meshdns.pings/v1
	Node     string  `json:"node"`
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	Least    float64 `json:"least_ms"` // 0: nothing was received
	Path     string  `json:"path"`     // of the last answer: direct or gateway
	Endpoint string  `json:"endpoint"`
}

// pingCommand asks a node a few times whether it is there.
func (a *app) pingCommand() *cobra.Command {
	var times int
	var interval time.Duration
	cmd := a.leaf("ping NODE", "Ask another node whether it is there", func(ctx context.Context, args []string) error {
		if times < 1 || times > 1000 || interval < 100*time.Millisecond || interval > time.Minute {
			return &usageError{fmt.Errorf("--count is 1 to 1000 and --interval 100ms to 1m"), "meshdns ping"}
		}
		return a.ping(ctx, args[0], times, interval)
	})
	cmd.Long = "Ask another node through the tunnel whether it is there, and print how long the answer took and whether it came\n" +
		"directly or through the gateway. NODE is its name or an address of its. Two nodes begin through the gateway and go on\n" +
		"directly where they can, within seconds. Exits with 7 if nothing was answered."
	cmd.Flags().IntVar(&times, "count", 4, "how many `times`")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "the `time` between two questions")
	return withJSON(cmd)
}

// ping asks, and prints each answer when it comes.
func (a *app) ping(ctx context.Context, name string, times int, interval time.Duration) error {
	result := pingResult{Schema: "meshdns.pings/v1", Node: name}
	var last error
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := range times {
		if i > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		reply, err := a.client().Ping(ctx, name)
		if err != nil && exitCode(err) != exitTimeout {
			return err
		}
		result.Sent++
		if last = err; err != nil {
			a.say("%v", err)
			continue
		}
		result.Received++
		result.Node, result.Path, result.Endpoint = reply.Node, reply.Path, reply.Endpoint
		if result.Least == 0 || reply.Latency < result.Least {
			result.Least = reply.Latency
		}
		if !a.json {
			fmt.Fprintf(a.stdout, "%s (%s): %.1f ms, %s\n", reply.Node, reply.Address, reply.Latency, pathWords(reply.Path, reply.Endpoint))
		}
	}
	if result.Received == 0 {
		return last
	}
	if !a.json {
		return nil
	}
	return a.print(result, func(io.Writer) {})
}

// pathWords say by which way packets go.
func pathWords(path, endpoint string) string {
	switch path {
	case "direct":
		return "directly at " + endpoint
	case "gateway":
		return "through the gateway"
	}
	return "not known how"
}

// writeTunnel writes how the tailnet is carried, where it is.
func writeTunnel(w io.Writer, s node.Status) {
	t := s.Tunnel
	if t.Mode != "" {
		fmt.Fprintf(w, "tunnel\t%s, port %d, MTU %d\n", t.Mode, t.Port, t.MTU)
	}
	if g := t.Gateway; g != nil {
		reached := "not reached"
		if g.Since != nil {
			reached = "reached for " + age(*g.Since)
		}
		fmt.Fprintf(w, "gateway\t%s: %s; map %d.%d, good until %s\n", g.Name, reached, g.Epoch, g.Version, g.TrustUntil.Local().Format(time.DateTime))
	}
	silent := 0
	for _, p := range t.Peers {
		if p.Handshake == nil {
			silent++
			continue
		}
		fmt.Fprintf(w, "peer\t%s: %s, handshake %s ago, %d KiB in, %d KiB out\n", p.Node, pathWords(p.Path, p.Endpoint),
			age(*p.Handshake), p.Received>>10, p.Sent>>10)
	}
	if silent > 0 {
		fmt.Fprintf(w, "peers\t%s not spoken to yet\n", count(silent, "node", "nodes"))
	}
}

// age is how long ago something was.
func age(at time.Time) string { return max(0, time.Since(at)).Round(time.Second).String() }
