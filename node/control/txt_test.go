package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// digest is a value as a CA wants one, another for each number.
func digest(n int) string { return strings.Repeat("A", 40) + fmt.Sprintf("%02dA", n) }

const nasChallenge = "_acme-challenge.nas." + testZone

// texts are the values that the public may see, as name=value.
func (r *rig) texts() []string {
	view, _ := r.registry.Certs()
	var list []string
	for _, t := range view.Texts {
		list = append(list, strings.TrimSuffix(t.Name, "."+testZone)+"="+t.Value)
	}
	return list
}

func TestANodePublishesUnderItsOwnNames(t *testing.T) {
	r := newRig(t)
	published := 0
	r.serve(func(c *ServerConfig) { c.Publish = func() error { published++; return nil } })
	nas := r.join("nas")
	c := r.clientOf(nas)
	ctx := t.Context()
	for i, name := range []string{nasChallenge, "_ACME-challenge.NAS." + testZone + ".", "_acme-challenge.app.nas." + testZone} {
		if err := c.SetText(ctx, name, digest(i), 0); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if err := c.SetText(ctx, nasChallenge, digest(0), 0); err != nil { // once more
		t.Fatal(err)
	}
	want := []string{"_acme-challenge.app.nas=" + digest(2), "_acme-challenge.nas=" + digest(0), "_acme-challenge.nas=" + digest(1)}
	if got := r.texts(); !slices.Equal(got, want) || published != 4 {
		t.Errorf("%v, published %d times", got, published)
	}
	mine, err := c.Published(ctx)
	if err != nil || len(mine.Texts) != 3 || !mine.Texts[0].Expires.Equal(r.now.Add(10*time.Minute)) || len(mine.Issue) != 0 {
		t.Errorf("%+v, %v", mine, err)
	}
	for range 2 {
		if err := c.ClearText(ctx, nasChallenge, digest(0)); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.texts(); !slices.Equal(got, []string{want[0], want[2]}) {
		t.Error(got)
	}
	// A gateway that starts anew has what it had, and nothing of it that has ended.
	r.now = r.now.Add(9 * time.Minute)
	if err := c.SetText(ctx, nasChallenge, digest(5), time.Hour); err != nil {
		t.Fatal(err)
	}
	r.registry = r.open()
	if got := r.texts(); len(got) != 3 {
		t.Error("after a restart: ", got)
	}
	r.now = r.now.Add(time.Minute)
	if got := r.texts(); !slices.Equal(got, []string{"_acme-challenge.nas=" + digest(5)}) {
		t.Error("after ten minutes: ", got)
	}
	r.now = r.now.Add(14 * time.Minute) // an hour is a quarter at most
	if got := r.texts(); len(got) != 0 {
		t.Error("after a quarter of an hour: ", got)
	}
	r.tick()
	if r.registry.certs["nas"] != nil {
		t.Errorf("%+v stays", r.registry.certs["nas"])
	}
}

// Nobody publishes anything else, and a call that is refused changes nothing.
func TestWhatIsNotPublished(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	r.join("tv")
	c := r.clientOf(nas)
	if err := c.SetText(t.Context(), nasChallenge, digest(1), 0); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprint(r.texts())
	for what, row := range map[string]struct{ name, value, code string }{
		"another node's name":          {"_acme-challenge.tv." + testZone, digest(2), codeNotYours},
		"below another node's":         {"_acme-challenge.x.tv." + testZone, digest(2), codeNotYours},
		"the zone's top":               {"_acme-challenge." + testZone, digest(2), codeNotYours},
		"a node's name itself":         {"nas." + testZone, digest(2), codeNotYours},
		"_acme-challenge twice":        {"_acme-challenge._acme-challenge.nas." + testZone, digest(2), codeNotYours},
		"twice, apart":                 {"_acme-challenge.x._acme-challenge.nas." + testZone, digest(2), codeNotYours},
		"not at the front":             {"x._acme-challenge.nas." + testZone, digest(2), codeNotYours},
		"two labels below":             {"_acme-challenge.a.b.nas." + testZone, digest(2), codeNotYours},
		"nobody's name":                {"_acme-challenge.web." + testZone, digest(2), codeNotYours},
		"another zone":                 {"_acme-challenge.nas.example.com", digest(2), codeNotYours},
		"a name that ends like ours":   {"_acme-challenge.xnas." + testZone, digest(2), codeNotYours},
		"a wildcard":                   {"_acme-challenge.*.nas." + testZone, digest(2), codeNotYours},
		"a bad xn-- label":             {"_acme-challenge.xn--a.nas." + testZone, digest(2), codeNotYours},
		"a label of a service":         {"_acme-challenge._tcp.nas." + testZone, digest(2), codeNotYours},
		"an escape":                    {`_acme-challenge.a\.b.nas.` + testZone, digest(2), codeNotYours},
		"no name":                      {"", digest(2), codeNotYours},
		"no value":                     {nasChallenge, "", codeBad},
		"a short value":                {nasChallenge, digest(2)[1:], codeBad},
		"a long value":                 {nasChallenge, digest(2) + "A", codeBad},
		"a value of another alphabet":  {nasChallenge, strings.Repeat("+", 43), codeBad},
		"a value with bits left over":  {nasChallenge, strings.Repeat("A", 42) + "B", codeBad},
		"a value for another service":  {nasChallenge, "v=spf1 include:example.com -all            ", codeBad},
		"a value with a line's end":    {nasChallenge, digest(2)[:42] + "\n", codeBad},
		"a value with a line's end in": {nasChallenge, digest(2)[:21] + "\n" + digest(2)[21:], codeBad},
	} {
		wantCode(t, c.SetText(t.Context(), row.name, row.value, 0), row.code)
		if got := fmt.Sprint(r.texts()); got != before {
			t.Errorf("%s: %s", what, got)
		}
		if row.code == codeNotYours {
			wantCode(t, c.ClearText(t.Context(), row.name, digest(1)), codeNotYours)
		}
		r.now = r.now.Add(2 * time.Second) // its rate is another test's
	}
	wantCode(t, c.SetText(t.Context(), nasChallenge, digest(2), -time.Second), codeBad)
	wantCode(t, c.ClearText(t.Context(), nasChallenge, ""), codeBad)
	wantCode(t, c.callBy(t.Context(), http.MethodPut, pathText, textRequest{Name: strings.Repeat("x", 5000)}, nil), codeBad)
	if got := fmt.Sprint(r.texts()); got != before {
		t.Error(got)
	}
	// S1: the address or the key alone is nobody's.
	for _, other := range []*Client{r.client(nas.Addresses[0], newPrivateKey(t)), r.client(addr("127.80.9.9"), nas.key)} {
		if err := other.SetText(t.Context(), nasChallenge, digest(2), 0); err == nil {
			t.Error("a stranger's value is taken")
		}
	}
}

func TestValuesAreBounded(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas, tv := r.join("nas"), r.join("tv")
	c, ctx := r.clientOf(nas), t.Context()
	set := func(name string, n int) error {
		r.now = r.now.Add(3 * time.Second)
		return c.SetText(ctx, name, digest(n), 0)
	}
	for n := range maxTextsName {
		if err := set(nasChallenge, n); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, set(nasChallenge, 50), codeFull)
	if err := set(nasChallenge, 0); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	for n := maxTextsName; n < maxTextsNode; n++ {
		if err := set(fmt.Sprintf("_acme-challenge.h%d.nas.%s", n%5, testZone), n); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, set("_acme-challenge.more.nas."+testZone, 50), codeFull)
	if err := r.clientOf(tv).SetText(ctx, "_acme-challenge.tv."+testZone, digest(1), 0); err != nil {
		t.Errorf("another node: %v", err)
	}
	// And by the minute; what takes values away is never put off.
	r.now = r.now.Add(16 * time.Minute)
	puts := 0
	for n := range 2 * maxPuts {
		_, err := r.registry.changeTexts(ctx, "nas", "", textChange{Name: nasChallenge, Value: digest(n % 5)})
		if err == nil {
			puts++
		} else {
			wantCode(t, err, codeBusy)
		}
	}
	if puts != maxPuts {
		t.Errorf("%d values in no time", puts)
	}
	for n := range 3 * callsBurst {
		if err := c.ClearText(ctx, nasChallenge, digest(n%5)); err != nil {
			t.Fatalf("the %dth time: %v", n, err)
		}
	}
	if got := r.texts(); len(got) != 0 && len(got) != 1 { // tv's has ended by now
		t.Error(got)
	}
}

// S5: what a node published goes with its name.
func TestWhatIsPublishedGoesWithTheName(t *testing.T) {
	const account = "https://acme-v02.api.letsencrypt.org/acme/acct/1"
	for what, end := range map[string]func(*rig) error{
		"removed": func(r *rig) error { _, err := r.registry.Remove(t.Context(), "nas", time.Time{}); return err },
		"renamed": func(r *rig) error { return r.registry.Rename(t.Context(), "nas", "box", time.Time{}) },
	} {
		r := newRig(t)
		r.serve()
		nas := r.join("nas")
		c := r.clientOf(nas)
		if err := errors.Join(c.SetText(t.Context(), nasChallenge, digest(1), 0), c.SetAccount(t.Context(), account, false)); err != nil {
			t.Fatal(err)
		}
		made, err := r.registry.AddCredential(t.Context(), "nas", "", account, true)
		if err != nil {
			t.Fatal(err)
		}
		if view, _ := r.registry.Certs(); len(view.Texts) != 1 || len(view.Issue) != 1 {
			t.Fatalf("%+v", view)
		}
		if err := end(r); err != nil {
			t.Fatal(err)
		}
		r.join("nas") // somebody else's now
		for _, registry := range []*Registry{r.registry, r.open()} {
			view, _ := registry.Certs()
			_, _, known := registry.credentialOf(tsigCredential, made.ID, nas.Addresses[0])
			if len(view.Texts)+len(view.Issue)+len(registry.certs) != 0 || known {
				t.Errorf("%s: %+v stays, %t", what, view, known)
			}
		}
	}
}

// A service name that is given to another node takes its values along.
func TestAServiceNamesValuesAreItsOwners(t *testing.T) {
	r := newRig(t)
	nas, tv := r.join("nas"), r.join("tv")
	put := func(n Node, names ...string) {
		t.Helper()
		n.Names = names
		if err := r.registry.Put(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	put(nas.Node, "photos")
	photos := textChange{Name: "_acme-challenge.photos." + testZone, Value: digest(1)}
	if _, err := r.registry.changeTexts(t.Context(), "nas", "", photos); err != nil || len(r.texts()) != 1 {
		t.Fatal(err, r.texts())
	}
	put(nas.Node)
	put(tv.Node, "photos")
	if len(r.texts()) != 0 {
		t.Error(r.texts())
	}
	_, err := r.registry.changeTexts(t.Context(), "nas", "", photos)
	wantCode(t, err, codeNotYours)
	if _, err := r.registry.changeTexts(t.Context(), "tv", "", photos); err != nil {
		t.Error(err)
	}
}

// A gateway speaks of a node's challenges only while it hears of the node, and of a name that nobody has never.
func TestAGatewayIsSureOfWhomItHears(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	r.join("tv")
	c := r.clientOf(nas)
	sub := "_acme-challenge.app.nas." + testZone
	sure := func(want bool) {
		t.Helper()
		for _, name := range []string{nasChallenge, sub} {
			if r.registry.Unsure(name) == want {
				t.Errorf("%s: sure is %t", name, !want)
			}
		}
		for _, name := range []string{"tv", "nobody", "a.b.nas"} {
			if !r.registry.Unsure("_acme-challenge." + name + "." + testZone) {
				t.Errorf("%s is told apart", name)
			}
		}
	}
	sure(false)
	wantCode(t, c.SetText(t.Context(), nasChallenge, "x", 0), codeBad)
	sure(false)
	if err := c.SetText(t.Context(), nasChallenge, digest(1), 0); err != nil {
		t.Fatal(err)
	}
	sure(true)
	r.now = r.now.Add(hearTime)
	sure(false) // though it has a value
	if _, err := c.Published(t.Context()); err != nil {
		t.Fatal(err)
	}
	sure(true)
	r.registry = r.open()
	sure(false) // until it is heard anew
}

// A node is told on its stream until when a gateway needs to hear of it.
func TestTheStreamTellsOfValues(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas := r.join("nas")
	told := make(chan time.Time, 10)
	follow := func() context.CancelFunc {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_ = r.clientOf(nas).Stream(ctx, nil, func(e Event) error {
				if !e.Texts.IsZero() {
					told <- e.Texts
				}
				return nil
			})
		}()
		return cancel
	}
	soonStream := func() bool { r.server.mu.Lock(); defer r.server.mu.Unlock(); return r.server.streams["nas"] != nil }
	cancel := follow()
	for over := time.After(30 * time.Second); !soonStream(); {
		select {
		case <-over:
			t.Fatal("no stream")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := r.clientOf(nas).SetText(t.Context(), nasChallenge, digest(1), 0); err != nil {
		t.Fatal(err)
	}
	if until := <-told; !until.Equal(r.now.Add(leaseTime)) {
		t.Error(until)
	}
	cancel()
	defer follow()()
	<-told // it may have written them before it started anew
}

// safeBuffer is a log that may be read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *safeBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func TestEveryWriteIsWrittenDown(t *testing.T) {
	r := newRig(t)
	log := new(safeBuffer)
	full := false
	r.serve(func(c *ServerConfig) {
		c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo}))
		c.Publish = func() error {
			if full {
				return errors.New("the table is full")
			}
			return nil
		}
	})
	c := r.clientOf(r.join("nas"))
	_ = c.SetText(t.Context(), nasChallenge, digest(1), 0)
	_ = c.SetText(t.Context(), "_acme-challenge.tv."+testZone, digest(2), 0)
	_ = c.ClearText(t.Context(), nasChallenge, digest(1))
	full = true
	wantCode(t, c.SetText(t.Context(), nasChallenge, digest(3), 0), codeBusy)
	if len(r.texts()) != 0 {
		t.Errorf("%v is held and not served", r.texts())
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) < 4 || strings.Contains(log.String(), "AAAAA") {
		t.Errorf("%s", log)
	}
	for i, want := range []string{"result=done", "tv." + testZone, "drop=true", "does not take"} {
		if !strings.Contains(lines[i], want) || !strings.Contains(lines[i], "node=nas") || !strings.Contains(lines[i], "value_sha256=") {
			t.Errorf("line %d: %s, want %s", i, lines[i], want)
		}
	}
}

// FuzzPublish has a node ask for anything: nothing but digests at its own names ever comes of it.
func FuzzPublish(f *testing.F) {
	f.Add("_acme-challenge.nas.foo.example", digest(1))
	f.Add("_acme-challenge.a.nas.foo.example.", "x")
	f.Add("_acme-challenge._acme-challenge.nas.foo.example", digest(2))
	owners := map[string]string{"nas.foo.example": "nas", "tv.foo.example": "tv", "x.nas.foo.example": "tv"}
	f.Fuzz(func(t *testing.T, name, value string) {
		c := textChange{Name: foldName(name), Value: value}
		if checkChange(owners, "nas", c) != nil {
			return
		}
		labels := strings.Split(c.Name, ".")
		n := len(labels)
		if n < 4 || n > 5 || labels[0] != "_acme-challenge" || strings.Join(labels[n-3:], ".") != "nas.foo.example" || labels[1] == "x" ||
			strings.Count(c.Name, "_") != 1 || len(value) != 43 || strings.ContainsAny(c.Name+value, " \n\"\\*") {
			t.Errorf("%q %q", name, value)
		}
	})
}

// A node has two addresses, and one limit: so many values in any minute.
func TestWritesAreCountedByTheMinute(t *testing.T) {
	r := newRig(t)
	nas := r.join("nas")
	if len(nas.Addresses) != 2 {
		t.Fatal(nas.Addresses)
	}
	write := func() error {
		_, err := r.registry.changeTexts(t.Context(), "nas", "", textChange{Name: nasChallenge, Value: digest(1)})
		return err
	}
	for n := range maxPuts {
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if n == maxPuts/2 {
			r.pass(40 * time.Second)
		}
	}
	wantCode(t, write(), codeBusy)
	r.pass(20 * time.Second) // the first half is a minute old
	for range maxPuts/2 + 1 {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, write(), codeBusy)
	if len(r.registry.writes.at) != 1 {
		t.Errorf("%v", r.registry.writes.at)
	}
}
