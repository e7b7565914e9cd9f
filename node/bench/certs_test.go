//go:build bench

package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

const (
	providerAddress = "203.0.113.6"
	certZone        = "foo-bar.example.org"
	providerKey     = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="
)

// certPath is one way to a certificate.
type certPath struct {
	name     string
	research string // the time that was measured before, elsewhere
	get      func(ctx context.Context) error
}

// TestCertificates gets certificates of a name and what is below it, in turns.
func TestCertificates(t *testing.T) {
	if !inside(t) {
		return
	}
	for _, address := range []string{gatewayAddress, providerAddress} {
		must(t, "ip", "addr", "add", address+"/32", "dev", "lo")
	}
	startProvider(t)
	atProvider := startPebble(t, providerAddress+":53")
	paths := []certPath{
		{"meshdns, its gateway", "0.4 s", throughGateway(t)},
		{"meshdns, rfc2136 to Knot", "4.9 s", byMeshdns(t, atProvider)},
		{"certmagic alone, rfc2136 to Knot", "4.9 s", byCertmagic(t, atProvider)},
	}
	took := map[string][]time.Duration{}
	for round := range number(t, "BENCH_ROUNDS", 7) + 1 {
		for _, p := range paths {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			start := time.Now()
			err := p.get(ctx)
			one := time.Since(start)
			cancel()
			if err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
			if round > 0 { // the first makes accounts
				took[p.name] = append(took[p.name], one)
			}
		}
	}
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "\npath\tseconds p50\tleast\tmost\tmeasured before\truns\t\n")
	medians := make([]time.Duration, len(paths))
	for i, p := range paths {
		list := took[p.name]
		slices.Sort(list)
		n := len(list)
		medians[i] = list[n/2]
		fmt.Fprintf(tw, "%s\t%.2f\t%.2f\t%.2f\t%s\t%d\t\n", p.name, medians[i].Seconds(), list[0].Seconds(), list[n-1].Seconds(), p.research, n)
	}
	tw.Flush()
	fmt.Print(b.String())
	if medians[0] > time.Second {
		t.Errorf("through the gateway it takes %s, and not under a second", medians[0])
	}
	if medians[1] > medians[2] {
		t.Errorf("by a provider it takes %s, certmagic alone %s", medians[1], medians[2])
	}
}

// throughGateway is a node that has joined a gateway: two processes of the program, asked as the command asks.
func throughGateway(t *testing.T) func(ctx context.Context) error {
	c := startPebble(t, gatewayAddress+":53")
	dir := t.TempDir()
	host, _, _ := strings.Cut(strings.TrimPrefix(c.directory, "https://"), "/")
	g := up(t, "gateway", filepath.Join(dir, "gateway"), fmt.Sprintf(`node: edge
dns: {os: "off", stub: "127.0.0.77:5300"}
tunnel: {mode: userspace, port: 41642}
gateway: {zone: %s, public: [%s], listen: [%[2]s], issuers: ["%[3]s=ca.test"]}
`, certZone, gatewayAddress, host))
	at := filepath.Join(dir, "nas")
	takePlace(t, g, "nas", at)
	nas := up(t, "nas", at, fmt.Sprintf(`dns: {os: "off", stub: "127.0.0.77:5400"}
tunnel: {mode: userspace, port: 41700}
certs: {ca: %q, root: %q}
`, c.directory, c.root))
	addressOf(t, g, "nas")
	return func(ctx context.Context) error {
		req := nas.CertRequest("nas")
		req.Wildcard, req.Force = true, true
		got, err := nas.Certificate(ctx, req, func(string, string, string) {})
		if err == nil && (!got.Issued || len(got.Names) != 2) {
			err = fmt.Errorf("issued: %t, for %q", got.Issued, got.Names)
		}
		return err
	}
}
