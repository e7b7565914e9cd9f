package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// until waits for what takes a moment.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(30 * time.Second); !so(); {
		select {
		case <-tick.C:
		case <-over:
			t.Fatalf("waited for %s for 30 s", what)
		}
	}
}

// stateOf is a node as the gateway knows it.
func (r *rig) stateOf(name string) NodeState {
	for _, s := range r.registry.Nodes() {
		if s.Name == name {
			return s
		}
	}
	return NodeState{}
}

// A node that holds its stream reports by it: no report of its costs a connection.
func TestReportsGoByTheStream(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	c := r.clientOf(nas)
	var dials atomic.Int32
	dial := c.Dial
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return dial(ctx, network, address)
	}
	ctx, cancel := context.WithCancel(t.Context())
	maps, _, ended := follow(ctx, c, nil)
	have := <-maps
	for _, name := range []string{"tv", "web"} {
		r.join(name)
		for have = <-maps; !strings.Contains(mapNames(have), name); have = <-maps {
		}
		if got := r.stateOf("nas").Version; got == have.Version {
			t.Errorf("version %d is confirmed before the node has said so", got)
		}
		endpoint := netip.MustParseAddrPort(fmt.Sprintf("192.168.1.9:%d", 40000+have.Version))
		if err := c.Report(t.Context(), Report{Epoch: have.Epoch, Version: have.Version, Endpoints: []netip.AddrPort{endpoint}}); err != nil {
			t.Fatal(err)
		}
		until(t, "the report", func() bool {
			return r.stateOf("nas").Version == have.Version && fmt.Sprint(r.registry.Endpoints("nas")) == fmt.Sprintf("[%s]", endpoint)
		})
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections were made, and the stream's is the only one needed", n)
	}
	cancel()
	<-ended
	// A stream that is opened again says what the last one may have lost.
	r.registry.Take("nas", Report{})
	_, _, ended = follow(t.Context(), c, have)
	until(t, "the report of before", func() bool {
		return r.stateOf("nas").Version == have.Version && len(r.registry.Endpoints("nas")) == 1
	})
	// And without a stream a report is a call.
	if _, err := r.registry.Remove(t.Context(), "nas", time.Time{}); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := c.Report(t.Context(), Report{}); err == nil {
		t.Error("a removed node reports")
	}
}

