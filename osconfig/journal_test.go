package osconfig

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func ourJournal(before fileState) *journal {
	j := &journal{
		Version: journalVersion,
		Mode:    modeDirect,
		Path:    confPath,
		Before:  before,
		Servers: stubConfig().addrs(),
	}
	j.note(ourConf(stubConfig(), parseResolvConf(before.Data), ""))
	return j
}

func regular(text string) fileState {
	return fileState{Kind: kindRegular, Data: []byte(text), Mode: 0o644}
}

func TestJudge(t *testing.T) {
	ours := string(ourJournal(regular(upstreamConf)).Wrote[0].Data)
	link := fileState{Kind: kindSymlink, Link: "../run/x/rc"}
	missing := fileState{Kind: kindMissing}
	tests := map[string]struct {
		before, now fileState
		want        condition
	}{
		"what we wrote":                     {regular(upstreamConf), regular(ours), isOurs},
		"put back already":                  {regular(upstreamConf), regular(upstreamConf), isBefore},
		"the link put back":                 {link, link, isBefore},
		"never there":                       {missing, missing, isBefore},
		"a client wrote a lease":            {regular(upstreamConf), regular("nameserver 198.51.100.1\n"), isForeign},
		"a manager put a link":              {regular(upstreamConf), link, isForeign},
		"another link":                      {link, fileState{Kind: kindSymlink, Link: "elsewhere"}, isForeign},
		"a directory":                       {regular(upstreamConf), fileState{Kind: kindDirectory}, isForeign},
		"our file edited, we first":         {regular(upstreamConf), regular("nameserver 127.0.0.77\nnameserver 198.51.100.1\n"), isTainted},
		"a lease that kept our server only": {regular(upstreamConf), regular("domain lan\nnameserver 127.0.0.77\n"), isEmptied},
		"a client left its header":          {regular(upstreamConf), regular("# dhcpcd\n"), isEmptied},
		"emptied":                           {regular(upstreamConf), regular(""), isEmptied},
		"removed":                           {regular(upstreamConf), missing, isEmptied},
		"removed, and before a link":        {link, missing, isEmptied},
		"removed, and useless before":       {regular("# none\n"), missing, isForeign},
		"useless, as before":                {missing, regular("search lan\n"), isForeign},
		"ours alone, and useless before":    {missing, regular("nameserver 127.0.0.77\n"), isEmptied},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := ourJournal(tt.before).judge(tt.now); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWhatRemainsWithoutUs(t *testing.T) {
	mixed := "# edited\nnameserver 127.0.0.77 # stub\nNameserver 1.1.1.1\nnameserver 198.51.100.1\r\nsearch lan\n"
	tests := map[string]struct{ now, want string }{
		"somebody else's stays":   {"nameserver 198.51.100.1\n", "nameserver 198.51.100.1\n"},
		"mixed loses our line":    {mixed, strings.Replace(mixed, "nameserver 127.0.0.77 # stub\n", "", 1)},
		"without servers: before": {"search lan\n", upstreamConf},
		"ours alone: before":      {"nameserver 127.0.0.77\n", upstreamConf},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := string(ourJournal(regular(upstreamConf)).remaining(regular(tt.now)).Data); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// A write in place may end anywhere. Whatever it leaves is known for ours, in both directions, so that it is undone.
func TestEveryHalfWrittenFileIsKnown(t *testing.T) {
	long := upstreamConf + strings.Repeat("# a comment that makes it longer than ours is\n", 20)
	for name, before := range map[string]string{"shorter": upstreamConf, "longer": long, "empty": ""} {
		j := ourJournal(regular(before))
		j.InPlace = true
		ours := string(j.Wrote[0].Data)
		for direction, way := range map[string][2]string{"there": {before, ours}, "back": {ours, before}} {
			from, to := way[0], way[1]
			filled := to + strings.Repeat("\n", max(0, len(from)-len(to)))
			for n := range len(filled) + 1 {
				for what, half := range map[string]string{
					"the rest is the old":   filled[:n] + from[min(n, len(from)):],
					"the rest is missing":   filled[:n],
					"the rest is no blocks": filled[:n] + strings.Repeat("\x00", max(0, len(from)-n)),
				} {
					if got := j.judge(regular(half)); got == isForeign || got == isTainted {
						t.Fatalf("%s, %s, %d bytes written, %s: %q is %s", name, direction, n, what, half, got)
					}
				}
			}
		}
	}
}

func TestAJournalThatIsNoneIsRefused(t *testing.T) {
	good, err := json.Marshal(ourJournal(regular(upstreamConf)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseJournal(good); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	for name, change := range map[string][2]string{
		"no JSON":         {"{", "["},
		"another version": {`"version":1`, `"version":2`},
		"another file":    {`"/etc/resolv.conf"`, `"/etc/passwd"`},
		"another mode":    {`"mode":"direct"`, `"mode":"other"`},
		"another program": {`"mode":"direct"`, `"mode":"openresolv"`},
		"an unknown kind": {`"regular file"`, `"directory"`},
		"an unknown key":  {`"version":1`, `"version":1,"more":1`},
		"odd mode bits":   {`"mode":420`, `"mode":4294967295`},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(string(good), change[0], change[1], 1)
			if text == string(good) {
				t.Fatal("the test changes nothing")
			}
			if _, err := parseJournal([]byte(text)); !errors.Is(err, errBadJournal) {
				t.Errorf("got %v, want errBadJournal", err)
			}
		})
	}
}

func TestAnUnreadableJournalIsPutAside(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	r.write("state/"+journalName, "{broken")
	if _, err := Restore(t.Context(), r.opt); !errors.Is(err, errBadJournal) {
		t.Errorf("Restore: got %v, want errBadJournal", err)
	}
	m := r.applied()
	if got := r.read("state/" + journalName + ".unreadable"); got != "{broken" {
		t.Errorf("put aside: %q", got)
	}
	r.must(m.Close())
	if got := r.read("etc/resolv.conf"); got != upstreamConf {
		t.Errorf("after Close: %q", got)
	}
}

func FuzzParseJournal(f *testing.F) {
	for _, s := range []fileState{regular(upstreamConf), {Kind: kindMissing}, {Kind: kindSymlink, Link: "x"}} {
		data, err := json.Marshal(ourJournal(s))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "nameserver 127.0.0.77\n")
	}
	f.Fuzz(func(t *testing.T, data []byte, now string) {
		j, err := parseJournal(data)
		if err != nil {
			return
		}
		// Nothing that is restored may leave programs with our servers, which are gone by then, unless they were named
		// before.
		rest := j.remaining(regular(now))
		if rest.same(j.Before) {
			return
		}
		for _, a := range parseResolvConf(rest.Data).nameservers {
			for _, ours := range j.Servers {
				if a == ours {
					t.Errorf("%q becomes %q", now, rest.Data)
				}
			}
		}
	})
}

func TestAJournalSurvivesWithWhatItHolds(t *testing.T) {
	r := newRig(t)
	before := regular("nameserver 192.0.2.53\n\x00\xff")
	before.Xattrs = map[string][]byte{"user.test": {0, 1}}
	j := ourJournal(before)
	r.must(r.opt.machine.disk.saveJournal(r.opt.StateDir, j))
	got, err := loadJournal(r.opt.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Before.same(before) || string(got.Before.Xattrs["user.test"]) != "\x00\x01" || got.Servers[0] != netip.MustParseAddr("127.0.0.77") {
		t.Errorf("got %+v", got)
	}
	info, err := os.Stat(journalPath(r.opt.StateDir))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}
