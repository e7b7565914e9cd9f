package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// fakeGateway takes values as a gateway does: it speaks of a node's only while it hears of it.
type fakeGateway struct {
	name string

	mu     sync.Mutex
	faults []error // of the next calls
	away   bool    // no call reaches it
	values map[string][]string
	heard  time.Time
	calls  int
	hangs  bool // and the caller waits
	hides  bool // its name server does not tell
	loses  int  // answers to calls that were made
	mute   bool // its name server does not answer
	takes  time.Duration
	ears   *ears
}

var errLost = errors.New("connection lost")

func (f *fakeGateway) call(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.away {
		return errLost
	}
	if !f.ears.speak(f.name) {
		return errQuiet
	}
	if f.hangs { // and hears what was said only then
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		f.ears.spoke(f.name)
		f.heard = time.Now()
		return ctx.Err()
	}
	if len(f.faults) > 0 {
		err := f.faults[0]
		f.faults = f.faults[1:]
		if err != nil {
			return err
		}
	}
	f.heard = time.Now()
	return nil
}

func (f *fakeGateway) has(do func()) { f.mu.Lock(); defer f.mu.Unlock(); do() }

// unsure reports whether it would say to a CA that there may be others.
func (f *fakeGateway) unsure() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.heard) >= 10*time.Second
}

func (f *fakeGateway) texts() textGateway {
	return textGateway{
		name: f.name,
		set: func(ctx context.Context, name, value string) error {
			if err := f.call(ctx); err != nil {
				return err
			}
			var takes time.Duration
			f.has(func() { takes = f.takes })
			if sleep(ctx, takes); ctx.Err() != nil {
				return ctx.Err()
			}
			lost := false
			f.has(func() {
				f.values[name] = append(f.values[name], value)
				lost, f.loses = f.loses > 0, f.loses-1
			})
			if lost {
				return errLost
			}
			return nil
		},
		clear: func(ctx context.Context, name, value string) error {
			if err := f.call(ctx); err != nil {
				return err
			}
			f.has(func() { f.values[name] = slices.DeleteFunc(f.values[name], func(v string) bool { return v == value }) })
			return nil
		},
		hear: f.call,
		values: func(_ context.Context, name string) (list []string, err error) {
			if f.mute {
				return nil, errLost
			}
			f.has(func() { list = slices.Clone(f.values[name]) })
			if f.hides {
				return nil, nil
			}
			return list, nil
		},
	}
}

func fakeGateways(names ...string) (list []*fakeGateway, texts *gatewayTexts) {
	texts = &gatewayTexts{
		log: slog.New(slog.DiscardHandler), life: context.Background,
		place: func(_ context.Context, name string) (string, error) { return name, nil },
		gateways: func() (all []textGateway) {
			for _, f := range list {
				all = append(all, f.texts())
			}
			return all
		},
	}
	for _, name := range names {
		list = append(list, &fakeGateway{name: name, values: map[string][]string{}, ears: &texts.ears})
	}
	return list, texts
}

func refusedWith(status int) error { return &control.RefusedError{Status: status, Message: "refused"} }

const otherValue = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA"

const textName, textValue = "_acme-challenge.nas.foo-bar.example.org", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func TestAValueIsServedByEveryGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, g := fakeGateways("one", "two")
		list[0].faults = []error{refusedWith(http.StatusTooManyRequests), refusedWith(http.StatusServiceUnavailable), refusedWith(http.StatusConflict), errLost}
		undo, err := g.SetTXT(t.Context(), textName, textValue)
		if err != nil {
			t.Fatal(err)
		}
		for range 30 { // an order may take a while
			for _, f := range list {
				if f.unsure() || !slices.Equal(f.values[textName], []string{textValue}) {
					t.Fatalf("%s: %v, unsure %t", f.name, f.values, f.unsure())
				}
			}
			time.Sleep(time.Second)
		}
		list[1].has(func() { list[1].faults = []error{errLost} })
		if err := undo(t.Context()); err != nil {
			t.Error(err)
		}
		for _, f := range list {
			if len(f.values[textName]) != 0 {
				t.Errorf("%s: %v stays", f.name, f.values)
			}
		}
	})
}

