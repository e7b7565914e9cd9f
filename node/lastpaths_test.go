package node

import (
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// pathKey is a key that only its number tells from others.
func pathKey(i int) tunnel.Key { return tunnel.Key{byte(i), byte(i >> 8), 1} }

func lastAt(i int, at string, seen time.Time) lastPath {
	return lastPath{Key: control.WireGuardKey(pathKey(i)), At: netip.MustParseAddrPort(at), Seen: seen}
}

func TestWhatIsBelievedOfLastPaths(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	kept := map[tunnel.Key]lastPath{}
	for i, l := range []lastPath{
		lastAt(0, "198.51.100.1:41642", now),
		lastAt(1, "[2001:db8::1]:41642", now.Add(-lastPathLife+time.Minute)),
		lastAt(2, "198.51.100.1:41642", now.Add(30*time.Minute)),
		lastAt(3, "198.51.100.1:41642", now.Add(-lastPathLife)),
		lastAt(4, "198.51.100.1:41642", now.Add(time.Hour)),
		{Key: control.WireGuardKey(pathKey(5)), Seen: now},
		{At: netip.MustParseAddrPort("198.51.100.1:41642"), Seen: now},
	} {
		kept[pathKey(i)] = l
	}
	data, err := formatLastPaths(kept)
	must(t, err)
	got, err := parseLastPaths(data, now)
	must(t, err)
	want := map[tunnel.Key]lastPath{pathKey(0): kept[pathKey(0)], pathKey(1): kept[pathKey(1)], pathKey(2): kept[pathKey(2)]}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, text := range []string{"", "[]", "{", `{"paths": [{"key": "short"}]}`, `{"paths": [{"at": "nas:1"}]}`} {
		if got, err := parseLastPaths([]byte(text), now); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

func TestLastPathsAreBounded(t *testing.T) {
	now := time.Now().UTC()
	many := map[tunnel.Key]lastPath{}
	for i := range 2 * maxLastPaths {
		many[pathKey(i)] = lastAt(i, "198.51.100.1:41642", now.Add(-time.Duration(i)*time.Minute))
	}
	data, err := formatLastPaths(many)
	must(t, err)
	got, err := parseLastPaths(data, now)
	must(t, err)
	if len(got) != maxLastPaths || !got[pathKey(0)].At.IsValid() || len(data) > maxPathsFile {
		t.Errorf("%d paths in %d bytes, want the newest %d", len(got), len(data), maxLastPaths)
	}
	s := paths{peers: map[tunnel.Key]*path{}, last: got}
	peers := map[tunnel.Key]pathPeer{}
	for i := range 2 * maxLastPaths {
		s.peers[pathKey(i)] = &path{state: direct, at: netip.MustParseAddrPort("192.0.2.7:41642")}
		peers[pathKey(i)] = pathPeer{}
	}
	if s.note(peers, now); len(s.last) != maxLastPaths || !s.unsaved || s.last[pathKey(0)].At.Port() != 41642 || s.last[pathKey(0)].At.Addr().String() != "192.0.2.7" {
		t.Errorf("%d paths are noted", len(s.last))
	}
}

func TestOnlyDirectPathsOfNodesAreNoted(t *testing.T) {
	now, at := time.Now(), netip.MustParseAddrPort("198.51.100.1:41642")
	s := paths{
		peers: map[tunnel.Key]*path{pathKey(1): {state: direct, at: at}, pathKey(2): {state: settling, at: at}, pathKey(3): {state: relayed, at: at}},
		last:  map[tunnel.Key]lastPath{pathKey(4): lastAt(4, "198.51.100.4:41642", now), pathKey(3): lastAt(3, "198.51.100.3:41642", now)},
	}
	peers := map[tunnel.Key]pathPeer{pathKey(1): {}, pathKey(2): {}, pathKey(3): {}}
	s.note(peers, now)
	if len(s.last) != 2 || s.last[pathKey(1)].At != at || s.last[pathKey(3)].At == at {
		t.Errorf("got %v, want the direct one, and the earlier one of a node", s.last)
	}
	s.unsaved = false
	if s.note(peers, now.Add(lastPathFresh/2)); s.unsaved {
		t.Error("a path that goes on is written all the time")
	}
	if s.note(peers, now.Add(lastPathFresh+time.Second)); !s.unsaved {
		t.Error("a path that goes on grows old")
	}
	if s.note(map[tunnel.Key]pathPeer{}, now.Add(2*lastPathFresh)); len(s.last) != 2 {
		t.Error("a map without nodes costs the paths")
	}
}

// S8: what was kept is tried by the rules of what the gateway tells, in the network where the machine is now.
func TestALastPathMayHaveBecomeNone(t *testing.T) {
	now := time.Now()
	world := pathWorld{
		stats:  []tunnel.PeerStats{{Key: pathKey(1), Sent: 148}},
		peers:  map[tunnel.Key]pathPeer{pathKey(1): {}},
		relays: []netip.AddrPort{pairRelay},
		ranges: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/20")},
	}
	for at, want := range map[string]bool{
		"198.51.100.1:41642": true, "192.168.1.9:41642": true, "192.168.2.9:41642": false, "10.9.0.2:41642": false, "127.0.0.1:41642": false,
		"198.51.100.1:53": false, "224.0.0.251:5353": false,
	} {
		s := paths{
			peers: map[tunnel.Key]*path{}, last: map[tunnel.Key]lastPath{pathKey(1): lastAt(1, at, now)},
			links: []link{{name: "eth0", addrs: []netip.Prefix{netip.MustParsePrefix("192.168.1.7/24")}}},
		}
		s.decide(pathFacts{now: now}, world)
		moves := s.decide(pathFacts{now: now.Add(recallAfter)}, world)
		if got := moves[pathKey(1)].to.IsValid(); got != want || want && moves[pathKey(1)].to.String() != at {
			t.Errorf("%s: %+v", at, moves[pathKey(1)])
		}
		s.peers = map[tunnel.Key]*path{}
		s.decide(pathFacts{now: now, gateway: true}, world)
		if m := s.decide(pathFacts{now: now.Add(recallAfter), gateway: true}, world)[pathKey(1)]; m.to.IsValid() {
			t.Errorf("%s is tried beside the gateway: %+v", at, m)
		}
	}
}

func TestLastPathsSurviveTheProcess(t *testing.T) {
	p := testPaths(t)
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		n := &Node{opt: Options{Paths: p}, log: slog.New(slog.NewTextHandler(&log, nil)), services: newGroup()}
		if got := n.loadLastPaths(); len(got) != 0 || log.Len() > 0 {
			t.Errorf("at first: %v, %s", got, &log)
		}
		n.services.run("keeping", n.keepLastPaths)
		now := time.Now().UTC().Truncate(time.Second)
		n.paths.mu.Lock()
		n.paths.last, n.paths.unsaved = map[tunnel.Key]lastPath{pathKey(1): lastAt(1, "198.51.100.1:41642", now)}, true
		n.paths.mu.Unlock()
		time.Sleep(savePaths + time.Second)
		synctest.Wait()
		if got := n.loadLastPaths(); !maps.Equal(got, n.paths.last) {
			t.Errorf("kept: %v, want %v", got, n.paths.last)
		}
		file := filepath.Join(p.State, lastPathsFile)
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
			t.Errorf("its mode: %v, %v", info.Mode(), err)
		}
		if err := n.services.stop(t.Context()); err != nil {
			t.Error(err)
		}
		must(t, os.WriteFile(file, []byte("{"), 0o600))
		if got := n.loadLastPaths(); got == nil || len(got) != 0 || !strings.Contains(log.String(), file) {
			t.Errorf("a broken file: %v, %s", got, &log)
		}
	})
}

func FuzzLastPaths(f *testing.F) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	data, err := formatLastPaths(map[tunnel.Key]lastPath{pathKey(1): lastAt(1, "198.51.100.1:41642", now)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"paths": null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parseLastPaths(data, now)
		if err != nil {
			return
		}
		again, err := formatLastPaths(got)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseLastPaths(again, now); err != nil || len(back) != len(got) || len(got) > maxLastPaths {
			t.Errorf("%v is read back as %v, %v", got, back, err)
		}
	})
}
