package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The times and counts of a registry.
const (
	// addressRest is how long a removed node's addresses are nobody's: caches and rules of others still name them.
	addressRest = 31 * 24 * time.Hour
	// inviteTime is how long an invite lives where nothing else is said (S6).
	inviteTime = time.Hour
	maxInvites = 1000
	maxNodes   = 50000
	maxTries   = 4 // of a change that somebody else's came before
)

// RegistryConfig is what a Registry needs. File, Zone and Ranges are required.
type RegistryConfig struct {
	File   string // that it is kept in, made with mode 0600 if there is none; one process at a time may have it open
	Zone   string
	Ranges []netip.Prefix // of the tailnet; the first host address of each is the gateway's, the last the service address

	Template  Invite                                 // what every invite says of the gateway
	CheckName func(name string, tags []string) error // says what is wrong with a new node's name (S12); nil: nothing is
	// MayHave says why a node may not have service names that it asks for, each of which is free and passes CheckName; nil: it may.
	MayHave func(n Node, names []string) error
	Issuers map[string]string // of CAs, by the host of their accounts' addresses: their names in CAA records, beside those of well-known ones
	Lock    []ControlKey      // of the owner, whose signatures are taken (S3); none: anybody's, from the gateway's operator
	Now     func() time.Time  // nil: time.Now
	Logger  *slog.Logger      // nil: nothing is logged
}

// Registry is the gateway's record of its nodes, and the source of the map that they get. Its methods may be called at
// the same time.
type Registry struct {
	cfg   RegistryConfig
	log   *slog.Logger
	store store

	mu       sync.Mutex
	revision uint64
	revs     map[string]uint64 // of the records, by key
	meta     metaRecord
	nodes    map[string]*nodeRecord
	invites  map[string]*inviteRecord
	gone     map[string]*goneRecord
	resting  map[string]*restRecord
	certs    map[string]*certRecord // by node
	turns    []turnRecord
	fault    error                  // why the newest change was not written; nil: it was
	live     map[string]liveState   // of nodes, by name; lost at a restart
	callers  map[ControlKey]string  // names of nodes, by the keys that they call with
	dead     map[string]*deadRecord // by WireGuard key
	policy   policyRecord
	removed  []removal // names that left the map lately
	current  *Map
	changed  chan struct{} // closed when there is a newer map

	certView     atomic.Pointer[certView]
	certsChanged chan struct{} // closed when there is another view
	writes       window        // of values for CAs
	heard        pulses
}

// removal is a name that left the map with a version.
type removal struct {
	name    string
	version uint64
}

// maxRemovals is how many of them are remembered: who is behind more of them gets the whole map.
const maxRemovals = 1024

// liveState is what is known of a node while the gateway runs.
type liveState struct {
	seen     time.Time
	report   Report
	observed netip.AddrPort // where the gateway sees its WireGuard packets come from
}

// The records, by the first part of their keys.
const (
	metaKey   = "meta"
	policyKey = "policy"
	nodeKey   = "node/"
	inviteKey = "invite/"
	goneKey   = "gone/"
	restKey   = "rest/"
	deadKey   = "dead/"
)

type metaRecord struct {
	Zone   string         `json:"zone"`
	Ranges []netip.Prefix `json:"ranges"`
	Epoch  uint64         `json:"epoch"`
}

// policyRecord is the map's policy, unread here.
type policyRecord struct {
	Text    string
	version uint64
}

type nodeRecord struct {
	Node    Node      `json:"node"`
	Joined  time.Time `json:"joined"`
	Pending bool      `json:"pending,omitempty"` // its key has not completed a handshake (S6)
	Invite  string    `json:"invite,omitempty"`  // that it came with, while pending
	Next    *Rotation `json:"next,omitempty"`    // its key changes once the new one has completed a handshake
	// Contested is when its invite was used again, with another key, last: somebody else has got hold of it (S6).
	Contested time.Time `json:"contested,omitzero"`

	version uint64 // of the map that it changed in last
}

type inviteRecord struct {
	ID       string       `json:"id"`
	Name     string       `json:"name,omitempty"`
	Tags     []string     `json:"tags,omitempty"`
	Key      WireGuardKey `json:"key"`
	Address  netip.Addr   `json:"address"`
	Expires  time.Time    `json:"expires"`
	Reusable bool         `json:"reusable,omitempty"`
	Node     string       `json:"node,omitempty"` // who has taken it
}

type goneRecord struct {
	Name     string    `json:"name"`
	Reserved time.Time `json:"reserved"`     // until when the name is nobody's (S5)
	By       string    `json:"by,omitempty"` // the node that has given it up, and may take it again
}

