package osconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
)

// record is what resolvconf is given for us: Debian's program of that name, or openresolv.
type record struct {
	machine  machine
	kind     string // modeResolvconf or modeOpenresolv
	program  string // where it is
	stateDir string
	servers  []netip.Addr // that were applied
}

// debianRecords is where Debian's resolvconf keeps one file a record.
const debianRecords = "/run/resolvconf/interface"

// name is what our record is called. Debian's sorts records by their names, and takes one with a loopback server, which
// ours is, for the only one.
func (r *record) name() string {
	if r.kind == modeResolvconf {
		return "lo.meshdns"
	}
	return "meshdns"
}

// recordServers are the servers of our record. Debian's takes the first loopback server for the last one that counts, so
// that one has to stand behind the service address to keep all other records out.
func recordServers(kind string, c Config) []netip.Addr {
	if kind == modeResolvconf {
		addrs := c.addrs()
		return addrs[:min(len(addrs), maxServersWritten)]
	}
	return c.written()
}

// run runs resolvconf with the record as its input, without a shell.
func (r *record) run(ctx context.Context, input []byte, args ...string) ([]byte, error) {
	run := toolRun{program: r.program, args: args, input: input}
	if r.kind == modeResolvconf && r.machine.exists(debianRecords) {
		run.dir = r.machine.disk.real(debianRecords) // list-records lists the directory that it runs in
	}
	return run.run(ctx)
}

func (r *record) apply(ctx context.Context, c Config) error {
	if refused := wrongServers(c); refused != nil {
		return refused
	}
	b, err := r.base(ctx)
	if err != nil {
		return err
	}
	j := r.machine.newJournal(r.kind, r.program, c)
	if err := r.machine.disk.saveJournal(r.stateDir, j); err != nil {
		return err
	}
	text := resolvConf{nameservers: recordServers(r.kind, c), search: joinSearch(c.Search, b.Search, "")}
	args := []string{"-a", r.name()}
	if r.kind == modeOpenresolv {
		args = []string{"-m", "0", "-x", "-a", r.name()} // first of all, and the only one
	}
	if _, err := r.run(ctx, text.append(nil), args...); err != nil {
		return err
	}
	r.servers = c.addrs()
	ok, err := r.holds(ctx, c)
	if err == nil && !ok {
		err = fmt.Errorf("%s took our servers, and %s names others", managerName(r.kind), confPath)
	}
	return err
}

// holds looks at what programs read.
func (r *record) holds(_ context.Context, c Config) (bool, error) {
	_, ours, err := r.machine.disk.readBack(c)
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", confPath, err)
	}
	return ours, nil
}

func (r *record) restore(ctx context.Context) error {
	args := []string{"-d", r.name()}
	if r.kind == modeOpenresolv {
		args = []string{"-f", "-d", r.name()} // also if it has none
	}
	_, err := r.run(ctx, nil, args...)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a program that was removed keeps no records
		return err
	}
	if err := r.forgotten(ctx); err != nil {
		return err
	}
	r.servers = nil
	return r.machine.disk.dropJournal(r.stateDir)
}

// forgotten reads back that neither the records nor what programs read name us any more.
func (r *record) forgotten(ctx context.Context) error {
	held := r.machine.exists(path.Join(debianRecords, r.name()))
	if r.kind == modeOpenresolv {
		names, err := r.run(ctx, nil, "-i")
		held = err == nil && slices.Contains(strings.Fields(string(names)), r.name())
	}
	if held {
		return &keptError{managerName(r.kind) + " has our record still", r.program + " -d " + r.name()}
	}
	j, err := loadJournal(r.stateDir)
	if err != nil || j == nil {
		return err
	}
	return r.machine.disk.stillNames(j.Servers, "see why "+managerName(r.kind)+" does not write it (resolvconf --enable-updates; resolvconf -u)")
}

// base is what all other records say.
func (r *record) base(ctx context.Context) (Base, error) {
	names, err := r.others(ctx)
	if err != nil {
		return Base{}, err
	}
	if name := r.exclusive(names); name != "" {
		names = []string{name}
	}
	var list []source
	for _, name := range names {
		data, err := r.read(ctx, name)
		if err != nil {
			return Base{}, err
		}
		s := source{link: r.machine.tunnelOf(name), all: true, servers: base(data, r.servers).Servers}
		for line := range bytes.Lines(data) { // of several lists in a file the last one counts, but resolvconf takes them all
			s.search = append(s.search, parseResolvConf(line).search...)
		}
		list = append(list, s)
	}
	return combine(list), nil
}

// exclusive is the record that openresolv would take for the only one without ours, of those there are; "" if it would
// take them all. Each that is to be the only one has a file there, the newest one the first.
func (r *record) exclusive(names []string) string {
	entries, err := os.ReadDir(r.machine.disk.real("/run/resolvconf/exclusive"))
	if r.kind != modeOpenresolv || err != nil {
		return ""
	}
	for _, e := range entries {
		if _, name, ok := strings.Cut(e.Name(), " "); ok && slices.Contains(names, name) {
			return name
		}
	}
	return ""
}

// others are the names of the other records, in resolvconf's order.
func (r *record) others(ctx context.Context) ([]string, error) {
	var out []byte
	var err error
	if r.kind == modeOpenresolv {
		out, err = r.run(ctx, nil, "-i")
	} else {
		lister := *r
		lister.program = r.machine.disk.real("/lib/resolvconf/list-records")
		if out, err = lister.run(ctx, nil); errors.Is(err, fs.ErrNotExist) {
			out, err = nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range strings.FieldsSeq(string(out)) {
		if name != r.name() && !strings.ContainsAny(name, "/") {
			names = append(names, name)
		}
	}
	return names, nil
}

// read is one record.
func (r *record) read(ctx context.Context, name string) ([]byte, error) {
	if r.kind == modeOpenresolv {
		return r.run(ctx, nil, "-l", name)
	}
	data, err := r.machine.disk.readThrough(path.Join(debianRecords, name))
	if err != nil {
		return nil, fmt.Errorf("reading the record %s: %w", name, err)
	}
	return data, nil
}
