package node

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestNoOutsideNameHasAnAddressOfTheMapInUse(t *testing.T) {
	rest := zoneServer(t, map[string]string{
		"old.example.": "A 100.70.0.1", "old2.example.": "A 100.70.0.1",
		"new.example.": "A 10.99.0.5", "new2.example.": "A 10.99.0.5",
		"fine.example.": "A 192.0.2.9",
	})
	cfg := testConfig()
	cfg.DNS.Upstreams = []string{rest}
	n := startNode(t, cfg, testPaths(t))
	passes := func(name string) bool {
		_, got := n.ask(t, name)
		return len(got) > 0
	}
	if passes("old.example.") || !passes("new.example.") || !passes("fine.example.") {
		t.Error("the first map: want its own range refused, and nothing else")
	}
	moved := "zone: foo-bar.ts.net\nranges: [10.99.0.0/16]\nnodes:\n  nas:\n    addresses: [10.99.0.2]\n"
	n.node.newMap(mustParse(t, moved))
	if !passes("old2.example.") || passes("new2.example.") || !passes("fine.example.") {
		t.Error("the map with other ranges: want those refused, and nothing else")
	}
	if passes("new.example.") {
		t.Error("what was cached before still points into the new range")
	}
	if _, got := n.ask(t, "nas.foo-bar.ts.net."); len(got) != 1 || got[0] != "10.99.0.2" {
		t.Errorf("nas: got %v, want its new address", got)
	}
}

func TestStubIsTriedAsProgramsWillAskIt(t *testing.T) {
	n, _ := apiNode(t, testConfig(), &fakeSystem{})
	asked := make(chan string, 2) // over UDP and TCP
	ours := testServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked <- q.Question[0].Name
		_ = w.WriteMsg(soaOf(q)) // what does not arrive, the test sees
	})
	must(t, n.tryStub(t.Context(), ours))
	if name := <-asked; name != "foo-bar.ts.net." {
		t.Errorf("asked for %q, want the zone", name)
	}
	others := testServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError)) // what does not arrive, the test sees
	})
	if err := n.tryStub(t.Context(), others); err == nil {
		t.Error("another's server: no error")
	}
}

func TestAnswerThatDoesNotEncodeIsAnError(t *testing.T) {
	c := &localAPI{log: slog.New(slog.DiscardHandler)}
	w := httptest.NewRecorder()
	c.write(w, http.StatusOK, make(chan int))
	if w.Code != http.StatusInternalServerError {
		t.Errorf("got %d, want 500", w.Code)
	}
}

func TestFileThatMovedIsSeenWithoutEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "map.yaml")
	w := &watcher{Path: path}
	if w.moved() {
		t.Error("there was no file, and is none: got moved")
	}
	must(t, put(path, "one"))
	if !w.moved() {
		t.Error("a file that was made: got unmoved")
	}
	if _, err := w.read(); err != nil || w.moved() {
		t.Errorf("once it is read: got moved, %v", err)
	}
	past := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(path, past, past))
	if !w.moved() {
		t.Error("a file of another time: got unmoved")
	}
	_, err := w.read()
	must(t, err)
	must(t, replace(path, "two"), os.Chtimes(path, past, past))
	if !w.moved() {
		t.Error("another file of the same size and time: got unmoved")
	}
	must(t, os.Remove(path))
	if !w.moved() {
		t.Error("a file that is gone: got unmoved")
	}
	if _, err := w.read(); !errors.Is(err, os.ErrNotExist) || w.moved() {
		t.Errorf("once that is known: got moved, %v", err)
	}
}

func TestServiceManagerThatIsGoneIsNoReasonToEnd(t *testing.T) {
	n := startNodeWith(t, testConfig(), Options{Paths: testPaths(t), Notify: filepath.Join(t.TempDir(), "none")})
	if err := n.end(); err != nil || !n.said("ended") {
		t.Errorf("got %v, want a good end", err)
	}
}

func TestFurtherAddressThatIsHeldIsNotMovedAway(t *testing.T) {
	cfg := testConfig()
	cfg.DNS.Listen = append(cfg.DNS.Listen, heldPort(t, "udp"))
	n, err := New(cfg, Options{Paths: testPaths(t)})
	must(t, err)
	bound, err := n.bind(t.Context())
	var held *heldError
	if bound != nil || !errors.As(err, &held) || !strings.Contains(err.Error(), cfg.DNS.Listen[0].String()) {
		t.Errorf("got %v, want an error that names the address", err)
	}
	if !isFree(n.stub) {
		t.Error("the stub, which came first, is still bound")
	}
}
