package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// board is a gateway's side of funnels, that opens all.
type board struct {
	mu   sync.Mutex
	has  map[string][]Funnel
	left chan string
}

func newBoard() *board { return &board{has: map[string][]Funnel{}, left: make(chan string, 10)} }

func (b *board) register(_ context.Context, node string, list []Funnel) ([]Funnel, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.has[node] = slices.Clone(list)
	for i := range list {
		list[i].Open = true
	}
	return list, nil
}

func (b *board) of(node string) []Funnel {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.has[node]
}

func (b *board) serve(r *rig) {
	r.serve(func(c *ServerConfig) {
		c.Register, c.Left = b.register, func(node string) { b.left <- node }
		c.Try = func(_ context.Context, _ string, f Funnel) (Funnel, error) {
			f.Step("connection", "203.0.113.5:443", nil)
			f.Step("tls", "", fmt.Errorf("an alert\x1b[31m"))
			return f, nil
		}
	})
}

// held is a stream that is open until it is ended.
func held(t *testing.T, c *Client) (events chan Event, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events = make(chan Event, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Stream(ctx, nil, func(e Event) error { // which always ends with an error
			events <- e
			return nil
		})
	}()
	select {
	case <-events:
	case <-done:
		t.Fatal("the stream does not open")
	}
	end = func() {
		cancel()
		<-done
	}
	t.Cleanup(end)
	return events, end
}

// What a node shows holds while its stream is open: nobody would notice its end otherwise.
func TestFunnelsLiveWithTheStream(t *testing.T) {
	r, b := newRig(t), newBoard()
	b.serve(r)
	nas := r.clientOf(r.join("nas"))
	wish := []Funnel{{Name: "NAS.foo-bar.ts.net.", Port: 443, Kind: "https"}}
	_, err := nas.SetFunnels(t.Context(), wish)
	wantCode(t, err, codeBusy)
	_, end := held(t, nas)
	got, err := nas.SetFunnels(t.Context(), wish)
	if err != nil || len(got) != 1 || !got[0].Open || got[0].Name != "nas.foo-bar.ts.net" {
		t.Fatalf("%+v, %v", got, err)
	}
	end()
	if left := <-b.left; left != "nas" {
		t.Errorf("%s has left", left)
	}
}