// One gateway that does not answer holds nothing up, and is not asked by the CA in vain: by the time that the CA looks it says
// that it may not know all values.
func TestOneGatewayIsDeaf(t *testing.T) {
	for name, row := range map[string]struct {
		fault func(*fakeGateway)
		limit time.Duration
	}{
		"away":                                 {func(f *fakeGateway) { f.away = true }, textPatience},
		"away, but heard of this node before":  {func(f *fakeGateway) { f.away, f.heard = true, time.Now(); f.ears.spoke(f.name) }, deafTime},
		"away, and this node has just started": {func(f *fakeGateway) { f.away, f.ears.since = true, time.Now() }, deafTime},
		"hangs":                                {func(f *fakeGateway) { f.hangs = true }, textPatience + deafTime},
		"heard, and not heard of":              {func(f *fakeGateway) { f.loses = 1000 }, textPatience + deafTime},
		"its name server is away":              {func(f *fakeGateway) { f.mute = true }, textPatience + deafTime},
	} {
		synctest.Test(t, func(t *testing.T) {
			list, g := fakeGateways("deaf", "one")
			deaf := list[0]
			row.fault(deaf)
			began := time.Now()
			undo, err := g.SetTXT(t.Context(), textName, textValue)
			if err != nil {
				t.Fatal(name, err)
			}
			if took := time.Since(began); !deaf.unsure() || list[1].unsure() || took > row.limit {
				t.Errorf("%s: after %s it is sure: %t, the other one %t", name, took, !deaf.unsure(), !list[1].unsure())
			}
			if !g.ears.quiet("deaf") || g.ears.quiet("one") {
				t.Errorf("%s: it is spoken to", name)
			}
			deaf.has(func() { deaf.away, deaf.hangs, deaf.loses, deaf.mute = false, false, 0, false })
			calls := deaf.calls
			time.Sleep(time.Minute)
			other, err := g.SetTXT(t.Context(), textName, otherValue)
			if err != nil {
				t.Fatal(name, err)
			}
			if deaf.calls != calls || !deaf.unsure() || list[1].unsure() {
				t.Errorf("%s: it was called while an order goes on without it", name)
			}
			if err := undo(t.Context()); err != nil || !g.ears.quiet("deaf") {
				t.Error(name, err)
			}
			if err := other(t.Context()); err != nil || g.ears.quiet("deaf") {
				t.Error(name, err)
			}
			third, err := g.SetTXT(t.Context(), textName, textValue)
			if err != nil || deaf.unsure() || !slices.Contains(deaf.values[textName], textValue) {
				t.Errorf("%s: once it is back: %v, %v", name, deaf.values, err)
			}
			if err := third(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A gateway that has one value of an order and not the other would tell a CA of that one alone.
func TestAGatewayThatGoesDeafInAnOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, g := fakeGateways("deaf", "one")
		first, err := g.SetTXT(t.Context(), textName, textValue)
		if err != nil {
			t.Fatal(err)
		}
		list[0].has(func() { list[0].away = true })
		second, err := g.SetTXT(t.Context(), textName, otherValue)
		if err != nil {
			t.Fatal(err)
		}
		list[0].has(func() { list[0].away = false })
		for range 60 {
			if !list[0].unsure() || list[1].unsure() || len(list[1].values[textName]) != 2 {
				t.Fatalf("it is sure of %v; the other one is unsure: %t", list[0].values, list[1].unsure())
			}
			time.Sleep(time.Second)
		}
		if err := first(t.Context()); !errors.Is(err, errQuiet) || !list[0].unsure() {
			t.Errorf("it was spoken to: %v", err)
		}
		if err := second(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A slow gateway is waited for where there is no other.
func TestASlowGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, g := fakeGateways("slow")
		list[0].takes = 5 * time.Second
		undo, err := g.SetTXT(t.Context(), textName, textValue)
		if err != nil {
			t.Fatal(err)
		}
		list[0].has(func() { list[0].takes = 0 })
		if err := undo(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Nothing of a call is on its way before the other side of the handshake has spoken.
func TestWhatAGatewayMayHaveHeard(t *testing.T) {
	var e ears
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, errLost }
	if _, err := e.listening("g", dial)(t.Context(), "", ""); !errors.Is(err, errLost) || !e.of["g"].spoken.IsZero() {
		t.Errorf("%v, %+v", err, e.of)
	}
	near, far := net.Pipe()
	defer far.Close()
	go func() { // says one word, then takes everything
		_, _ = far.Write([]byte("x"))
		_, _ = io.Copy(io.Discard, far)
	}()
	conn, err := e.listening("g", func(context.Context, string, string) (net.Conn, error) { return near, nil })(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 0)); err != nil || !e.of["g"].spoken.IsZero() {
		t.Errorf("%v, %+v", err, e.of)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil || !e.of["g"].spoken.IsZero() {
		t.Errorf("%v, %+v", err, e.of)
	}
	if _, err := conn.Write([]byte("call")); err != nil || e.of["g"].spoken.IsZero() {
		t.Errorf("a call was not heard: %v, %+v", err, e.of)
	}
	one := []textGateway{{name: "g"}}
	e.silence(one)
	if _, err := conn.Write([]byte("call")); !errors.Is(err, errQuiet) {
		t.Errorf("a call while it is quiet: %v", err)
	}
	e.release(one)
	before := e.of["g"].spoken
	conn.Close()
	if !e.of["g"].spoken.After(before) {
		t.Error("until its end a call may have been heard")
	}
}

func TestValuesThatAreNotServed(t *testing.T) {
	for name, row := range map[string]struct {
		fault func(a, b *fakeGateway)
		want  string
		limit time.Duration
	}{
		"a refusal":              {func(a, _ *fakeGateway) { a.faults = []error{refusedWith(http.StatusForbidden)} }, "gateway one: refused", time.Second},
		"a refusal for good":     {func(a, _ *fakeGateway) { a.faults = slices.Repeat([]error{refusedWith(http.StatusConflict)}, 1000) }, "gateway one: refused", time.Minute},
		"all away":               {func(a, b *fakeGateway) { a.away, b.away = true, true }, "connection lost", time.Minute},
		"one that does not tell": {func(a, _ *fakeGateway) { a.hides = true }, "gateway one: it took the value", 15 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			list, g := fakeGateways("one", "two")
			row.fault(list[0], list[1])
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			undo, err := g.SetTXT(ctx, textName, textValue)
			if err == nil || undo != nil || !strings.Contains(err.Error(), row.want) || time.Since(began) > row.limit {
				t.Errorf("%s: %v after %s", name, err, time.Since(began))
			}
			if n := len(list[1].values[textName]); n != 0 {
				t.Errorf("%s: %d values stay at the other gateway", name, n)
			}
		})
	}
	_, g := fakeGateways()
	if _, err := g.SetTXT(t.Context(), textName, textValue); err == nil || hintOf(err) == "" {
		t.Errorf("without a gateway: %v", err)
	}
}

// An undo that fails leaves the value to its lease.
func TestAnUndoThatFailsSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, g := fakeGateways("one")
		undo, err := g.SetTXT(t.Context(), textName, textValue)
		if err != nil {
			t.Fatal(err)
		}
		list[0].has(func() { list[0].away = true })
		ctx, cancel := context.WithTimeout(t.Context(), textUndo)
		defer cancel()
		if err := undo(ctx); err == nil || !strings.Contains(err.Error(), "gateway one") {
			t.Error(err)
		}
	})
}

// A gateway hears of a node for as long as it says, within reason.
func TestHowLongAGatewayIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := heardTexts{wake: make(chan struct{}, 1)}
		if h.wanted() {
			t.Error("from the start")
		}
		h.tell(time.Now().Add(time.Minute))
		h.tell(time.Now().Add(time.Second))
		time.Sleep(time.Minute - time.Second)
		if !h.wanted() {
			t.Error("not any more")
		}
		h.tell(time.Now().Add(1000 * time.Hour))
		time.Sleep(2 * textLife)
		if h.wanted() {
			t.Error("for ever")
		}
	})
}
