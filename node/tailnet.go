package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// tailnet holds the map in use. It is the static map or the default one, with what the further sources add.
type tailnet struct {
	path string
	use  func(old, m *Map) error // gives a new map to those that work from it; old is nil at first

	mu      sync.Mutex
	static  *Map
	extra   map[string][]Machine // by source
	merged  *Map
	records int
	loaded  time.Time
	fault   error             // of the newest file, which is not in use because of it
	faults  map[string]string // of sources, by source
	clashes []Problem         // of what sources gave, which lost
}

// current is the map in use, and when it came into use.
func (t *tailnet) current() (*Map, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.merged, t.loaded
}

// size is the number of records of the map in use.
func (t *tailnet) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.records
}

// problems are what is wrong with the newest map and with the further sources, a line each.
func (t *tailnet) problems() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := []string{}
	if t.fault != nil {
		lines = append(lines, strings.Split(t.fault.Error(), "\n")...)
	}
	for _, source := range slices.Sorted(maps.Keys(t.faults)) {
		lines = append(lines, source+": "+t.faults[source])
	}
	for _, p := range t.clashes {
		lines = append(lines, p.Error())
	}
	return lines
}

// set makes m the static map.
func (t *tailnet) set(m *Map) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	static := t.static
	t.static = m
	if err := t.mergeLocked(); err != nil {
		t.static, t.fault = static, err
		return err
	}
	t.fault = nil
	return nil
}

// given is the static map in use.
func (t *tailnet) given() *Map {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.static
}

// refuse notes why the newest static map is not in use.
func (t *tailnet) refuse(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fault = err
}

// add takes what a further source says now. A source that fails keeps what it said before.
func (t *tailnet) add(source string, machines []Machine, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.faults[source] = err.Error()
		return nil
	}
	before, had := t.extra[source]
	t.extra[source] = machines
	if err := t.mergeLocked(); err != nil {
		// Left in, it would have the next good map refused as well.
		if t.extra[source] = before; !had {
			delete(t.extra, source)
		}
		t.faults[source] = err.Error()
		return err
	}
	delete(t.faults, source)
	return nil
}

// mergeLocked puts the map together anew and gives it to its users. If they cannot use it nothing changes.
func (t *tailnet) mergeLocked() error {
	// In a fixed order of the sources: which of two wins must not depend on which was read last.
	var extra [][]Machine
	for _, source := range slices.Sorted(maps.Keys(t.extra)) {
		extra = append(extra, t.extra[source])
	}
	merged, clashes := mergeMaps(t.static, extra...)
	if err := t.use(t.merged, merged); err != nil {
		return err
	}
	t.merged, t.clashes, t.loaded, t.records = merged, clashes, time.Now(), len(merged.Records())
	return nil
}

// loadTailnet reads the map, or makes one of this host alone where there is none, and says what is in it.
func (n *Node) loadTailnet(context.Context) error {
	if err := n.prepareTailnet(loadRanges); err != nil {
		return err
	}
	m := n.tailnet.static
	from := m.Source()
	if from == defaultMapName {
		from = "no map at " + n.tailnet.path
	}
	n.report("zone %s: %s, %s (%s)", m.Zone(), plural(len(m.Nodes()), "node"), plural(len(m.Records()), "record"), from)
	if conflict := n.conflict(m); conflict != "" {
		n.report("%s", conflict)
	}
	if n.findSelf(m) == "" {
		n.report("this machine is not in the map; say which node it is with node: in the configuration")
	}
	return nil
}

// prepareTailnet reads the map; nothing works from it yet.
func (n *Node) prepareTailnet(ranges func(stateDir string) (drawnRanges, error)) error {
	n.tailnet.path = n.opt.Paths.Map
	n.tailnet.use = n.useMap
	n.tailnet.extra = map[string][]Machine{}
	n.tailnet.faults = map[string]string{}
	if err := n.dropped.load(n.opt.Paths.State); err != nil {
		return err
	}
	m, err := n.firstMap(ranges)
	if err != nil {
		return err
	}
	m = n.dropped.strip(m)
	n.tailnet.static = m
	return n.cfg.ValidateWith(m)
}

// conflict says what keeps a tunnel of ours from using the map's ranges on this machine, or nothing.
func (n *Node) conflict(m *Map) string {
	if n.cfg.Tunnel.Mode == "off" {
		return ""
	}
	links, err := machineLinks()
	if err != nil {
		n.log.Debug("the machine's links are not known", "err", err)
	}
	return tailscaleConflict(m.Ranges(), links)
}

