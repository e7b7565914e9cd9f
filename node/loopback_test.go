package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestAnAddressThatTheMachineLacksIsAdded(t *testing.T) {
	want := netip.MustParseAddrPort("127.0.0.77:53")
	notOurs := fmt.Errorf("listening: %w", syscall.EADDRNOTAVAIL)
	tests := map[string]struct {
		want    netip.AddrPort
		has     []string // the addresses that can be bound
		addErr  error
		root    bool
		at      string // where the stub ends up; "": nowhere
		problem string
		calls   string
	}{
		"Linux, which has all of them":    {want: want, has: []string{"127.0.0.77"}, root: true, at: "127.0.0.77:53"},
		"it is added and removed":         {want: want, has: []string{"127.0.0.1"}, root: true, at: "127.0.0.77:53", calls: "add 127.0.0.77 drop 127.0.0.77 "},
		"it is there from a dead process": {want: want, has: []string{"127.0.0.1", "127.0.0.77"}, root: true, at: "127.0.0.77:53"},
		"not root":                        {want: want, has: []string{"127.0.0.1"}, at: "127.0.0.1:5335", problem: syscall.EADDRNOTAVAIL.Error()},
		"it cannot be added": {
			want: want, has: []string{"127.0.0.1"}, root: true, addErr: errors.New("no ifconfig"),
			at: "127.0.0.1:5335", problem: "no ifconfig", calls: "add 127.0.0.77 ",
		},
		"no loopback at all":             {want: want},
		"an address of nobody's":         {want: netip.MustParseAddrPort("192.0.2.1:53"), has: []string{"127.0.0.1"}, root: true},
		"the first one":                  {want: netip.MustParseAddrPort("127.0.0.1:53"), root: true},
		"IPv6, of which there is one":    {want: netip.MustParseAddrPort("[::1]:53"), has: []string{"127.0.0.1"}, root: true},
		"a port that is not ours either": {want: want, has: []string{}, root: true, calls: "add 127.0.0.77 drop 127.0.0.77 "},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			calls := ""
			link := &loopbackLink{
				add: func(_ context.Context, addr netip.Addr) error {
					calls += "add " + addr.String() + " "
					if test.addErr == nil && len(test.has) > 0 {
						test.has = append(test.has, addr.String())
					}
					return test.addErr
				},
				drop: func(_ context.Context, addr netip.Addr) error {
					calls += "drop " + addr.String() + " "
					return nil
				},
			}
			if !test.root {
				link = nil
			}
			s, undo, err := listenOwned(t.Context(), test.want, link, func(addr netip.AddrPort) (stubSockets, error) {
				if !slices.Contains(test.has, addr.Addr().String()) {
					return stubSockets{}, notOurs
				}
				return stubSockets{sockets: &sockets{addr: addr}}, nil
			})
			switch {
			case test.at == "":
				if !isNotOurs(err) {
					t.Errorf("got %v, want that the address is not ours", err)
				}
			case err != nil || s.addr.String() != test.at:
				t.Fatalf("got %v, %v; want %s", s, err, test.at)
			case test.problem == "" && s.problem != nil, test.problem != "" && (s.problem == nil || !strings.Contains(s.problem.Error(), test.problem)):
				t.Errorf("problem: %v, want %q", s.problem, test.problem)
			}
			if undo != nil {
				if err := undo(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if calls != test.calls {
				t.Errorf("calls %q, want %q", calls, test.calls)
			}
		})
	}
}

func TestHowIfconfigIsCalled(t *testing.T) {
	addr := netip.MustParseAddr("127.0.0.77")
	if got := strings.Join(loopbackArgs(addr, true), " "); got != "lo0 alias 127.0.0.77 netmask 255.255.255.255" {
		t.Errorf("got %q", got)
	}
	if got := strings.Join(loopbackArgs(addr, false), " "); got != "lo0 -alias 127.0.0.77" {
		t.Errorf("got %q", got)
	}
}
