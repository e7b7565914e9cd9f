package node

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// gatewayGarbage is how much garbage a gateway has beside what it needs, in percent of that. A thousand sessions need about 130 MiB,
// whose double a small VPS would miss.
const gatewayGarbage = 25

// saveMemory has memory be freed sooner, unless whoever started the process has said how soon. What it sets back are Go's defaults:
// in a process of several gateways, what was found may be what another one had set.
func (n *Node) saveMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gatewayGarbage)
		n.undo.push("setting back the garbage collector", func(context.Context) error {
			debug.SetGCPercent(100)
			return nil
		})
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		n.undo.push("setting back the bound of memory", func(context.Context) error {
			debug.SetMemoryLimit(math.MaxInt64)
			return nil
		})
	}
}

// The bounds of memory, in bytes.
const (
	spareMemory = 24 << 20 // above what was left the last time
	quietMemory = 13 << 20 // is allocated between two looks of a gateway that has little to do, which are lookPeers apart

	boundLeast = 160 << 20 // for the gateway of up to a thousand nodes
	boundEach  = 160 << 10 // of a node of more, whose sessions, stream and timers need most of it
	boundRoom  = 8         // the part of what is needed that is left for garbage at least
	boundStep  = 4 << 20   // changes below that are not worth that the world is stopped for them
)

// spare gives memory back to the system once a storm is over: many joins, or a change that all nodes were told of. Packets are in
// buffers of 64 KiB, so that a thousand of them at once are much, and what is free stays the process's for long.
type spare struct {
	allocated uint64 // since the start, at the last look
	least     uint64 // what was left when some was given back
	needed    uint64 // at the last look
	bound     int64  // that was set last
}

// look gives memory back where it is due.
func (s *spare) look() {
	now := memoryNow()
	s.needed = now.needed
	if s.due(now.held, now.allocated) {
		runtime.GC() // what lies in a sync.Pool survives one
		debug.FreeOSMemory()
		now = memoryNow()
		s.least, s.allocated, s.needed = now.held, now.allocated, now.needed
	}
}

// due reports whether enough is held that is not needed, and nothing goes on.
func (s *spare) due(held, allocated uint64) bool {
	quiet := allocated-s.allocated < quietMemory
	s.allocated = allocated
	return quiet && held > s.least+spareMemory
}

// keep has the process collect garbage sooner, and give back at once what is free, when it holds more than the gateway of so many
// nodes should: in a storm too. It leaves room beside what was needed at rest, whatever that is for.
func (s *spare) keep(nodes int) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if s.needed == 0 {
		s.needed = memoryNow().needed
	}
	if bound := s.boundFor(nodes); bound > s.bound+boundStep || bound < s.bound-boundStep {
		debug.SetMemoryLimit(bound)
		s.bound = bound
	}
}

func (s *spare) boundFor(nodes int) int64 {
	return int64(max(boundLeast, boundEach*uint64(nodes), s.needed+s.needed/boundRoom))
}

// memory is that of the process, in bytes.
type memory struct {
	held      uint64 // of the system's
	allocated uint64 // since the start
	needed    uint64 // held, less what was garbage or free at the last collection
}

func memoryNow() memory {
	samples := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
	}
	metrics.Read(samples)
	value := func(i int) uint64 { return samples[i].Value.Uint64() }
	m := memory{held: value(0) - value(1), allocated: value(2)}
	if objects, live := value(4), value(5); objects > live {
		m.needed = m.held - min(m.held, value(3)+objects-live)
	} else {
		m.needed = m.held - min(m.held, value(3))
	}
	return m
}
