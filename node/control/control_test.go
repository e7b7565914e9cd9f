package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const testZone = "foo-bar.example.org"

// rig is a gateway's side, on addresses of loopback in place of the tunnel's: whoever dials from 127.80.0.2 has that
// address, as in the tunnel.
type rig struct {
	t        *testing.T
	store    *fileStore
	registry *Registry
	key      PrivateKey
	server   *Server
	addr     netip.AddrPort
	nowMu    sync.Mutex
	now      time.Time
	lock     []ControlKey  // of registries that are opened from now on
	body     time.Duration // that servers from now on wait for a call's body; zero: their own
}

func testRanges() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("127.80.0.0/20"), netip.MustParsePrefix("fd00:80::/48")}
}

func newPrivateKey(t *testing.T) PrivateKey {
	t.Helper()
	k, err := NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newPair makes a WireGuard key pair.
func newPair(t *testing.T) WireGuardKey {
	t.Helper()
	private, err := newWireGuardKey()
	if err != nil {
		t.Fatal(err)
	}
	public, err := publicOf(private)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func newStore(t *testing.T, path string) *fileStore {
	t.Helper()
	s, err := openFileStore(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, key: newPrivateKey(t), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	r.store = newStore(t, filepath.Join(t.TempDir(), "registry.db"))
	r.registry = r.open()
	gateway := Node{
		Name: "edge", Addresses: []netip.Addr{netip.MustParseAddr("127.80.0.1")}, Key: newPair(t), Control: r.key.Public(),
		Gateway: &GatewayNode{Public: []netip.Addr{netip.MustParseAddr("203.0.113.5")}},
	}
	if err := r.registry.Put(t.Context(), gateway); err != nil {
		t.Fatal(err)
	}
	return r
}

// open reads the registry anew, as a gateway does that starts.
func (r *rig) open() *Registry {
	r.t.Helper()
	registry, err := openRegistry(r.t.Context(), RegistryConfig{
		Zone:     testZone,
		Ranges:   testRanges(),
		Lock:     r.lock,
		Template: Invite{Control: r.key.Public(), Server: netip.MustParseAddr("127.80.0.1")},
		Now:      r.clock,
		CheckName: func(name string, _ []string) error {
			if name == "" || name == "wpad" {
				return fmt.Errorf("%q is no name for a node", name)
			}
			return nil
		},
	}, r.store)
	if err != nil {
		r.t.Fatal(err)
	}
	return registry
}

// serve has the server answer, and waits for its end when the test does.
func (r *rig) serve(edit ...func(*ServerConfig)) {
	r.t.Helper()
	ln, err := net.Listen("tcp4", "127.80.0.1:0")
	if err != nil {
		r.t.Skip("NOT PROVEN: this system has no other loopback addresses: ", err)
	}
	r.addr = netip.MustParseAddrPort(ln.Addr().String())
	cfg := ServerConfig{Registry: r.registry, Key: r.key}
	for _, f := range edit {
		f(&cfg)
	}
	r.server = NewServer(cfg)
	if r.body > 0 {
		r.server.body = r.body
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.server.Serve(ctx, ln) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error("Serve: ", err)
		}
	})
}

// client calls from an address with a key.
func (r *rig) client(from netip.Addr, key PrivateKey) *Client {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	return &Client{Dial: dialer.DialContext, Server: r.addr, Gateway: r.key.Public(), Key: key}
}

func (r *rig) invite(o InviteOptions) Invite {
	r.t.Helper()
	i, err := r.registry.NewInvite(r.t.Context(), o)
	if err != nil {
		r.t.Fatalf("NewInvite: %v", err)
	}
	return i
}

// member is a node that has joined.
type member struct {
	Node

	key PrivateKey
}

// join has a node join, and its key complete a handshake.
func (r *rig) join(name string) member {
	r.t.Helper()
	i := r.invite(InviteOptions{Name: name})
	m := member{key: newPrivateKey(r.t)}
	key := newPair(r.t)
	answer, err := r.registry.Join(r.t.Context(), i.Address, m.key.Public(), JoinRequest{Key: key})
	if err != nil {
		r.t.Fatalf("Join: %v", err)
	}
	if _, err := r.registry.Handshaken(r.t.Context(), key); err != nil {
		r.t.Fatal(err)
	}
	m.Node = answer.Node
	return m
}

// clock is what the registry and the server go by.
func (r *rig) clock() time.Time {
	r.nowMu.Lock()
	defer r.nowMu.Unlock()
	return r.now
}

// pass lets time pass, also while datagrams are answered.
func (r *rig) pass(d time.Duration) {
	r.nowMu.Lock()
	defer r.nowMu.Unlock()
	r.now = r.now.Add(d)
}

func (r *rig) clientOf(m member) *Client { return r.client(m.Addresses[0], m.key) }

// mapNames are the nodes of the map, in order.
func mapNames(m *Map) string {
	var s strings.Builder
	for _, n := range m.Nodes {
		s.WriteString(n.Name + " ")
	}
	return s.String()
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Code != code {
		t.Errorf("error %v, want a refusal %s", err, code)
	}
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !so(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

// No clock counts for a pinned key: not that of either side, whatever it says.
func TestAPinnedKeyKnowsNoTime(t *testing.T) {
	server, client := newPrivateKey(t), newPrivateKey(t)
	for _, clocks := range [][2]int{{1970, 2026}, {2026, 1970}, {2026, 2200}, {2200, 1970}} {
		at := func(i int) func() time.Time {
			return func() time.Time { return time.Date(clocks[i], 1, 1, 1, 0, 0, 0, time.UTC) }
		}
		theirs, err := server.TLS(client.Public().Is)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := client.TLS(server.Public().Is)
		if err != nil {
			t.Fatal(err)
		}
		theirs.Time, ours.Time = at(0), at(1)
		a, b := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tls.Server(a, theirs).HandshakeContext(t.Context()) }()
		if err := tls.Client(b, ours).HandshakeContext(t.Context()); err != nil {
			t.Errorf("%v: %v", clocks, err)
		}
		if err := <-done; err != nil {
			t.Errorf("%v: %v", clocks, err)
		}
		a.Close()
		b.Close()
	}
}
