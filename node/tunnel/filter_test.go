package tunnel

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// sinkDevice is a tun device that keeps what is written and gives out what it is told to.
type sinkDevice struct {
	tun.Device
	got  [][]byte
	send [][]byte
}

func (s *sinkDevice) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		s.got = append(s.got, slices.Clone(b[offset:]))
	}
	return len(bufs), nil
}

func (s *sinkDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i, b := range s.send {
		sizes[i] = copy(bufs[i][offset:], b)
	}
	return len(s.send), nil
}

// filterRig is a filter for 10.8.0.1 and fd00::1 under a clock of its own.
type filterRig struct {
	*filter
	sink *sinkDevice
	time time.Time
}

func newFilterRig(t *testing.T, rules []Rule) *filterRig {
	t.Helper()
	r := &filterRig{sink: &sinkDevice{}, time: time.Unix(1000, 0)}
	r.filter = newFilter(r.sink, addrs("10.8.0.1", "fd00::1"))
	r.flows.now = func() time.Time { return r.time }
	if rules != nil {
		p, err := newPolicy(rules)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.set(p)
	}
	return r
}

// in tells whether a packet from a peer gets through.
func (r *filterRig) in(b []byte) bool {
	before := len(r.sink.got)
	const offset = 16
	_, _ = r.Write([][]byte{append(make([]byte, offset), b...)}, offset)
	return len(r.sink.got) > before
}

// out has the node send a packet.
func (r *filterRig) out(b []byte) {
	r.sink.send = [][]byte{b}
	_, _ = r.Read([][]byte{make([]byte, 2000)}, make([]int, 1), 16)
}

func TestOnlyOwnAddressesAreReached(t *testing.T) {
	r := newFilterRig(t, nil)
	for to, want := range map[string]bool{"10.8.0.1": true, "10.8.0.3": false, "192.168.1.1": false, "127.0.0.1": false, "255.255.255.255": false} {
		if got := r.in(ip("10.8.0.2", to, 6, tcpHeader(1000, 22, syn))); got != want {
			t.Errorf("a packet for %s came in: %t", to, got)
		}
	}
	if r.in(ip("fd00::2", "fd00::3", 17, udpHeader(1, 2))) || !r.in(ip("fd00::2", "fd00::1", 17, udpHeader(1, 2))) {
		t.Error("IPv6 is let in by another rule")
	}
	if r.dropped.Load() != 5 {
		t.Errorf("%d dropped, want 5", r.dropped.Load())
	}
}

func TestABatchKeepsWhatMayPass(t *testing.T) {
	r := newFilterRig(t, []Rule{})
	bad, good := ip("10.8.0.2", "10.8.0.1", 6, tcpHeader(1, 22, syn)), ip("10.8.0.2", "10.8.0.1", 6, tcpHeader(1, 22, ack))
	if _, err := r.Write([][]byte{bad, good, bad, good, bad}, 0); err != nil {
		t.Fatal(err)
	}
	if len(r.sink.got) != 2 || !slices.Equal(r.sink.got[0], good) || !slices.Equal(r.sink.got[1], good) {
		t.Errorf("%d packets came through", len(r.sink.got))
	}
}

func TestPolicyDecidesWhoMayOpen(t *testing.T) {
	rules := []Rule{
		{Source: netip.MustParsePrefix("10.8.0.2/32"), Protocol: 6, First: 22, Last: 22},
		{Source: netip.MustParsePrefix("10.8.0.0/24"), Protocol: 17, First: 53, Last: 54},
		{Source: netip.MustParsePrefix("fd00::2/128")},
		{Source: netip.MustParsePrefix("10.8.0.4/32"), Protocol: 1},
		{Source: netip.MustParsePrefix("fd00::4/128"), Protocol: 1},
	}
	const me4, me6 = "10.8.0.1", "fd00::1"
	echo, reply, unreachable := []byte{8, 0, 0, 0}, []byte{0, 0, 0, 0}, []byte{3, 3, 0, 0}
	for name, test := range map[string]struct {
		bytes []byte
		want  bool
	}{
		"listed port":              {ip("10.8.0.2", me4, 6, tcpHeader(1000, 22, syn)), true},
		"another port":             {ip("10.8.0.2", me4, 6, tcpHeader(1000, 23, syn)), false},
		"SYN with other flags":     {ip("10.8.0.2", me4, 6, tcpHeader(1000, 23, syn|0x01|0x08|0x40)), false},
		"another node":             {ip("10.8.0.3", me4, 6, tcpHeader(1000, 22, syn)), false},
		"another protocol":         {ip("10.8.0.2", me4, 17, udpHeader(1000, 22)), false},
		"answer":                   {ip("10.8.0.3", me4, 6, tcpHeader(1000, 22, syn|ack)), true},
		"first of a range":         {ip("10.8.0.3", me4, 17, udpHeader(1000, 53)), true},
		"last of a range":          {ip("10.8.0.3", me4, 17, udpHeader(1000, 54)), true},
		"past a range":             {ip("10.8.0.3", me4, 17, udpHeader(1000, 55)), false},
		"outside the prefix":       {ip("10.8.1.3", me4, 17, udpHeader(1000, 53)), false},
		"everything from a node":   {ip("fd00::2", me6, 6, tcpHeader(1000, 9, syn)), true},
		"any protocol from a node": {ip("fd00::2", me6, 132, make([]byte, 12)), true},
		"nothing from another":     {ip("fd00::3", me6, 132, make([]byte, 12)), false},
		"ping":                     {ip("10.8.0.4", me4, 1, echo), true},
		"ping, IPv6":               {ip("fd00::4", me6, 58, []byte{128, 0, 0, 0}), true},
		"ping from another":        {ip("10.8.0.3", me4, 1, echo), false},
		"answer to a ping":         {ip("10.8.0.3", me4, 1, reply), true},
		"ICMP error":               {ip("10.8.0.3", me4, 1, unreachable), true},
		"redirect":                 {ip("10.8.0.3", me4, 1, []byte{5, 0, 0, 0}), false},
		"router advertisement":     {ip("fd00::3", me6, 58, []byte{134, 0, 0, 0}), false},
		"later fragment":           {fragmented(ip("10.8.0.3", me4, 17, make([]byte, 8)), 9, false), true},
		"tunnelled packet":         {ip("10.8.0.3", me4, 4, ip("10.8.0.2", me4, 6, tcpHeader(1, 22, syn))), false},
	} {
		if got := newFilterRig(t, rules).in(test.bytes); got != test.want {
			t.Errorf("%s: came in = %t, want %t", name, got, test.want)
		}
		if got := newFilterRig(t, nil).in(test.bytes); !got {
			t.Errorf("%s: refused without a policy", name)
		}
	}
}

