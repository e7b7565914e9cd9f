package tunnel

import (
	"runtime"
	"sync"
	"time"
)

// gate bounds the packets that are inside wireguard-go on one of its ways, each in a buffer of 64 KiB: out, from the network
// device to the sockets, or in. At the bound whoever brings packets waits, and they wait in a queue of the kernel or of the
// netstack, where they take what they are long. wireguard-go loses some without a word, those to a peer without a session above
// all: when nothing comes out any more, what is counted is forgotten, and the sooner the more often that was so.
type gate struct {
	most int

	mu       sync.Mutex
	inside   int
	out      uint64        // packets that came out
	patience time.Duration // until what is inside is taken for lost
	open     chan struct{} // nil: nobody waits
}

const (
	gatePackets   = 64 // for each processor, of which two are counted at least and four at most
	patienceMost  = 50 * time.Millisecond
	patienceLeast = 500 * time.Microsecond
)

func newGate() *gate {
	return &gate{most: gatePackets * min(max(2, runtime.GOMAXPROCS(0)), 4), patience: patienceMost}
}

// wait waits until more packets may go in.
func (g *gate) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside < g.most {
		return
	}
	for g.inside >= g.most {
		if g.open == nil {
			g.open = make(chan struct{})
		}
		out, open, t := g.out, g.open, time.NewTimer(g.patience)
		g.mu.Unlock()
		select {
		case <-open:
		case <-t.C:
		}
		t.Stop()
		g.mu.Lock()
		if g.inside >= g.most && g.out == out {
			g.inside = 0
			g.patience = max(g.patience/2, patienceLeast)
			return
		}
	}
	g.patience = min(2*g.patience, patienceMost)
}

// add says that packets went in, or less than none: that they did not after all.
func (g *gate) add(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside = max(0, g.inside+n)
}

// done says that packets have come out.
func (g *gate) done(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.out += uint64(n)
	g.inside = max(0, g.inside-n)
	if g.open != nil && g.inside < g.most {
		close(g.open)
		g.open = nil
	}
}

// tally tells how many of the buffers that wireguard-go had filled at one call it has not kept: at the next it brings others for
// those that it has.
type tally []*byte

// add has a buffer be counted, nil that none is.
func (t *tally) add(buf []byte) {
	var first *byte
	if len(buf) > 0 {
		first = &buf[0]
	}
	*t = append(*t, first)
}

// left is how many of the buffers since the last call are here yet.
func (t *tally) left(bufs [][]byte) (n int) {
	for i, first := range *t {
		if first != nil && first == &bufs[i][0] {
			n++
		}
	}
	*t = (*t)[:0]
	return n
}