// What the gateway says of a funnel is not the node's to say.
func TestANodeDoesNotSayWhatBecomesOfItsFunnels(t *testing.T) {
	r, b := newRig(t), newBoard()
	b.serve(r)
	nas := r.clientOf(r.join("nas"))
	held(t, nas)
	_, err := nas.SetFunnels(t.Context(), []Funnel{{Name: "a.example", Port: 443, Kind: "https", Open: true, Why: "so", At: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:1")}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.of("nas"); len(got) != 1 || got[0].Open || got[0].Why != "" || got[0].At != nil {
		t.Errorf("%+v", got)
	}
}

func TestFunnelsThatAreRefusedByTheCall(t *testing.T) {
	r, b := newRig(t), newBoard()
	b.serve(r)
	nas := r.clientOf(r.join("nas"))
	held(t, nas)
	many := []Funnel{}
	for i := range maxFunnels + 1 {
		many = append(many, Funnel{Port: uint16(i + 1), Kind: "tcp"})
	}
	_, err := nas.SetFunnels(t.Context(), many)
	wantCode(t, err, codeFull)
	_, err = nas.SetFunnels(t.Context(), []Funnel{{Name: "a.example", Port: 443, Kind: "https"}, {Name: "A.example.", Port: 443, Kind: "https"}})
	wantCode(t, err, codeBad)
	if b.of("nas") != nil {
		t.Error("some were taken")
	}
}

// S14: the key of visits is known to the two ends of a stream alone, and another one with each stream. The one before counts for
// a moment longer, for visitors that are on the way.
func TestBothEndsOfAStreamHaveTheVisitKey(t *testing.T) {
	r, b := newRig(t), newBoard()
	b.serve(r)
	nas, tv := r.clientOf(r.join("nas")), r.clientOf(r.join("tv"))
	if len(nas.VisitKeys()) != 0 {
		t.Error("a key without a stream")
	}
	_, end := held(t, nas)
	held(t, tv)
	first, ok := r.server.VisitKey("nas")
	if keys := nas.VisitKeys(); !ok || len(first) != 32 || len(keys) != 1 || !bytes.Equal(keys[0], first) {
		t.Fatalf("%v: %x and %x", ok, first, keys)
	}
	if keys := tv.VisitKeys(); len(keys) != 1 || bytes.Equal(keys[0], first) {
		t.Error("two nodes with one key")
	}
	end()
	<-b.left
	if _, ok := r.server.VisitKey("nas"); ok {
		t.Error("a key of a stream that has ended")
	}
	held(t, nas)
	second, _ := r.server.VisitKey("nas")
	keys := nas.VisitKeys()
	if len(keys) != 2 || !bytes.Equal(keys[0], second) || !bytes.Equal(keys[1], first) || bytes.Equal(first, second) {
		t.Errorf("%x, then %x: the node has %x", first, second, keys)
	}
	if text := fmt.Sprintf("%v %+v %#v", nas.visits, nas.visits, nas.visits); strings.Contains(text, fmt.Sprint(second[0], " ", second[1])) {
		t.Error("the keys are printed:", text)
	}
}

func TestTheGatewayTellsWhatBecomesOfFunnels(t *testing.T) {
	r, b := newRig(t), newBoard()
	b.serve(r)
	nas := r.clientOf(r.join("nas"))
	events, _ := held(t, nas)
	gone := Funnel{Name: "www.example.com", Port: 443, Kind: "https"}.Refused("domain", "add a CNAME", "www.example.com points \x1b[31melsewhere")
	r.server.TellFunnels("tv", []Funnel{gone})
	r.server.TellFunnels("nas", []Funnel{gone})
	for e := range events {
		if len(e.Funnels) == 0 {
			continue
		}
		if got := e.Funnels[0]; got.Open || got.Code != "domain" || got.Mend == "" || got.Why != "www.example.com points ·[31melsewhere" || !got.Same(gone) {
			t.Errorf("%+v", got)
		}
		return
	}
}

func TestATryTellsItsSteps(t *testing.T) {
	r, b := newRig(t), newBoard()
	b.serve(r)
	got, err := r.clientOf(r.join("nas")).TryFunnel(t.Context(), Funnel{Name: "a.example", Port: 443, Kind: "https"})
	if err != nil || len(got.Steps) != 2 || got.Steps[0].Err != "" || got.Steps[1].Err != "an alert·[31m" {
		t.Errorf("%+v, %v", got, err)
	}
}

// A node that is no node any more is told nothing, and shows nothing.
func TestARemovedNodeRegistersNothing(t *testing.T) {
	r, b := newRig(t), newBoard()
	b.serve(r)
	nas := r.clientOf(r.join("nas"))
	held(t, nas)
	if _, err := r.registry.Remove(t.Context(), "nas", time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := nas.SetFunnels(t.Context(), []Funnel{{Name: "a.example", Port: 443, Kind: "https"}}); err == nil || b.of("nas") != nil {
		t.Errorf("%v, %+v", err, b.of("nas"))
	}
	if left := <-b.left; left != "nas" {
		t.Error(left)
	}
}

// S12: a node takes service names that are free and pass, and gives them up to nobody for a while.
func TestANodeTakesServiceNames(t *testing.T) {
	r := newRig(t)
	r.registry.cfg.MayHave = func(n Node, names []string) error {
		if slices.Contains(names, "admin") {
			return fmt.Errorf("policy does not let %s have admin", n.Name)
		}
		return nil
	}
	r.registry.cfg.CheckName = func(name string, _ []string) error {
		if name == "wpad" {
			return fmt.Errorf("refused")
		}
		return nil
	}
	r.serve()
	nas, tv := r.clientOf(r.join("nas")), r.clientOf(r.join("tv"))
	ctx := t.Context()
	if err := nas.SetNames(ctx, []string{"Photos", "git"}); err != nil {
		t.Fatal(err)
	}
	names := func() []string {
		m, _ := r.registry.Map()
		return m.Nodes[slices.IndexFunc(m.Nodes, func(n Node) bool { return n.Name == "nas" })].Names
	}
	if got := names(); !slices.Equal(got, []string{"git", "photos"}) {
		t.Errorf("%q", got)
	}
	wantCode(t, tv.SetNames(ctx, []string{"photos"}), codeNameTaken)
	wantCode(t, tv.SetNames(ctx, []string{"nas"}), codeNameTaken)
	wantCode(t, tv.SetNames(ctx, []string{"wpad"}), codeNameBad)
	wantCode(t, tv.SetNames(ctx, []string{"admin"}), codeNotYours)
	wantCode(t, tv.SetNames(ctx, slices.Repeat([]string{"a"}, maxServiceNames+1)), codeFull)
	if err := nas.SetNames(ctx, nil); err != nil || len(names()) != 0 {
		t.Errorf("%v, %q", err, names())
	}
	wantCode(t, tv.SetNames(ctx, []string{"photos"}), codeNameTaken)
	if err := nas.SetNames(ctx, []string{"photos"}); err != nil {
		t.Error("its own name of before:", err)
	}
}

// With a lock the names are what the owner has signed: a change would make the node nobody's to believe.
func TestALockedNodesNamesStay(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.clientOf(r.join("nas"))
	r.registry.cfg.Lock = []ControlKey{{1}}
	wantCode(t, nas.SetNames(t.Context(), []string{"photos"}), codeLocked)
}

// A node that is gone without a word is missed: what it shows must not be shown for long. One that shows nothing may be silent.
func TestANodeThatShowsSomethingIsHeard(t *testing.T) {
	r, b := newRig(t), newBoard()
	b.serve(r)
	r.server.silence = 5 * time.Second
	nas, tv, dead := r.clientOf(r.join("nas")), r.clientOf(r.join("tv")), r.clientOf(r.join("dead"))
	nas.pulse, tv.pulse, dead.pulse = 250*time.Millisecond, // which is less often than a node may call
		time.Hour, time.Hour
	for _, c := range []*Client{nas, tv, dead} {
		held(t, c)
	}
	for _, c := range []*Client{nas, dead} {
		if _, err := c.SetFunnels(t.Context(), []Funnel{{Name: "a.example", Port: 443, Kind: "https"}}); err != nil {
			t.Fatal(err)
		}
	}
	if left := <-b.left; left != "dead" {
		t.Errorf("%s is missed", left)
	}
	for _, name := range []string{"nas", "tv"} {
		if _, ok := r.server.VisitKey(name); !ok {
			t.Errorf("%s is missed", name)
		}
	}
	// Once the last one has ended it may be silent again.
	if _, err := nas.SetFunnels(t.Context(), nil); err != nil || nas.showing() {
		t.Error(err)
	}
}

func FuzzFunnels(f *testing.F) {
	f.Add([]byte(`[{"name":"a.example","port":443,"kind":"https"}]`))
	f.Add([]byte(`[{"port":65536}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var list []Funnel
		if decode(bytes.NewReader(data), &list) != nil {
			return
		}
		again, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		var back []Funnel
		if err := json.Unmarshal(again, &back); err != nil || len(back) != len(list) {
			t.Fatalf("%q: %v", again, err)
		}
	})
}