func TestAnswersToOwnDatagramsPass(t *testing.T) {
	r := newFilterRig(t, []Rule{})
	answer := ip("10.8.0.2", "10.8.0.1", 17, udpHeader(53, 4000))
	if r.in(answer) {
		t.Fatal("an answer to nothing came in")
	}
	r.out(ip("10.8.0.1", "10.8.0.2", 17, udpHeader(4000, 53)))
	if !r.in(answer) {
		t.Fatal("the answer was refused")
	}
	for name, b := range map[string][]byte{
		"from another port": ip("10.8.0.2", "10.8.0.1", 17, udpHeader(54, 4000)),
		"to another port":   ip("10.8.0.2", "10.8.0.1", 17, udpHeader(53, 4001)),
		"from another node": ip("10.8.0.3", "10.8.0.1", 17, udpHeader(53, 4000)),
	} {
		if r.in(b) {
			t.Errorf("%s: came in", name)
		}
	}
	for range 5 { // each packet keeps it alive
		r.time = r.time.Add(flowLife/2 + time.Second)
		if !r.in(answer) {
			t.Fatal("refused although packets went on")
		}
	}
	r.time = r.time.Add(flowLife + time.Second)
	if r.in(answer) {
		t.Error("came in after the conversation's life")
	}
}

func TestAFloodOfFlowsIsBounded(t *testing.T) {
	r := newFilterRig(t, []Rule{{Source: netip.MustParsePrefix("10.8.0.0/24")}})
	for i := range 3 * maxFlows {
		r.in(ip("10.8.0.2", "10.8.0.1", 17, udpHeader(uint16(i), uint16(i>>16))))
	}
	if n := len(r.flows.young) + len(r.flows.old); n > 2*maxFlows || n < maxFlows {
		t.Errorf("%d flows are kept", n)
	}
	if r.flows.forgotten == 0 {
		t.Error("none was forgotten, or none counted")
	}
}

func TestRulesAreChecked(t *testing.T) {
	ok := netip.MustParsePrefix("10.8.0.2/32")
	for name, test := range map[string]struct {
		rules []Rule
		want  string
	}{
		"good":         {[]Rule{{Source: ok, Protocol: 6, First: 1, Last: 65535}}, ""},
		"no source":    {[]Rule{{}}, "not a prefix"},
		"host bits":    {[]Rule{{Source: netip.MustParsePrefix("10.8.0.2/24")}}, "not a prefix"},
		"backwards":    {[]Rule{{Source: ok, Protocol: 6, First: 2, Last: 1}}, "no sense"},
		"ICMP port":    {[]Rule{{Source: ok, Protocol: 1, First: 1, Last: 1}}, "no sense"},
		"all too many": {make([]Rule, maxRules+1), "131073 rules"},
	} {
		if _, err := newPolicy(test.rules); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func BenchmarkFilter(b *testing.B) {
	packets := [][]byte{ip("10.8.0.2", "10.8.0.1", 6, append(tcpHeader(1000, 22, ack), make([]byte, 1300)...))}
	f := newFilter(&discardDevice{}, addrs("10.8.0.1"))
	for b.Loop() {
		_, _ = f.Write(packets[:1:1], 0)
	}
}

type discardDevice struct{ tun.Device }

func (discardDevice) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
