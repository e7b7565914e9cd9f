package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// mapSource gives names and addresses besides the map. Run publishes them at once and whenever they change, until ctx
// ends. With an error there are no machines, and those published last stay good.
type mapSource interface {
	Run(ctx context.Context, publish func([]Machine, error)) error
	String() string
}

// Bounds on what a source may give.
const (
	maxSource   = 8 << 20 // bytes
	maxMachines = 100_000
)

// defaultInterval is how often a source is read again.
const defaultInterval = 30 * time.Second

// newSources makes the sources of a valid configuration.
func newSources(c Config, log *slog.Logger) ([]mapSource, error) {
	var out []mapSource
	for _, s := range c.Sources {
		if len(s.Command) > 0 && !c.trusted {
			return nil, fmt.Errorf("starting the source %s: its command does not come from a file of root's", s.Type)
		}
		out = append(out, newPolled(s, log))
	}
	return out, nil
}

// newPolled makes the source for one entry of the configuration.
func newPolled(s sourceConfig, log *slog.Logger) *polled {
	p := &polled{interval: cmp.Or(s.Interval, defaultInterval), log: log, parse: parserOf(s.Type)}
	if log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	switch {
	case len(s.Command) > 0:
		p.name = s.Type + " (" + s.Command[0] + ")"
		p.load = func(ctx context.Context) ([]byte, error) { return runCommand(ctx, s.Command) }
	case s.Interface != "":
		p.name = s.Type + " " + s.Interface
		p.load = readsFile(filepath.Join("/etc/wireguard", s.Interface+".conf"))
	default:
		p.name = s.Type + " " + s.File
		p.load = readsFile(s.File)
	}
	return p
}

func readsFile(path string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return readFile(path, maxSource) }
}

// parserOf is the reader of a type's format.
func parserOf(typ string) func([]byte) ([]rawMachine, error) {
	switch typ {
	case "tailscale":
		return parseTailscale
	case "netbird":
		return parseNetbird
	case "headscale":
		return parseHeadscale
	default:
		return parseWGQuick
	}
}

// polled is a source that is read again and again.
type polled struct {
	name     string
	interval time.Duration
	load     func(context.Context) ([]byte, error)
	parse    func([]byte) ([]rawMachine, error)
	log      *slog.Logger

	digest [32]byte // of what was published last
	ready  bool     // something was
	said   string   // the error that was published last and still holds
}

func (p *polled) String() string { return p.name }

// Run reads the source until ctx ends and then returns nil.
func (p *polled) Run(ctx context.Context, publish func([]Machine, error)) error {
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	for {
		p.once(ctx, publish)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// once reads the source and publishes what is new.
func (p *polled) once(ctx context.Context, publish func([]Machine, error)) {
	data, err := p.load(ctx)
	if ctx.Err() != nil {
		return
	}
	digest := sha256.Sum256(data)
	if err == nil && p.ready && digest == p.digest && p.said == "" {
		return
	}
	var raw []rawMachine
	if err == nil {
		raw, err = p.parse(data)
	}
	if err != nil {
		err = fmt.Errorf("reading the source %s: %w", p.name, err)
		if text := err.Error(); text != p.said {
			p.said = text
			publish(nil, err)
		}
		return
	}
	p.digest, p.ready, p.said = digest, true, ""
	list := machines(p.name, raw)
	p.log.Debug("read a source", "source", p.name, "machines", len(list))
	publish(list, nil)
}

// rawMachine is a machine as a source names it.
type rawMachine struct {
	name  string   // "nas", "nas.tailnet.example.", "Ann's phone"
	addrs []string // "100.64.0.1", "100.64.0.1/16"
}

var errTooMany = errors.New("too many machines")

// machines makes valid machines of raw ones, sorted by name. Those without a usable name or address are left out.
// Where several have one name the lowest address keeps it and the others get -2, -3 and so on.
func machines(source string, raw []rawMachine) []Machine {
	var list []Machine
	for _, r := range raw {
		m := Machine{Name: makeLabel(r.name), Source: source}
		for _, s := range r.addrs[:min(len(r.addrs), maxAddresses)] {
			s, _, _ = strings.Cut(s, "/")
			if a, err := netip.ParseAddr(s); err == nil && isUnicast(a) && !slices.Contains(m.Addresses, a) {
				m.Addresses = append(m.Addresses, a)
			}
		}
		if m.Name != "" && len(m.Addresses) > 0 {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b Machine) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), slices.CompareFunc(a.Addresses, b.Addresses, netip.Addr.Compare))
	})
	return renameTwins(list)
}

// renameTwins gives every machine of a sorted list a name of its own. A machine that is listed twice is one machine.
func renameTwins(list []Machine) []Machine {
	list = slices.CompactFunc(list, func(a, b Machine) bool {
		return a.Name == b.Name && slices.Equal(a.Addresses, b.Addresses)
	})
	taken := make(map[string]bool, len(list))
	for _, m := range list {
		taken[m.Name] = true
	}
	next := map[string]int{} // the number that the next twin of a name tries
	for i := 1; i < len(list); i++ {
		base := list[i].Name
		if n := list[i-1].Name; base != n && next[base] == 0 {
			continue
		}
		for n := max(next[base], 2); ; n++ {
			name := fmt.Sprintf("%s-%d", base[:min(len(base), maxLabel-7)], n)
			if !taken[name] {
				list[i].Name, taken[name], next[base] = name, true, n+1
				break
			}
		}
	}
	slices.SortFunc(list, func(a, b Machine) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
