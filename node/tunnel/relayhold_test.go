package tunnel

import (
	"net/netip"
	"testing"
	"time"
)

// released are the nodes that what was held goes on to, by number.
func (g *tableRig) released() (to []int) {
	for _, one := range g.release(g.now) {
		for i := 1; i <= 9; i++ {
			if one.to == placeOf(i) {
				to = append(to, i)
			}
		}
	}
	return to
}

func TestAnInitiationWaitsForItsSender(t *testing.T) {
	g := newTableRig()
	d := NewSecret().Public()
	g.setNodes([]Key{g.a, g.b, g.c, d})
	first := wgMessage(typeInitiation, g.a, 44)
	g.want(t, "from a stranger", 4, first, 0)
	g.move(d, placeOf(4), g.now)
	if got := g.released(); len(got) != 0 {
		t.Fatalf("a stranger's was held, and went to %d", got)
	}
	g = newTableRig()
	g.setNodes([]Key{g.a, g.b, g.c, d})
	first = wgMessage(typeInitiation, g.a, 44)
	g.asked(placeOf(4).addr, g.now)
	for range 2 * maxHeldEarly {
		g.want(t, "before its handshake is seen", 4, first, 0)
	}
	g.want(t, "what is no initiation", 4, wgMessage(typeData, Key{}, 44), 0)
	if got := g.released(); len(got) != 0 || len(g.held) != maxHeldEarly {
		t.Fatalf("%d go on, and %d are held", got, len(g.held))
	}
	g.move(d, placeOf(4), g.now)
	if got := g.released(); len(got) != maxHeldEarly || got[0] != 1 || len(g.held) != 0 {
		t.Fatalf("they go to %d, and %d are held", got, len(g.held))
	}
	if to, met := g.route(placeOf(1), wgMessage(typeResponse, d, 11, 44), g.now); to == nil || to.key != d || met == nil || met.key != g.a {
		t.Error("the response is not passed")
	}
}

// heldForReceiver holds an initiation of the first node to one that is not there yet.
func heldForReceiver(t *testing.T) (*tableRig, Key) {
	t.Helper()
	g := newTableRig()
	d := NewSecret().Public()
	g.setNodes([]Key{g.a, g.b, g.c, d})
	g.want(t, "to one that is not there", 1, wgMessage(typeInitiation, d, 11), 0)
	if got := g.released(); len(got) != 0 || len(g.held) != 1 {
		t.Fatalf("it goes to %d, and %d are held", got, len(g.held))
	}
	return g, d
}

func TestAnInitiationWaitsForItsReceiver(t *testing.T) {
	g, d := heldForReceiver(t)
	g.move(d, placeOf(4), g.now)
	if got := g.released(); len(got) != 1 || got[0] != 4 {
		t.Fatalf("it goes to %d", got)
	}
	g.want(t, "the response", 4, wgMessage(typeResponse, g.a, 44, 11), 1)
}

func TestWhatIsHeldIsNotPassedAgainstTheRules(t *testing.T) {
	for name, change := range map[string]func(*tableRig, Key){
		"too late":      func(g *tableRig, _ Key) { g.now = g.now.Add(heldTime) },
		"removed":       func(g *tableRig, _ Key) { g.setNodes([]Key{g.a, g.b, g.c}) },
		"its sender is": func(g *tableRig, d Key) { g.setNodes([]Key{g.b, g.c, d}) },
		"forbidden":     func(g *tableRig, _ Key) { g.allow = func(Key, Key) bool { return false } },
	} {
		g, d := heldForReceiver(t)
		change(g, d)
		g.move(d, placeOf(4), g.now.Add(time.Second))
		if got := g.released(); len(got) != 0 || len(g.held) != 0 {
			t.Errorf("%s: it goes to %d, and %d are held", name, got, len(g.held))
		}
	}
}

func TestWhatIsHeldIsBounded(t *testing.T) {
	g := newTableRig()
	keys := []Key{g.a, g.b, g.c}
	for range 200 {
		keys = append(keys, NewSecret().Public())
	}
	g.setNodes(keys)
	for _, k := range keys[3:] {
		g.want(t, "to one that is not there", 1, wgMessage(typeInitiation, k, 11), 0)
	}
	if len(g.held) != maxHeldEach {
		t.Errorf("%d of one node are held", len(g.held))
	}
	g.want(t, "of another one", 2, wgMessage(typeInitiation, keys[3], 11), 0)
	if len(g.held) != maxHeldEach+1 {
		t.Error("one node keeps others from being held")
	}
	first := wgMessage(typeInitiation, g.a, 44)
	for i := range 2 * maxAllEarly {
		at := netip.AddrPortFrom(placeOf(4).addr.Addr(), uint16(i))
		g.asked(at, g.now)
		for range maxHeldEarly {
			g.holdEarly(at, first, g.now)
		}
	}
	if len(g.early) != maxAllEarly || len(g.held) > maxAllEarly+maxHeldEach+1 {
		t.Errorf("%d places are remembered, and %d initiations held", len(g.early), len(g.held))
	}
	g.want(t, "of a node, beside strangers", 3, wgMessage(typeInitiation, keys[3], 11), 0)
	if last := g.held[len(g.held)-1]; last.sender != g.nodes[g.c] {
		t.Error("strangers keep nodes' from being held")
	}
	g.forget(g.now.Add(heldTime))
	if len(g.early) != 0 {
		t.Errorf("%d places are not forgotten", len(g.early))
	}
}
