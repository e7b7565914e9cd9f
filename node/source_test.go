package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sourceText is a file of testdata/source.
func sourceText(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "source", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSourcesAreReadAsOtherProgramsWriteThem(t *testing.T) {
	tests := []struct{ typ, file, want string }{
		{"tailscale", "tailscale.json", "anns-macbook-pro=100.101.102.103,fd7a:115c:a1e0::6501:6667 build-box=100.64.10.4 nas=100.64.10.2,fd7a:115c:a1e0::a02 pixel-8=100.64.10.3"},
		{"netbird", "netbird.json", "peer-a=100.92.1.2 peer-b=100.92.1.3,fd00:4242::3 some-localhost=100.92.1.1,fd00:4242::1"},
		{"headscale", "headscale.json", "anns-iphone=100.64.0.1,fd7a:115c:a1e0::1 nas-eohr8k1d=100.64.0.2"},
		{"headscale", "headscale_api.json", "anns-iphone=100.64.0.1,fd7a:115c:a1e0::1"},
		{"wg-quick", "wg0.conf", "ann-s-phone=10.8.0.3 gw=10.8.0.1,fd00:8::1 laptop=10.8.0.6 nas=10.8.0.2,fd00:8::2 printer=10.8.0.5,fd00:8::5 tv=10.8.0.4 watch=10.8.0.7"},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			raw, err := parserOf(tt.typ)(sourceText(t, tt.file))
			if err != nil {
				t.Fatal(err)
			}
			if got := listMachines(machines("s", raw)); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// listMachines is "nas=100.64.0.1,fd00::1 tv=100.64.0.2".
func listMachines(list []Machine) string {
	words := make([]string, len(list))
	for i, m := range list {
		words[i] = m.Name + "=" + strings.Trim(strings.ReplaceAll(fmt.Sprint(m.Addresses), " ", ","), "[]")
	}
	return strings.Join(words, " ")
}

func TestSourcesSayWhatIsNotTheirs(t *testing.T) {
	tests := []struct{ name, typ, text, want string }{
		{"nothing", "tailscale", "", "not the output of tailscale status --json: no JSON at byte 0"},
		{"text", "tailscale", "# Health check:\nsecret\n", "not the output of tailscale status --json: no JSON at byte 1"},
		{"another document", "tailscale", `{"nodes":[]}`, "not the output of tailscale status --json: neither Self nor Peer"},
		{"another type", "tailscale", `{"Self":{"TailscaleIPs":"100.64.0.1"}}`, "not the output of tailscale status --json: Self.TailscaleIPs is of the wrong type"},
		{"a list", "netbird", `[]`, "not the output of netbird status --json"},
		{"another document", "netbird", `{}`, "not the output of netbird status --json: neither peers nor netbirdIp"},
		{"cut short", "headscale", `[{"name":"x"`, "not the output of headscale nodes list -o json: no JSON at byte 12"},
		{"a number", "headscale", `7`, "not the output of headscale nodes list -o json"},
		{"no sections", "wg-quick", "hello\n", "not a wg-quick file: neither [Interface] nor [Peer]"},
		{"binary", "wg-quick", "[Peer]\n\x00", "not a wg-quick file"},
	}
	for _, tt := range tests {
		t.Run(tt.typ+" "+tt.name, func(t *testing.T) {
			raw, err := parserOf(tt.typ)([]byte(tt.text))
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, %v; want %s", raw, err, tt.want)
			}
		})
	}
}

func TestSourcesThatAreDownHaveNoMachines(t *testing.T) {
	for typ, text := range map[string]string{
		"tailscale": `{"BackendState":"NeedsLogin","Self":null,"Peer":null}`,
		"netbird":   `{"peers":{"total":0,"details":[]},"netbirdIp":""}`,
		"headscale": `[]`,
		"wg-quick":  "[Interface]\nPrivateKey = x\n",
	} {
		raw, err := parserOf(typ)([]byte(text))
		if err != nil || len(machines("s", raw)) != 0 {
			t.Errorf("%s: got %v, %v", typ, raw, err)
		}
	}
}

func TestPrivateKeysAreNotKept(t *testing.T) {
	raw, err := parseWGQuick(sourceText(t, "wg0.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%+v", raw); strings.Contains(s, "yAnz5TF") || strings.Contains(s, "bm90IGEg") {
		t.Errorf("a key is in %s", s)
	}
}

func TestMachinesGetNamesOfTheirOwn(t *testing.T) {
	addr := func(i int) []string { return []string{fmt.Sprintf("100.64.0.%d", i)} }
	tests := []struct {
		name string
		raw  []rawMachine
		want string
	}{
		{"twins", []rawMachine{{"phone", addr(3)}, {"Phone.lan", addr(1)}, {"phone", addr(2)}}, "phone=100.64.0.1 phone-2=100.64.0.2 phone-3=100.64.0.3"},
		{"a name that a twin would get", []rawMachine{{"phone", addr(1)}, {"phone", addr(2)}, {"phone-2", addr(3)}}, "phone=100.64.0.1 phone-2=100.64.0.3 phone-3=100.64.0.2"},
		{"listed twice", []rawMachine{{"phone", addr(1)}, {"phone", addr(1)}}, "phone=100.64.0.1"},
		{"no name", []rawMachine{{"", addr(1)}, {"...", addr(2)}, {"nas", addr(3)}}, "nas=100.64.0.3"},
		{"no address", []rawMachine{{"a", nil}, {"b", []string{"x", "::ffff:10.0.0.1", "127.0.0.1", "ff02::1"}}, {"c", []string{"", "10.0.0.1/8"}}}, "c=10.0.0.1"},
		{"an address twice", []rawMachine{{"a", []string{"10.0.0.1", "10.0.0.1/32"}}}, "a=10.0.0.1"},
		{"long twins", []rawMachine{{strings.Repeat("a", 63), addr(1)}, {strings.Repeat("a", 63), addr(2)}},
			strings.Repeat("a", 56) + "-2=100.64.0.2 " + strings.Repeat("a", 63) + "=100.64.0.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list := machines("s", tt.raw)
			if got := listMachines(list); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if !slices.IsSortedFunc(list, func(a, b Machine) int { return strings.Compare(a.Name, b.Name) }) {
				t.Error("not sorted")
			}
		})
	}
}

func TestManyAddressesAreCut(t *testing.T) {
	var addrs []string
	for i := range 200 {
		addrs = append(addrs, fmt.Sprintf("10.0.0.%d", i+1))
	}
	if got := len(machines("s", []rawMachine{{"a", addrs}})[0].Addresses); got != maxAddresses {
		t.Errorf("got %d addresses, want %d", got, maxAddresses)
	}
}

func TestSourceIsReadAgainAndTellsWhatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text, fail, reads := `[{"name":"a","ip_addresses":["100.64.0.1"]}]`, error(nil), 0
		p := newPolled(sourceConfig{Type: "headscale", File: "x", Interval: 10 * time.Second}, nil)
		var mu sync.Mutex // guards what the source and we share
		p.load = func(context.Context) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			reads++
			return []byte(text), fail
		}
		says := func(newText string, newFail error) {
			mu.Lock()
			defer mu.Unlock()
			text, fail = newText, newFail
		}
		var told []string
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- p.Run(ctx, func(list []Machine, err error) {
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					told = append(told, "error: "+err.Error())
					return
				}
				told = append(told, listMachines(list))
			})
		}()
		step := func(what string, want ...string) {
			t.Helper()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(told, want) {
				t.Errorf("%s: told %q, want %q", what, told, want)
			}
			told = nil
		}
		synctest.Wait()
		mu.Lock()
		if reads != 1 {
			t.Errorf("read %d times at once, want once", reads)
		}
		mu.Unlock()
		step("unchanged", "a=100.64.0.1")
		step("unchanged again")
		says(`[{"name":"b","ip_addresses":["100.64.0.1"]}]`, nil)
		step("changed", "b=100.64.0.1")
		says("[", nil)
		step("broken", "error: reading the source headscale x: not the output of headscale nodes list -o json: no JSON at byte 1")
		step("still broken")
		says("", errors.New("gone"))
		step("gone", "error: reading the source headscale x: gone")
		says(`[{"name":"b","ip_addresses":["100.64.0.1"]}]`, nil)
		step("back with what it said before", "b=100.64.0.1")
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestSourceFilesAreReadAndBounded(t *testing.T) {
	path := writeFileT(t, "n.json", `[{"name":"a","ip_addresses":["100.64.0.1"]}]`)
	read := func(p *polled) (list []Machine, err error) {
		p.once(t.Context(), func(l []Machine, e error) { list, err = l, e })
		return list, err
	}
	if list, err := read(newPolled(sourceConfig{Type: "headscale", File: path}, nil)); err != nil || listMachines(list) != "a=100.64.0.1" || list[0].Source != "headscale "+path {
		t.Errorf("got %v, %v", list, err)
	}
	if err := os.Truncate(path, maxSource+1); err != nil {
		t.Fatal(err)
	}
	if _, err := read(newPolled(sourceConfig{Type: "headscale", File: path}, nil)); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a huge file: got %v", err)
	}
	if _, err := read(newPolled(sourceConfig{Type: "headscale", File: "/dev/zero"}, nil)); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a device: got %v", err)
	}
	if p := newPolled(sourceConfig{Type: "wireguard", Interface: "wg7"}, nil); p.String() != "wireguard wg7" || p.interval != defaultInterval {
		t.Errorf("got %s every %s", p, p.interval)
	}
}

