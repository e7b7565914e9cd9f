package node

import (
	"runtime"
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
	held, allocated := memoryNow()
	if held < mib || allocated == 0 {
		t.Errorf("%d bytes are held, %d were allocated", held, allocated)
	}
	big := make([]byte, 64*mib)
	for i := range big {
		big[i] = 1
	}
	before, allocated := memoryNow()
	runtime.KeepAlive(big)
	s = spare{allocated: allocated}
	s.look()
	if after, _ := memoryNow(); after > before-32*mib {
		t.Errorf("%d MiB were held, and %d are", before/mib, after/mib)
	}
}
