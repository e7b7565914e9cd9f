package node

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/meshdns/meshdns/node/control"
)

// safeBuffer is a buffer that several may write to.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// S21: through the life of a tailnet nothing that is logged at any level, reported or told in status holds a secret.
func TestNoSecretIsLogged(t *testing.T) {
	var log safeBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 4}))
	cfg := gatewayTestConfig(t)
	g := &testGateway{startNodeWith(t, cfg, Options{Paths: testPaths(t), reached: []netip.Addr{netip.MustParseAddr(gatewayAddress)}, Logger: logger}), cfg}
	var invites []string
	invite := func(name string, reusable bool) string {
		t.Helper()
		reply, err := g.Invite(t.Context(), name, nil, 0, reusable)
		if err != nil {
			t.Fatal(err)
		}
		invites = append(invites, reply.Invite)
		return reply.Invite
	}
	paths := testPaths(t)
	report := func(line string) { fmt.Fprintln(&log, line) }
	if _, err := paths.Join(t.Context(), invite("nas", false), "", report); err != nil {
		t.Fatal(err)
	}
	member := testConfig()
	member.Node, member.Tunnel = "", tunnelConfig{Mode: "userspace"}
	nas := startNodeWith(t, member, Options{Paths: paths, Logger: logger})
	soon(t, "the node", func() bool { return nas.knows(t, "nas") && nas.hasStream() })
	for _, text := range []string{invites[0], invite("", true), invite("tv", false)[:50]} { // used, good, damaged
		_, err := testPaths(t).Join(t.Context(), text, "box", report)
		fmt.Fprintln(&log, err)
	}
	secrets := []secrets{g.node.carrier.own(), nas.node.carrier.own()}
	if _, err := nas.RotateKey(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, nas.node.carrier.own())
	for _, n := range []*testNode{g.testNode, nas} {
		s, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&log, "%s %+v", text, n.lines)
	}
	said := log.String()
	if !strings.Contains(said, "level=DEBUG") || !strings.Contains(said, "nas") {
		t.Fatalf("the log is too quiet to tell: %.500s", said)
	}
	for i, s := range secrets {
		for what, key := range map[string][]byte{"WireGuard key": s.wireGuard[:], "control key": s.control.Seed()} {
			for how, word := range map[string]string{
				"base64": base64.StdEncoding.EncodeToString(key), "hex": hex.EncodeToString(key), "numbers": strings.Trim(fmt.Sprint(key[:8]), "[]"),
			} {
				if strings.Contains(said, word) {
					t.Errorf("the %s of %d is told in %s", what, i, how)
				}
			}
		}
	}
	for i, text := range invites {
		one, err := control.ParseInvite(text)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(said, text[10:40]) || strings.Contains(said, base64.StdEncoding.EncodeToString(one.Key[:])) || strings.Contains(said, hex.EncodeToString(one.Key[:])) {
			t.Errorf("invite %d is told", i)
		}
	}
}