func fuzzSource(f *testing.F, typ string, files ...string) {
	for _, file := range files {
		f.Add(sourceText(f, file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := parserOf(typ)(data)
		if err != nil {
			return
		}
		list := machines("s", raw)
		names := map[string]bool{}
		for _, m := range list {
			if label, msg := checkLabel(m.Name); msg != "" || label != m.Name || names[m.Name] {
				t.Errorf("%q is no canonical label, or stands twice", m.Name)
			}
			names[m.Name] = true
			if len(m.Addresses) == 0 || len(m.Addresses) > maxAddresses {
				t.Errorf("%s has %d addresses", m.Name, len(m.Addresses))
			}
			if slices.ContainsFunc(m.Addresses, func(a netip.Addr) bool { return !isUnicast(a) }) {
				t.Errorf("%s has %v", m.Name, m.Addresses)
			}
		}
		// What sources say is never an error of the map.
		merged, _ := mergeMaps(&Map{name: "m", zone: "a.internal", drawn: true}, list)
		if len(merged.Nodes()) > len(list) {
			t.Errorf("%d nodes of %d machines", len(merged.Nodes()), len(list))
		}
	})
}

func FuzzTailscale(f *testing.F) { fuzzSource(f, "tailscale", "tailscale.json") }
func FuzzNetbird(f *testing.F)   { fuzzSource(f, "netbird", "netbird.json") }
func FuzzHeadscale(f *testing.F) { fuzzSource(f, "headscale", "headscale.json", "headscale_api.json") }
func FuzzWGQuick(f *testing.F)   { fuzzSource(f, "wg-quick", "wg0.conf") }