// Of two reports that overtake each other the newer map counts; a stream says where a node really went back to an older one.
func TestAnOlderReportTakesNothingBack(t *testing.T) {
	r := newRig(t)
	r.serve()
	r.join("nas")
	m, _ := r.registry.Map()
	r.registry.Take("nas", Report{Epoch: m.Epoch, Version: m.Version})
	r.registry.Take("nas", Report{Epoch: m.Epoch, Version: m.Version - 1, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.9:4000")}})
	if s := r.stateOf("nas"); s.Version != m.Version || len(r.registry.Endpoints("nas")) != 1 {
		t.Errorf("it is at %d, with %v", s.Version, r.registry.Endpoints("nas"))
	}
	r.registry.works("nas", m.Epoch, m.Version-1)
	if s := r.stateOf("nas"); s.Version != m.Version-1 {
		t.Errorf("a stream with an older map counts as %d", s.Version)
	}
}

// A stream's node is told of whom it is to meet by the name that it has now.
func TestARenamedNodeIsIntroduced(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	r.join("tv")
	r.registry.Seen("tv", netip.MustParseAddrPort("198.51.100.7:30000"))
	c := r.clientOf(nas)
	maps, connects, _ := follow(t.Context(), c, nil)
	have := <-maps
	if err := r.registry.Rename(t.Context(), "nas", "store", time.Time{}); err != nil {
		t.Fatal(err)
	}
	have = <-maps
	if err := c.Report(t.Context(), Report{Epoch: have.Epoch, Version: have.Version}); err != nil {
		t.Fatal(err)
	}
	until(t, "the report", func() bool { return r.stateOf("store").Version == have.Version })
	r.server.Introduce("store", "tv")
	if got := <-connects; got.Node != "tv" {
		t.Errorf("%+v", got)
	}
}

// saying holds a stream open and says something by it.
func (r *rig) saying(t *testing.T, m member, said io.Reader) (events io.ReadCloser) {
	t.Helper()
	c := r.clientOf(m)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+c.Server.String()+pathMap, said)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.send(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp.Body
}

// What is no report ends the stream that it came by, and no other.
func TestWhatIsNoReportEndsItsStream(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas, bad := r.join("nas"), r.join("bad")
	maps, _, _ := follow(t.Context(), r.clientOf(nas), nil)
	<-maps
	for name, said := range map[string]string{
		"a word": "x\n", "other JSON": "[1]\n", "no end": strings.Repeat(" ", 2*maxReport), "the end": "",
	} {
		if _, err := io.Copy(io.Discard, r.saying(t, bad, strings.NewReader(said))); err != nil {
			t.Logf("%s: %v", name, err) // closed, or reset since more was on its way
		}
	}
	r.join("tv")
	if have := <-maps; !strings.Contains(mapNames(have), "tv") {
		t.Error(mapNames(have))
	}
}

// A flood by a stream is heard as slowly as one of calls, and costs no memory: who sends it has to wait.
func TestAFloodByAStreamHasToWait(t *testing.T) {
	r := newRig(t)
	r.serve()
	bad := r.join("bad")
	flood := &counted{line: []byte(`{"epoch":1,"version":2}` + "\n")}
	r.saying(t, bad, flood)
	until(t, "the flood to be held up", func() bool {
		r.server.limit.mu.Lock()
		defer r.server.limit.mu.Unlock()
		return r.server.limit.buckets[bad.Addresses[0]].tokens < 1 && r.stateOf("bad").Seen.Equal(r.now)
	})
	if err := r.clientOf(bad).Report(t.Context(), Report{}); err == nil {
		t.Log("a call came between two of the flood's")
	}
}

// counted is one line without end.
type counted struct{ line []byte }

func (c *counted) Read(p []byte) (int, error) {
	return copy(p, bytes.Repeat(c.line, 1+len(p)/len(c.line))), nil
}

// Nodes with different maps each get what leads from theirs to the newest.
func TestEachNodeGetsWhatFollowsItsMap(t *testing.T) {
	r := newRig(t)
	r.serve()
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		r.join(name)
	}
	var maps []*Map
	for i := range 8 {
		m, _ := r.registry.Map()
		maps = append(maps, m)
		for _, have := range append(maps, &Map{}) {
			line, newest, _, err := r.server.event(have.Epoch, have.Version)
			if err != nil || newest != m || (line == nil) != (have == m) {
				t.Fatalf("%q, %d, %v", line, newest.Version, err)
			}
			var e Event
			if line == nil {
				continue
			}
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatal(err)
			}
			if have.Version == 0 {
				have = nil
			}
			if got, err := e.Newer(have); err != nil || got.Version != m.Version || mapNames(got) != mapNames(m) {
				t.Errorf("to %d: %s, %v", m.Version, mapNames(got), err)
			}
		}
		if err := r.registry.Rename(t.Context(), []string{"a", "x"}[i%2], []string{"x", "a"}[i%2], time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
}

// What the store tells late brings nothing back that was changed since, and no older map.
func TestLateNewsAreOld(t *testing.T) {
	r := newRig(t)
	r.join("nas")
	whole, err := r.store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	part, err := r.store.Watch(t.Context(), r.registry.revision-1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.registry.Rename(t.Context(), "nas", "store", time.Time{}); err != nil {
		t.Fatal(err)
	}
	r.join("tv")
	before, _ := r.registry.Map()
	for _, news := range []records{whole, part} {
		if err := r.registry.takeNews(news); err != nil {
			t.Fatal(err)
		}
		if m, _ := r.registry.Map(); m != before || len(r.registry.Nodes()) != 3 || mapNames(m) != "edge store tv " {
			t.Errorf("%s, version %d after %d, %d nodes", mapNames(m), m.Version, before.Version, len(r.registry.Nodes()))
		}
	}
}

// Many keys that have completed a handshake are one change.
func TestHandshakesAreOneChange(t *testing.T) {
	r := newRig(t)
	var keys []WireGuardKey
	for _, name := range []string{"nas", "tv", "web"} {
		i := r.invite(InviteOptions{Name: name})
		key := newPair(t)
		if _, err := r.registry.Join(t.Context(), i.Address, newPrivateKey(t).Public(), JoinRequest{Key: key}); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	before := r.registry.revision
	if changed, err := r.registry.Handshaken(t.Context(), keys[0], keys[1], newPair(t)); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if m, _ := r.registry.Map(); mapNames(m) != "edge nas tv " || m.Version != before+1 {
		t.Errorf("%s, version %d after %d", mapNames(m), m.Version, before)
	}
	if list := r.registry.Nodes(); len(list) != 5 { // with one invite that waits
		t.Errorf("%d nodes and invites", len(list))
	}
	if changed, err := r.registry.Handshaken(t.Context(), keys...); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if changed, err := r.registry.Handshaken(t.Context(), keys...); changed || err != nil {
		t.Fatal("again: ", changed, err)
	}
}