// firstMap is the static map or, without a file, the default one, with ranges from the state directory. A broken file
// is an error: there is no last good map to go on with.
func (n *Node) firstMap(ranges func(stateDir string) (drawnRanges, error)) (*Map, error) {
	if n.gateway.registry != nil {
		told, _ := n.gateway.registry.Map()
		return mapFromGateway(told, believeAll)
	}
	if n.member.keeps != nil {
		return n.memberMap()
	}
	m, err := loadMap(n.tailnet.path)
	if !errors.Is(err, fs.ErrNotExist) || n.cfg.Map != "" {
		return m, err
	}
	drawn, err := ranges(n.opt.Paths.State)
	if err != nil {
		return nil, err
	}
	return defaultMap(n.host(), n.cfg.Zone, drawn), nil
}

// hasGateway reports whether the map comes from a gateway, be it this node itself, and not from a file.
func (n *Node) hasGateway() bool { return n.gateway.registry != nil || n.member.joined() }

// host is the name that this machine goes by, where no map gives it one.
func (n *Node) host() string {
	if n.cfg.Node != "" {
		return n.cfg.Node
	}
	host, err := os.Hostname()
	if err != nil {
		n.log.Debug("the host has no name", "err", err)
	}
	return host
}

// findSelf is the name of this machine's node in m: the configured one, or that with the host's name; "" if it has none.
func (n *Node) findSelf(m *Map) string {
	name := n.member.name()
	if name == "" {
		name = n.cfg.Node
	}
	if name == "" {
		name = hostLabel(n.host())
	}
	found, _ := m.Node(name)
	return found.Name
}

// startWatching follows the map's file and the further sources.
func (n *Node) startWatching(context.Context) error {
	m, _ := n.tailnet.current()
	if !n.hasGateway() {
		w := &watcher{Path: n.tailnet.path, Map: m, OnMap: n.newMap, OnProblem: n.badMap, Logger: n.log}
		n.services.run("watching of the map", w.Run)
	}
	sources, err := newSources(n.cfg, n.log)
	if err != nil {
		return err
	}
	for _, source := range sources {
		n.services.run(source.String(), func(ctx context.Context) error {
			return source.Run(ctx, func(machines []Machine, err error) { n.sourced(source.String(), machines, err) })
		})
	}
	return nil
}

// newMap takes a new static map into use. It has to go with the configuration, which may name a node or routes that the
// map before allowed.
func (n *Node) newMap(m *Map) {
	m = n.dropped.strip(m)
	err := n.cfg.ValidateWith(m)
	if err == nil {
		err = n.tailnet.set(m)
	}
	if err != nil {
		n.badMap(err)
		return
	}
	n.containers.wake()
	n.takeover.reapply(n.system.ctx)
	n.report("zone %s: %s, %s (%s changed)", m.Zone(), plural(len(m.Nodes()), "node"), plural(n.tailnet.size(), "record"), m.Source())
}

// badMap says what is wrong with a map that is not taken into use.
func (n *Node) badMap(err error) {
	n.tailnet.refuse(err)
	for line := range strings.Lines(err.Error()) {
		n.log.Error("the map is not used, the last good one stays", "problem", strings.TrimSpace(line))
	}
}

// reread reads the map again because somebody asked for that.
func (n *Node) reread() {
	if n.gateway.registry != nil {
		if err := n.readPolicy(context.Background()); err != nil {
			n.badMap(err)
		}
	}
	if n.hasGateway() {
		return // whose map comes by itself
	}
	m, err := loadMap(n.tailnet.path)
	if errors.Is(err, fs.ErrNotExist) {
		n.report("no map at %s", n.tailnet.path)
		return
	}
	if err != nil {
		n.badMap(err)
		return
	}
	n.newMap(m)
}

// sourced takes what a further source says.
func (n *Node) sourced(source string, machines []Machine, failed error) {
	if failed != nil {
		n.log.Warn("a source of names failed, what it said before stays", "source", source, "err", failed)
	}
	if err := n.tailnet.add(source, machines, failed); err != nil {
		n.log.Error("what a source says is not used", "source", source, "err", err)
		return
	}
	n.containers.wake()
	n.takeover.reapply(n.system.ctx)
}

// defaultMapName is the source of a map that was made, not read.
const defaultMapName = "default"

// plural is "1 node" or "2 nodes".
func plural(count int, word string) string {
	if count == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", count, word)
}
