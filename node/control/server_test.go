package control

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestANodeJoinsOverTheWire(t *testing.T) {
	r := newRig(t)
	r.serve()
	i := r.invite(InviteOptions{Name: "nas"})
	key := newPrivateKey(t)
	answer, err := r.client(i.Address, key).Join(t.Context(), JoinRequest{Key: newPair(t)})
	if err != nil || answer.Node.Name != "nas" || answer.Node.Control != key.Public() || len(answer.Map.Nodes) != 1 {
		t.Fatalf("%+v, %v", answer, err)
	}
	_, err = r.client(i.Address, newPrivateKey(t)).Join(t.Context(), JoinRequest{Key: newPair(t)})
	wantCode(t, err, codeInviteUsed)
	// With an invite the join call is answered and nothing else.
	wantCode(t, r.client(i.Address, newPrivateKey(t)).Report(t.Context(), Report{}), codeNotYou)
	_, err = r.client(i.Address, newPrivateKey(t)).Connect(t.Context(), "edge")
	wantCode(t, err, codeNotYou)
	if err := r.client(i.Address, newPrivateKey(t)).Stream(t.Context(), nil, nil); err == nil {
		t.Error("the map is told to an invite")
	}
}

// S1: a tailnet address without its key, or a key without its address, opens no connection.
func TestAnAddressAloneMakesNoCall(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas, tv := r.join("nas"), r.join("tv")
	if err := r.clientOf(nas).Report(t.Context(), Report{}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*Client{
		"another key":       r.client(nas.Addresses[0], newPrivateKey(t)),
		"another's address": r.client(tv.Addresses[0], nas.key),
		"no node's address": r.client(addr("127.80.3.3"), nas.key),
	} {
		if err := c.Report(t.Context(), Report{}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	// And without a key of one's own there is no connection at all.
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(nas.Addresses[0], 0))}
	plain := &tls.Dialer{NetDialer: &dialer, Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}}}
	if conn, err := plain.DialContext(t.Context(), "tcp", r.addr.String()); err == nil {
		if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("without a certificate: %v", err)
		}
		conn.Close()
	}
}

// A node speaks to the gateway that it joined and to nobody else in its place.
func TestAnotherGatewayIsNotSpokenTo(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	c := r.clientOf(nas)
	c.Gateway = newPrivateKey(t).Public()
	if err := c.Report(t.Context(), Report{}); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Error(err)
	}
}

// S5: removal reaches a node that is connected.
func TestARemovedNodesStreamEnds(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	first := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		var once bool
		ended <- r.clientOf(nas).Stream(t.Context(), nil, func(Event) error {
			if !once {
				once = true
				close(first)
			}
			return nil
		})
	}()
	select {
	case <-first:
	case err := <-ended:
		t.Fatal(err)
	}
	if _, err := r.registry.Remove(t.Context(), "nas", time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("no error")
	}
	if err := r.clientOf(nas).Report(t.Context(), Report{}); err == nil {
		t.Error("it may call")
	}
}

// follow holds a stream and sends every map that it leads to.
func follow(ctx context.Context, c *Client, have *Map) (maps chan *Map, connects chan Connect, ended chan error) {
	maps, connects, ended = make(chan *Map, 100), make(chan Connect, 100), make(chan error, 1)
	go func() {
		ended <- c.Stream(ctx, have, func(e Event) error {
			if e.Connect != nil {
				connects <- *e.Connect
			}
			next, err := e.Newer(have)
			if err == nil && next != have {
				have = next
				maps <- next
			}
			return err
		})
	}()
	return maps, connects, ended
}

func TestAMapReachesANodeThatWasAway(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	ctx, cancel := context.WithCancel(t.Context())
	maps, _, ended := follow(ctx, r.clientOf(nas), nil)
	<-maps
	r.join("tv")
	have := <-maps
	if mapNames(have) != "edge nas tv " {
		t.Error(mapNames(have))
	}
	cancel()
	<-ended
	r.join("web")
	if _, err := r.registry.Remove(t.Context(), "tv", time.Time{}); err != nil {
		t.Fatal(err)
	}
	maps, _, ended = follow(t.Context(), r.clientOf(nas), have)
	if have := <-maps; mapNames(have) != "edge nas web " {
		t.Error(mapNames(have))
	}
	// A second stream takes the first one's place.
	again, _, _ := follow(t.Context(), r.clientOf(nas), nil)
	<-again
	if err := <-ended; err == nil {
		t.Error("the first stream goes on")
	}
}

