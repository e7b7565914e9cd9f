package node

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestMemoryIsGivenBackOnceAStormIsOver(t *testing.T) {
	const mib = 1 << 20
	s := spare{least: 100 * mib}
	for _, look := range []struct {
		what            string
		held, allocated uint64
		due             bool
	}{
		{"at rest", 101 * mib, 1 * mib, false},
		{"a storm", 300 * mib, 500 * mib, false},
		{"it goes on", 310 * mib, 900 * mib, false},
		{"it is over", 310 * mib, 910 * mib, true},
		{"a little more", 120 * mib, 911 * mib, false},
	} {
		if got := s.due(look.held, look.allocated); got != look.due {
			t.Errorf("%s: %t", look.what, got)
		}
	}
	now := memoryNow()
	if now.held < mib || now.allocated == 0 || now.needed == 0 || now.needed > now.held {
		t.Errorf("%+v", now)
	}
	big := make([]byte, 64*mib)
	for i := range big {
		big[i] = 1
	}
	before := memoryNow()
	runtime.KeepAlive(big)
	s = spare{allocated: before.allocated}
	s.look()
	if after := memoryNow(); after.held > before.held-32*mib {
		t.Errorf("%d MiB were held, and %d are", before.held/mib, after.held/mib)
	}
}

func TestMemoryIsBoundByWhatAGatewayNeeds(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		nodes     int
		needed    uint64
		from, to  int64
		situation string
	}{
		{0, 20 * mib, 160 * mib, 160 * mib, "nobody has joined"},
		{2000, 240 * mib, 300 * mib, 330 * mib, "two thousand nodes"},
		{1000, 130 * mib, 140 * mib, 175 * mib, "a thousand nodes"},
		{10, 800 * mib, 880 * mib, 1000 * mib, "something else needs more: it is not collected without end"},
	} {
		s := spare{needed: test.needed}
		if got := s.boundFor(test.nodes); got < test.from || got > test.to {
			t.Errorf("%s: %d MiB", test.situation, got/mib)
		}
	}
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	t.Setenv("GOMEMLIMIT", "")
	var s spare
	s.keep(100)
	if got := debug.SetMemoryLimit(-1); got != s.boundFor(100) {
		t.Errorf("the bound is %d, want %d", got, s.boundFor(100))
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	s.keep(10000)
	if got := debug.SetMemoryLimit(-1); got != s.boundFor(100) {
		t.Errorf("the bound is %d, though whoever started the process has set one", got)
	}
}