// restRecord is an address that a node had which was removed. It is no part of what is kept of the name: another node may
// have had that since.
type restRecord struct {
	Until time.Time `json:"until"` // when it may be another node's
}

// deadRecord are the keys of a node that was removed. They are nobody's for ever: nodes that have seen the removal do not
// believe them any more (S5).
type deadRecord struct {
	Name  string    `json:"name"`
	Keys  Keys      `json:"keys"`
	Since time.Time `json:"since"`
}

// OpenRegistry reads the registry, or makes it. Zone and ranges never change afterwards (S4): others than those that it
// was made with are an error.
func OpenRegistry(ctx context.Context, cfg RegistryConfig) (*Registry, error) {
	file, err := openFileStore(cfg.File)
	if err != nil {
		return nil, err
	}
	r, err := openRegistry(ctx, cfg, file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

// openRegistry does what OpenRegistry does, with any store.
func openRegistry(ctx context.Context, cfg RegistryConfig, in store) (*Registry, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.CheckName == nil {
		cfg.CheckName = func(string, []string) error { return nil }
	}
	if cfg.MayHave == nil {
		cfg.MayHave = func(Node, []string) error { return nil }
	}
	cfg.Issuers = maps.Clone(cfg.Issuers)
	if cfg.Issuers == nil {
		cfg.Issuers = map[string]string{}
	}
	for host, domain := range defaultIssuers() {
		cfg.Issuers[host] = cmp.Or(cfg.Issuers[host], domain)
	}
	r := &Registry{
		cfg: cfg, store: in, log: cfg.Logger, live: map[string]liveState{}, changed: make(chan struct{}),
		certsChanged: make(chan struct{}), writes: newWindow(maxPuts), heard: pulses{at: map[string]time.Time{}},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.reloadLocked(ctx); err != nil {
		return nil, err
	}
	if r.meta.Zone != "" && (r.meta.Zone != cfg.Zone || !slices.Equal(r.meta.Ranges, cfg.Ranges)) {
		return nil, fmt.Errorf("the registry is that of %s with %v, and cannot become that of %s with %v: nodes would refuse it",
			r.meta.Zone, r.meta.Ranges, cfg.Zone, cfg.Ranges)
	}
	// A registry that comes back from a backup has a lower epoch than nodes have seen, so it is no mere counter. Of a clock in
	// seconds two starts within one would have the same.
	meta := metaRecord{Zone: cfg.Zone, Ranges: cfg.Ranges, Epoch: max(r.meta.Epoch+1, uint64(max(0, cfg.Now().UnixMilli())))}
	err := r.changeLocked(ctx, func() ([]change, error) {
		c, err := r.put(metaKey, meta)
		return []change{c}, err
	})
	if r.fault != nil && r.meta.Zone != "" {
		// Nodes are better served with what there is than with nothing. What the epoch has to be by then it is in memory.
		r.log.Error("the registry is as it was, and takes no changes", "err", err)
		r.meta, err = meta, nil
		r.publishLocked(r.revision)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Fault is why changes are not written at this moment; nil: they are.
func (r *Registry) Fault() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault
}

// put is the change that writes a record.
func (r *Registry) put(key string, value any) (change, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return change{}, fmt.Errorf("writing record %q: %w", key, err)
	}
	return change{Key: key, Value: data, Revision: r.revs[key]}, nil
}

// puts are the changes that write records, which stand behind their keys.
func (r *Registry) puts(pairs ...any) ([]change, error) {
	var list []change
	for i := 0; i < len(pairs); i += 2 {
		c, err := r.put(pairs[i].(string), pairs[i+1])
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// drop is the change that removes a record.
func (r *Registry) drop(key string) change { return change{Key: key, Revision: r.revs[key]} }

// changeLocked makes what changes returns. It is asked again where another gateway was faster.
func (r *Registry) changeLocked(ctx context.Context, changes func() ([]change, error)) error {
	for try := 1; ; try++ {
		list, err := changes()
		if err != nil || len(list) == 0 {
			return err
		}
		// What one gateway decides rests on all that it has seen: another one's new node may have the same address.
		if !slices.ContainsFunc(list, func(c change) bool { return c.Key == metaKey }) {
			meta, err := r.put(metaKey, r.meta)
			if err != nil {
				return err
			}
			list = append(list, meta)
		}
		revision, err := r.store.CompareAndSwap(ctx, list...)
		if errors.Is(err, errConflict) && try < maxTries {
			if err := r.reloadLocked(ctx); err != nil {
				return err
			}
			continue
		}
		var unwritten *unwrittenError
		if errors.As(err, &unwritten) {
			r.fault = err
		}
		if err != nil {
			return err
		}
		r.fault = nil
		for i := range list {
			list[i].Revision = revision
		}
		return r.takeLocked(records{List: list, Revision: revision}) // nothing came between: all change the meta record
	}
}

// reloadLocked reads everything.
func (r *Registry) reloadLocked(ctx context.Context) error {
	all, err := r.store.Load(ctx)
	if err != nil {
		return err
	}
	return r.takeLocked(all)
}

// takeLocked takes records from the store into use. Every change rests on all before it, so that what is not newer than the
// newest that was taken is known: a node that was removed meanwhile must not come back with what Watch has seen before.
func (r *Registry) takeLocked(news records) error {
	if news.Revision < r.revision {
		return nil
	}
	before := r.nodes
	if news.Whole {
		r.revs, r.nodes, r.callers = map[string]uint64{}, map[string]*nodeRecord{}, map[ControlKey]string{}
		r.invites, r.gone, r.resting = map[string]*inviteRecord{}, map[string]*goneRecord{}, map[string]*restRecord{}
		r.certs, r.turns = map[string]*certRecord{}, nil
		r.dead = map[string]*deadRecord{}
	}
	publish := r.current == nil
	certs := publish
	for _, one := range news.List {
		if !news.Whole && one.Revision <= r.revision {
			continue // ours, come back by Watch
		}
		touched, err := r.takeRecord(one)
		if err != nil {
			return &damagedError{r.cfg.File, fmt.Errorf("record %q: %w", one.Key, err)}
		}
		publish = publish || touched
		certs = certs || strings.HasPrefix(one.Key, certKey)
	}
	if news.Whole {
		for name, old := range before {
			if _, still := r.nodes[name]; !still && !old.Pending {
				r.removed, publish = append(r.removed, removal{name, news.Revision}), true
			}
		}
	}
	r.revision = max(r.revision, news.Revision)
	if publish {
		r.publishLocked(news.Revision)
	}
	if publish || certs {
		r.viewCertsLocked()
	}
	return nil
}

// takeRecord takes one of them, and reports whether the map is another one with it.
func (r *Registry) takeRecord(one record) (news bool, err error) {
	kind, name, _ := strings.Cut(one.Key, "/")
	r.revs[one.Key] = one.Revision
	if one.Value == nil {
		delete(r.revs, one.Key)
	}
	switch kind + "/" {
	case policyKey + "/":
		r.policy = policyRecord{Text: string(one.Value), version: one.Revision}
		return true, nil
	case metaKey + "/":
		epoch := r.meta.Epoch
		var next metaRecord // its ranges are those of maps that are out already, and may not be written to
		err := json.Unmarshal(one.Value, &next)
		if err == nil {
			r.meta = next
		}
		return r.meta.Epoch != epoch, err
	case nodeKey:
		return r.takeNode(name, one)
	case inviteKey:
		return false, takeInto(r.invites, name, one.Value)
	case goneKey:
		return false, takeInto(r.gone, name, one.Value)
	case restKey:
		return false, takeInto(r.resting, name, one.Value)
	case turnsKey + "/":
		return false, r.takeTurns(one.Value)
	case certKey:
		return false, takeInto(r.certs, name, one.Value)
	case deadKey:
		return false, takeInto(r.dead, name, one.Value)
	}
	return false, nil // of a newer program, for whom it stays
}

func takeInto[T any](into map[string]*T, name string, value []byte) error {
	if value == nil {
		delete(into, name)
		return nil
	}
	one := new(T)
	if err := json.Unmarshal(value, one); err != nil {
		return err
	}
	into[name] = one
	return nil
}

func (r *Registry) takeNode(name string, one record) (news bool, err error) {
	old := r.nodes[name]
	was := old != nil && !old.Pending
	if err := takeInto(r.nodes, name, one.Value); err != nil {
		return false, err
	}
	for _, key := range old.callers() {
		if r.callers[key] == name { // of a node that was renamed the new name has it
			delete(r.callers, key)
		}
	}
	for _, key := range r.nodes[name].callers() {
		r.callers[key] = name
	}
	if now := r.nodes[name]; now != nil {
		now.version = one.Revision
		return was || !now.Pending, nil
	}
	delete(r.live, name)
	if was {
		r.removed = append(r.removed, removal{name, one.Revision})
	}
	return was, nil
}

// callers are the keys that a node may call with.
func (n *nodeRecord) callers() []ControlKey {
	switch {
	case n == nil:
		return nil
	case n.Next == nil:
		return []ControlKey{n.Node.Control}
	}
	return []ControlKey{n.Node.Control, n.Next.To.Control}
}

// publishLocked makes the map of what the registry holds now.
func (r *Registry) publishLocked(version uint64) {
	m := &Map{
		Zone:       r.meta.Zone,
		Ranges:     r.meta.Ranges,
		Epoch:      r.meta.Epoch,
		Version:    version,
		TrustUntil: r.cfg.Now().Add(trustTime).UTC().Truncate(time.Second),
		Nodes:      []Node{},
		Policy:     r.policy.Text,
	}
	for _, n := range r.nodes {
		if !n.Pending {
			m.Nodes = append(m.Nodes, n.Node)
		}
	}
	slices.SortFunc(m.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	if over := len(r.removed) - maxRemovals; over > 0 {
		r.removed = slices.Clone(r.removed[over:])
	}
	r.current = m
	close(r.changed)
	r.changed = make(chan struct{})
}

// Close ends the registry's use, once Run has ended.
func (r *Registry) Close() error { return r.store.Close() }

// Snapshot writes the registry's file as of one moment, while it is in use.
func (r *Registry) Snapshot(w io.Writer) error {
	file, ok := r.store.(interface{ snapshot(w io.Writer) error })
	if !ok {
		return errors.ErrUnsupported // a store that gateways share is backed up where it is
	}
	return file.snapshot(w)
}

// Map is the newest map, and a channel that is closed when there is a newer one.
func (r *Registry) Map() (*Map, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current, r.changed
}

// Run follows what other gateways do to the store, and lets invites and pending places die in time, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() { r.expire(ctx) })
	for {
		r.mu.Lock()
		after := r.revision
		r.mu.Unlock()
		news, err := r.store.Watch(ctx, after)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = r.takeNews(news)
		}
		if err != nil {
			return fmt.Errorf("following the registry: %w", err)
		}
	}
}

// takeNews takes what another gateway has changed. What this one has changed since is newer, and knew of all before it.
func (r *Registry) takeNews(news records) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if news.Revision <= r.revision {
		return nil
	}
	if !news.Whole {
		news.List = slices.DeleteFunc(news.List, func(one record) bool { return one.Revision <= r.revision })
	}
	return r.takeLocked(news)
}

// Policy has the map carry another policy.
func (r *Registry) Policy(ctx context.Context, text string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changeLocked(ctx, func() ([]change, error) {
		if r.policy.Text == text {
			return nil, nil
		}
		return []change{{Key: policyKey, Value: []byte(text), Revision: r.revs[policyKey]}}, nil
	})
}

// update is what makes a newer map of the one that a node has: a delta where that is known and smaller, else the map.
func (r *Registry) update(epoch, version uint64) (Event, *Map, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.current
	if epoch != m.Epoch || version == 0 || version > m.Version || r.forgotten(version) {
		return Event{Map: m}, m, r.changed
	}
	if version == m.Version {
		return Event{}, m, r.changed
	}
	d := &Delta{From: version, Version: m.Version}
	if r.policy.version > version {
		d.Policy = &m.Policy
	}
	for _, n := range m.Nodes {
		if r.nodes[n.Name].version > version {
			d.Set = append(d.Set, n)
		}
	}
	for _, gone := range r.removed {
		if n := r.nodes[gone.name]; gone.version > version && (n == nil || n.Pending) {
			d.Remove = append(d.Remove, gone.name)
		}
	}
	if len(d.Set) > len(m.Nodes)/2 {
		return Event{Map: m}, m, r.changed
	}
	return Event{Delta: d}, m, r.changed
}

// forgotten reports whether names may have left the map after a version that are not remembered.
func (r *Registry) forgotten(version uint64) bool {
	return len(r.removed) == maxRemovals && version < r.removed[0].version
}

// Apply makes the newer map. It fails if d does not start from m.
func (m *Map) Apply(d *Delta) (*Map, error) {
	if d.From != m.Version || d.Version <= d.From {
		return nil, fmt.Errorf("a change from map version %d to %d does not fit version %d", d.From, d.Version, m.Version)
	}
	next := *m
	next.Version = d.Version
	if d.Policy != nil {
		next.Policy = *d.Policy
	}
	set := make(map[string]bool, len(d.Set))
	for _, n := range d.Set {
		set[n.Name] = true
	}
	next.Nodes = slices.Clone(d.Set)
	for _, n := range m.Nodes {
		if !set[n.Name] && !slices.Contains(d.Remove, n.Name) {
			next.Nodes = append(next.Nodes, n)
		}
	}
	slices.SortFunc(next.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return &next, nil
}
