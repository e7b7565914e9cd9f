package node

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// gatewayGarbage is how much garbage a gateway has beside what it needs, in percent of that. A thousand sessions need about 150 MiB,
// whose double a small VPS would miss.
const gatewayGarbage = 25

// saveMemory has memory be freed sooner, unless whoever started the process has said how soon.
func (n *Node) saveMemory() {
	if os.Getenv("GOGC") == "" {
		before := debug.SetGCPercent(gatewayGarbage)
		n.undo.push("setting back the garbage collector", func(context.Context) error {
			debug.SetGCPercent(before)
			return nil
		})
	}
}

// The bounds of spare memory, in bytes.
const (
	spareMemory = 24 << 20 // above what was left the last time
	quietMemory = 32 << 20 // is allocated between two looks of a gateway that has little to do, which are 5 s apart
)

// spare gives memory back to the system once a storm is over: many joins, or a change that all nodes were told of. Packets are in
// buffers of 64 KiB, so that a thousand of them at once are much, and what is free stays the process's for long.
type spare struct {
	allocated uint64 // since the start, at the last look
	least     uint64 // what was left when some was given back
}

// look gives memory back where it is due.
func (s *spare) look() {
	held, allocated := memoryNow()
	if s.due(held, allocated) {
		runtime.GC() // what lies in a sync.Pool survives one
		debug.FreeOSMemory()
		s.least, s.allocated = memoryNow()
	}
}

// due reports whether enough is held that is not needed, and nothing goes on.
func (s *spare) due(held, allocated uint64) bool {
	quiet := allocated-s.allocated < quietMemory
	s.allocated = allocated
	return quiet && held > s.least+spareMemory
}

// memoryNow is what the process holds, and what it has allocated since the start.
func memoryNow() (held, allocated uint64) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64(), samples[2].Value.Uint64()
}
