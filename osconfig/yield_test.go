package osconfig

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Another program writes the file whenever it is ours. It gets it in the end, and we when it has stopped.
func TestALostWarIsYieldedAndTriedAgainInPeace(t *testing.T) {
	for name, text := range map[string]func(n int) string{
		"new servers each time": func(n int) string { return fmt.Sprintf("nameserver 198.51.100.%d\n", n) },
		"what was there before": func(int) string { return upstreamConf },
	} {
		t.Run(name, func(t *testing.T) { loseWar(t, text) })
	}
}

func loseWar(t *testing.T, text func(n int) string) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	synctest.Test(t, func(t *testing.T) {
		m, err := Open(t.Context(), r.opt)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Apply(t.Context(), stubConfig()); err != nil {
			t.Fatal(err)
		}
		start, n := time.Now(), 0
		for m.Status().Active {
			if strings.Contains(r.read("etc/resolv.conf"), "nameserver 127.0.0.77\n") {
				n++
				r.write("etc/resolv.conf", text(n))
			}
			time.Sleep(m.look(t.Context()))
			if time.Since(start) > 10*time.Minute {
				t.Fatalf("it is fought for still, after %d rewrites", n)
			}
		}
		if n != freeRewrites+pacedTries+1 {
			t.Errorf("it was yielded after %d rewrites, want %d", n, freeRewrites+pacedTries+1)
		}
		theirs := text(n)
		check := func(when string) {
			t.Helper()
			j, err := loadJournal(r.opt.StateDir)
			s := m.Status()
			if got := r.read("etc/resolv.conf"); got != theirs || j != nil || err != nil || s.Active {
				t.Errorf("%s: the file is %q, journal %v, %v, active %t", when, got, j, err, s.Active)
			}
			if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "is left to it") {
				t.Errorf("%s: problems %q", when, s.Problems)
			}
			if b, err := m.Base(t.Context()); err != nil || !strings.Contains(theirs, "nameserver "+strings.TrimSuffix(serverWords(b.Servers)[0], ":53")+"\n") {
				t.Errorf("%s: base %v, %v", when, b, err)
			}
		}
		check("once yielded")
		// As long as it goes on writing, it has it.
		for range 20 {
			n++
			theirs = text(n)
			r.write("etc/resolv.conf", theirs)
			time.Sleep(calmTime / 2)
			m.look(t.Context())
			check("while it goes on")
		}
		calm := time.Now()
		for !m.Status().Active {
			time.Sleep(m.look(t.Context()))
			if time.Since(calm) > 2*calmTime {
				t.Fatal("it is not taken over again")
			}
		}
		if took := time.Since(calm); took < calmTime/2-lookInterval {
			t.Errorf("it was taken over again after %s", took)
		}
		if s := m.Status(); len(s.Problems) > 0 || !strings.Contains(r.read("etc/resolv.conf"), "nameserver 127.0.0.77\n") {
			t.Errorf("status %+v, the file is %q", s, r.read("etc/resolv.conf"))
		}
		if err := m.Close(); err != nil || r.read("etc/resolv.conf") != theirs {
			t.Errorf("after Close: %q, %v", r.read("etc/resolv.conf"), err)
		}
	})
}
