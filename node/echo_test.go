package node

import (
	"net/netip"
	"testing"
	"time"
)

func testEcho(peers ...string) *echo {
	return &echo{
		isPeer: func(a netip.Addr) bool {
			for _, p := range peers {
				if a.String() == p {
					return true
				}
			}
			return false
		},
		greeted: func(netip.Addr, uint64) {},
		asked:   map[uint64]echoAsked{}, counts: map[netip.Addr]echoCount{},
	}
}

func TestWhatIsAnswered(t *testing.T) {
	peer, stranger := netip.MustParseAddrPort("10.9.0.2:41445"), netip.MustParseAddrPort("10.9.0.3:41445")
	ask := echoMessage(echoAsk, 7)
	for name, tt := range map[string]struct {
		from     netip.AddrPort
		datagram []byte
		answered bool
	}{
		"a question of a peer": {peer, ask, true},
		"of somebody else":     {stranger, ask, false},
		"an answer":            {peer, echoMessage(echoAnswer, 7), false},
		"no kind of ours":      {peer, echoMessage(9, 7), false},
		"one byte short":       {peer, ask[:len(ask)-1], false},
		"one byte more":        {peer, append(echoMessage(echoAsk, 7), 0), false},
		"another word":         {peer, append([]byte("x"), ask[1:]...), false},
		"nothing":              {peer, nil, false},
	} {
		got := testEcho("10.9.0.2").take(tt.from, tt.datagram, time.Now())
		if (got != nil) != tt.answered || tt.answered && len(got) != len(tt.datagram) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestAnswersAreLimited(t *testing.T) {
	e, now := testEcho("10.9.0.2", "10.9.0.3"), time.Now()
	from := netip.MustParseAddrPort("10.9.0.2:41445")
	answers := func(n int) (count int) {
		for range n {
			if e.take(from, echoMessage(echoAsk, 1), now) != nil {
				count++
			}
		}
		return count
	}
	if got := answers(3 * echoBurst); got != echoBurst {
		t.Errorf("%d answers at once, want %d", got, echoBurst)
	}
	if e.take(netip.MustParseAddrPort("10.9.0.3:1"), echoMessage(echoAsk, 1), now) == nil {
		t.Error("another node pays for it")
	}
	now = now.Add(3 * echoEvery)
	if got := answers(10); got != 3 {
		t.Errorf("%d answers after a while, want 3", got)
	}
}

func TestAnAnswerIsTheAskedNodes(t *testing.T) {
	e := testEcho("10.9.0.2", "10.9.0.3")
	q := echoAsked{to: netip.MustParseAddrPort("10.9.0.2:41445"), done: make(chan time.Time, 1)}
	e.asked[7] = q
	for _, from := range []string{"10.9.0.3:41445", "10.9.0.2:9"} {
		e.take(netip.MustParseAddrPort(from), echoMessage(echoAnswer, 7), time.Now())
	}
	e.take(q.to, echoMessage(echoAnswer, 8), time.Now())
	if len(q.done) != 0 {
		t.Error("somebody else's answer counts")
	}
	e.take(q.to, echoMessage(echoAnswer, 7), time.Now())
	e.take(q.to, echoMessage(echoAnswer, 7), time.Now()) // a copy must not block
	if len(q.done) != 1 || len(e.asked) != 0 {
		t.Error("the answer does not count")
	}
}

func FuzzEcho(f *testing.F) {
	f.Add(echoMessage(echoAsk, 1))
	f.Add([]byte(echoWord))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		answer := testEcho("10.9.0.2").take(netip.MustParseAddrPort("10.9.0.2:9"), datagram, time.Now())
		if answer != nil && len(answer) != len(datagram) {
			t.Errorf("%d bytes for %d", len(answer), len(datagram))
		}
	})
}
