package osconfig

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestThePlanOfASystemIsWhatItIsTold(t *testing.T) {
	m, w, o := newMac(t), newWindows(t), newOpenBSD(t)
	w.adminRule(nrptPolicy)
	for name, test := range map[string]struct {
		r     *rig
		mode  string
		trace string
		diff  []string
	}{
		"macOS": {m.rig, modeScutil, "on macOS configd says whom programs ask, and /etc/resolv.conf counts for few", []string{
			"+++ /etc/resolver/foo-bar.ts.net\n+" + resolverMark + "+nameserver 127.0.0.77\n+port 53\n",
			"+++ /etc/resolver/search.meshdns\n", "+search foo-bar.ts.net\n",
		}},
		"Windows": {w.rig, modeNRPT, "group policy has rules, so local ones do not count: ours are written there too", []string{
			`+++ HKLM\` + nrptLocal + `\` + firstRule + "\n+Version 2\n+ConfigOptions 8\n+GenericDNSServers 127.0.0.77\n+Name .64.100.in-addr.arpa .foo-bar.ts.net\n",
			"+foo-bar.ts.net\n",
		}},
		"OpenBSD": {o.rig, modeResolvd, "resolvd runs", []string{"+nameserver 127.0.0.77 # resolvd: lo0\n", "+search foo-bar.ts.net\n"}},
	} {
		before := test.r.snapshot() + w.words()
		p, err := Preview(t.Context(), test.r.opt, splitConfig())
		if err != nil || !p.Possible || p.Mode != test.mode || !slices.Contains(p.Trace, test.trace) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		for _, part := range test.diff {
			if !strings.Contains(p.Diff, part) {
				t.Errorf("%s: %q is not in\n%s", name, part, p.Diff)
			}
		}
		if after := test.r.snapshot() + w.words(); after != before {
			t.Errorf("%s: planning changed something:\n%s", name, after)
		}
	}
	if diff := planSystem(modeScutil, stubConfig()); !strings.Contains(diff, "+set State:/Network/Service/meshdns/DNS\n") {
		t.Errorf("the plan for all names does not say what scutil is told:\n%s", diff)
	}
}

// A change that lasts is undone whatever boot it was made in.
func TestWhatOutlivesABootIsUndoneAfterIt(t *testing.T) {
	m, w, o := newMac(t), newWindows(t), newOpenBSD(t)
	for name, x := range map[string]struct {
		r   *rig
		all func() string
	}{"macOS": {m.rig, m.all}, "Windows": {w.rig, w.all}, "OpenBSD": {o.rig, o.all}} {
		before := x.all()
		m := x.r.open()
		x.r.must(m.Apply(t.Context(), splitConfig()))
		j, err := loadJournal(x.r.opt.StateDir)
		if err != nil || j == nil {
			t.Fatal(j, err)
		}
		j.BootID = "another"
		x.r.must(disk{}.saveJournal(x.r.opt.StateDir, j))
		if report := x.r.restore(); !report.Changed {
			t.Errorf("%s: %s", name, report)
		}
		if after := x.all(); after != before {
			t.Errorf("%s: not as it was\nbefore:\n%s\nafter:\n%s", name, before, after)
		}
	}
}

func TestJournalsOfSystemsThatAreNone(t *testing.T) {
	for _, text := range []string{
		`{"version":1,"mode":"scutil"}`,
		`{"version":1,"mode":"scutil","scutil":{"files":["../passwd"]}}`,
		`{"version":1,"mode":"scutil","scutil":{"files":["a/b"]}}`,
		`{"version":1,"mode":"scutil","scutil":{"files":[""]}}`,
		`{"version":1,"mode":"nrpt"}`,
		`{"version":1,"mode":"nrpt","nrpt":{"made":true}}`,
	} {
		if j, err := parseJournal([]byte(text)); !errors.Is(err, errBadJournal) {
			t.Errorf("%s: %+v, %v", text, j, err)
		}
	}
}

// The directory of openresolv's records is below /var on the BSDs.
func TestRecordsBelowVar(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	r.write("sbin/resolvconf", "")
	r.must(os.MkdirAll(r.path("var/run/resolvconf/keys"), 0o755))
	for _, want := range []string{modeDirect, modeOpenresolv} {
		if s := r.open().Status(); s.Mode != want {
			t.Errorf("mode %s, want %s", s.Mode, want)
		}
		r.write("var/run/resolvconf/keys/em0", "nameserver 192.0.2.53\n")
	}
}
