package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/meshdns/meshdns/funnel"
	"github.com/meshdns/meshdns/node/control"
)

// funnelStatus is something that a node shows to the world, or would.
type funnelStatus struct {
	Node string `json:"node"`
	Name string `json:"name"` // empty for a whole port
	Port uint16 `json:"port"`
	Kind string `json:"kind"`
	Open bool   `json:"open"`
	Why  string `json:"why"` // it is not
	Mend string `json:"mend"`
}

// String is one in words: "https nas.foo-bar.example.org".
func (f funnelStatus) String() string {
	what := f.Kind + " " + f.Name
	if f.Name == "" {
		what = fmt.Sprintf("%s port %d", f.Kind, f.Port)
	} else if f.Port != publicPort {
		what += fmt.Sprintf(":%d", f.Port)
	}
	if !f.Open {
		what += " (not shown: " + f.Why + ")"
	}
	return what
}

// funnelsOf are a node's.
func (g *funnelGate) funnelsOf(node string) []funnelStatus {
	list := []funnelStatus{}
	if g == nil {
		return list
	}
	return append(list, funnelStates(node, g.toldTo(node))...)
}

func funnelStates(node string, told []control.Funnel) []funnelStatus {
	list := make([]funnelStatus, 0, len(told))
	for _, f := range told {
		list = append(list, funnelStatus{Node: node, Name: f.Name, Port: f.Port, Kind: f.Kind, Open: f.Open, Why: f.Why, Mend: f.Mend})
	}
	return list
}

// funnelStatus is what is shown to the world: on a gateway by all nodes, elsewhere by this one.
func (n *Node) funnelStatus(self string) []funnelStatus {
	g := n.gateway.funnels
	if g == nil {
		told, _, _, _ := n.registration.state()
		return funnelStates(self, told)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	list := []funnelStatus{}
	for node, told := range g.told {
		list = append(list, funnelStates(node, told)...)
	}
	slices.SortStableFunc(list, func(a, b funnelStatus) int {
		if a.Node != b.Node {
			return map[bool]int{true: -1, false: 1}[a.Node < b.Node]
		}
		return int(a.Port) - int(b.Port)
	})
	return list
}

// collectFunnels sends the metrics of what is passed on for visitors.
func (c *collector) collectFunnels(m metricSink) {
	g := &c.node.gateway
	if g.funnels == nil || g.front == nil {
		return
	}
	s := g.funnels.relay.Stats()
	for _, one := range []struct {
		result string
		n      uint64
	}{{"begun", s.Begun}, {"refused", s.Refused}, {"unreached", s.Unreached}} {
		m.counter("meshdns_funnel_visits_total", "Visits: begun, of these unreached (that came to no node, or to one at its limit), and refused (nothing is shown there, or a limit).", one.n, label{"result", one.result})
	}
	m.counter("meshdns_funnel_bytes_total", "Bytes of visits, both ways.", s.Bytes)
	m.gauge("meshdns_funnel_visits", "Visits at this moment.", float64(s.Open))
	m.gauge("meshdns_funnel_shown", "Names and ports that are shown to the world.", float64(len(g.funnels.view())))
	f := g.front.Stats()
	for _, one := range []struct {
		result string
		n      uint64
	}{{"accepted", f.Accepted}, {"shed", f.Shed}, {"mute", f.Mute}, {"unknown", f.Unknown}} {
		m.counter("meshdns_front_connections_total", "Connections to the public port: taken (accepted), closed at a bound (shed), that said nothing "+
			"whole (mute), that named nobody (unknown).", one.n, label{"result", one.result})
	}
	m.gauge("meshdns_front_connections", "Connections to the public port at this moment.", float64(f.Open))
}

// What visits have moved this month is kept, since the limits of a month outlive a process.
const (
	usageFile = "usage.json"
	usageTime = time.Minute
	maxUsage  = 16 << 20
)

// resumeUsage goes on counting from what was kept. Whatever is wrong with the file costs only that.
func (n *Node) resumeUsage() {
	path := filepath.Join(n.opt.Paths.State, usageFile)
	data, err := readFile(path, maxUsage)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var usage funnel.Usage
	if err == nil {
		err = json.Unmarshal(data, &usage)
	}
	if err != nil {
		n.log.Warn("what visits moved this month is not known any more", "err", fmt.Errorf("reading %s: %w", path, err))
		return
	}
	n.gateway.funnels.relay.Resume(usage)
}

// keepUsage writes down what visits have moved, until ctx ends and then once more.
func (n *Node) keepUsage(ctx context.Context) error {
	var kept uint64
	for {
		sleep(ctx, usageTime)
		if moved := n.gateway.funnels.relay.Stats().Bytes; moved != kept {
			data, err := json.Marshal(n.gateway.funnels.relay.Usage())
			if err == nil {
				err = writeFile(filepath.Join(n.opt.Paths.State, usageFile), append(data, '\n'), 0o600)
			}
			if err != nil {
				n.log.Warn("what visits have moved is not kept", "err", err)
			} else {
				kept = moved
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}
