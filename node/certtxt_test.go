package node

import (
	"context"
	"errors"
	"log/slog"
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
}

var errLost = errors.New("connection lost")

func (f *fakeGateway) call(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.hangs {
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		return ctx.Err()
	}
	if f.away {
		return errLost
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
			f.has(func() { list = slices.Clone(f.values[name]) })
			if f.hides {
				return nil, nil
			}
			return list, nil
		},
	}
}

func fakeGateways(names ...string) (list []*fakeGateway, texts *gatewayTexts) {
	for _, name := range names {
		list = append(list, &fakeGateway{name: name, values: map[string][]string{}, heard: time.Now()})
	}
	return list, &gatewayTexts{log: slog.New(slog.DiscardHandler), life: context.Background, gateways: func() (all []textGateway) {
		for _, f := range list {
			all = append(all, f.texts())
		}
		return all
	}}
}

func refusedWith(status int) error { return &control.RefusedError{Status: status, Message: "refused"} }

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

// One gateway that is not reached holds nothing up for long, and is not asked by the CA in vain: by the time that the CA looks
// it says that it may not know all values.
func TestOneGatewayIsDeaf(t *testing.T) {
	for name, fault := range map[string]func(*fakeGateway){
		"away":                    func(f *fakeGateway) { f.away = true },
		"hangs":                   func(f *fakeGateway) { f.hangs = true },
		"heard, and not heard of": func(f *fakeGateway) { f.loses = maxDeaf },
	} {
		synctest.Test(t, func(t *testing.T) {
			list, g := fakeGateways("deaf", "one")
			deaf := list[0]
			fault(deaf)
			began := time.Now()
			undo, err := g.SetTXT(t.Context(), textName, textValue)
			if err != nil {
				t.Fatal(err)
			}
			took := time.Since(began)
			if !deaf.unsure() || list[1].unsure() || took > 25*time.Second {
				t.Errorf("%s: after %s it is sure: %t, the other one %t", name, took, !deaf.unsure(), !list[1].unsure())
			}
			if !g.isQuiet("deaf") || g.isQuiet("one") {
				t.Errorf("%s: it is spoken to", name)
			}
			calls := deaf.calls
			time.Sleep(time.Minute)
			if deaf.calls != calls || list[1].unsure() {
				t.Errorf("%s: it was called", name)
			}
			if err := undo(t.Context()); err != nil || g.isQuiet("deaf") {
				t.Error(name, err)
			}
		})
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