// A large map goes out once; what changes in it is told as a change, which is small whatever the map's size.
func TestALargeMapIsToldOnce(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	for i := range 40 {
		r.join(fmt.Sprint("n", i))
	}
	events := make(chan Event, 100)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- r.clientOf(nas).Stream(ctx, nil, func(e Event) error {
			if e.Map != nil || e.Delta != nil {
				events <- e
			}
			return nil
		})
	}()
	first := <-events
	if first.Map == nil || len(first.Map.Nodes) != 42 {
		t.Fatalf("%+v", first)
	}
	have := first.Map
	for i := range 5 {
		if err := r.registry.Rename(t.Context(), fmt.Sprint("n", i), fmt.Sprint("m", i), r.now); err != nil {
			t.Fatal(err)
		}
		e := <-events
		if e.Map != nil || e.Delta == nil || len(e.Delta.Set) != 1 || len(e.Delta.Remove) != 1 || len(asJSON(t, e)) > len(asJSON(t, first))/10 {
			t.Errorf("%s", asJSON(t, e))
		}
		next, err := e.Newer(have)
		if err != nil {
			t.Fatal(err)
		}
		have = next
	}
	cancel()
	<-ended
	if m, _ := r.registry.Map(); asJSON(t, have.Nodes) != asJSON(t, m.Nodes) {
		t.Errorf("it has %s", mapNames(have))
	}
}

func TestBothSidesAreIntroduced(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas, tv := r.join("nas"), r.join("tv")
	maps, connects, _ := follow(t.Context(), r.clientOf(tv), nil)
	<-maps
	local := netip.MustParseAddrPort("192.168.1.5:41642")
	if err := r.clientOf(nas).Report(t.Context(), Report{Endpoints: []netip.AddrPort{local}}); err != nil {
		t.Fatal(err)
	}
	r.registry.Seen("tv", netip.MustParseAddrPort("198.51.100.7:30000"))
	got, err := r.clientOf(nas).Connect(t.Context(), "tv")
	if err != nil || fmt.Sprint(got) != "{tv [198.51.100.7:30000]}" {
		t.Errorf("%v, %v", got, err)
	}
	if told := <-connects; fmt.Sprint(told) != "{nas [192.168.1.5:41642]}" {
		t.Errorf("%v", told)
	}
	_, err = r.clientOf(nas).Connect(t.Context(), "nas")
	wantCode(t, err, codeUnknownNode)
	// What policy forbids is not told.
	r.server.cfg.Reach = func(from, to string) bool { return false }
	_, err = r.clientOf(nas).Connect(t.Context(), "tv")
	wantCode(t, err, codeUnknownNode)
}

// A node that floods, or sends what is no call, harms itself alone.
func TestAMaliciousNodeHarmsItselfAlone(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas, bad := r.join("nas"), r.join("bad")
	c := r.clientOf(bad)
	for name, body := range map[string]any{
		"a word":     "x",
		"a big one":  Report{Endpoints: make([]netip.AddrPort, 30000)},
		"other JSON": []int{1},
		"a rotation": Rotation{From: nas.Keys(), To: nas.Keys()},
	} {
		path := pathReport
		if name == "a rotation" {
			path = pathRotate
		}
		if err := c.call(t.Context(), path, body, nil); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	busy := 0
	for range 2 * callsBurst {
		if err := c.Report(t.Context(), Report{}); err != nil {
			busy++
			wantCode(t, err, codeBusy)
		}
	}
	if busy == 0 {
		t.Error("a flood is not bounded")
	}
	if err := r.clientOf(nas).Report(t.Context(), Report{Epoch: 1, Version: 2}); err != nil {
		t.Errorf("the other node: %v", err)
	}
	if m, _ := r.registry.Map(); mapNames(m) != "bad edge nas " {
		t.Error(mapNames(m))
	}
}

func TestRefusalsOfAGatewayDoNotWriteToTheTerminal(t *testing.T) {
	if got := printable("a\x1b[2J\nb" + strings.Repeat("x", 1000)); strings.ContainsAny(got, "\x1b\n") || len(got) > maxPrintable+len("··") {
		t.Errorf("%q", got)
	}
}

func TestNodesAreToldOfWhoeverConfirmsTheMap(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	m, _ := r.registry.Map()
	if err := r.clientOf(nas).Report(t.Context(), Report{Epoch: m.Epoch, Version: m.Version}); err != nil {
		t.Fatal(err)
	}
	r.invite(InviteOptions{Name: "tv"})
	states := r.registry.Nodes()
	if len(states) != 3 || states[1].Name != "nas" || states[1].Version != m.Version || !states[1].Seen.Equal(r.now) || !states[2].Invited {
		t.Errorf("%+v", states)
	}
}

// Whatever a stranger sends ends in an answer, and changes nothing.
func FuzzCalls(f *testing.F) {
	f.Add(pathReport, []byte(`{"epoch":1}`))
	f.Add(pathRotate, []byte(`{"from":{"key":"AAAA"}}`))
	f.Add(pathConnect, []byte(`{"node":"x"}{}`))
	f.Add(pathJoin, []byte(`{"name":"x","key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		for _, into := range []any{&Report{}, &Rotation{}, &Connect{}, &JoinRequest{}, &Event{}} {
			if err := decode(strings.NewReader(string(body)), into); err == nil {
				if _, err := json.Marshal(into); err != nil {
					t.Errorf("%T: %v", into, err)
				}
			}
		}
		var refused RefusedError
		_ = json.Unmarshal(body, &refused)
		if strings.ContainsFunc(printable(refused.Message), func(r rune) bool { return r < ' ' }) {
			t.Errorf("%q", refused.Message)
		}
	})
}

func TestACallOutsideTLSIsRefused(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x"+pathReport, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = who(req)
	wantCode(t, err, codeNotYou)
}
