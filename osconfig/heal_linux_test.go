package osconfig

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// poisoned is a machine on which systemd-resolved came up while resolv.conf named us.
type poisoned struct {
	*rig
	*busObject
	bus *privateBus
	was string // everything, before us
}

func newPoisoned(t *testing.T) *poisoned {
	t.Helper()
	b := newBus(t)
	p := &poisoned{rig: newRig(t), busObject: newBusObject(t), bus: b}
	p.opt.machine.bus = nil // the test's
	p.write("etc/resolv.conf", upstreamConf)
	p.was = p.snapshot()
	p.applied() // by a process that died since
	conn := b.join(resolvedName)
	p.export(conn, resolvedPath, resolvedName+".Manager", resolvedMethods(p.busObject))
	p.knows("127.0.0.77", "192.0.2.53")
	return p
}

// knows sets the servers that systemd-resolved has. Of a loopback server it says that it is lo's.
func (p *poisoned) knows(addrs ...string) {
	list := []anyServer{}
	for _, addr := range addrs {
		ip := net.ParseIP(addr).To4()
		index := int32(0)
		if ip.IsLoopback() {
			index = 1
		}
		list = append(list, anyServer{Link: index, Family: 2, Addr: ip})
	}
	p.has(func() {
		p.props[string(resolvedPath)+" "+resolvedName+".Manager"] = map[string]any{"DNS": list}
	})
}

// systemd is a manager of units that does restart, once it is told to.
func (p *poisoned) systemd(restart func()) {
	conn := p.bus.join(systemdName)
	p.export(conn, systemdPath, systemdName+".Manager", map[string]any{
		"TryRestartUnit": func(unit, mode string) (dbus.ObjectPath, *dbus.Error) {
			err := p.called("TryRestartUnit", unit, mode)
			restart()
			return "/org/freedesktop/systemd1/job/1", err
		},
	})
}

// wantHealed restores, and checks the file and what is left.
func (p *poisoned) wantHealed(step, left string) {
	p.rig.t.Helper()
	report := p.restore()
	all := strings.Join(report.Steps, "\n")
	if !report.Changed || !strings.Contains(all, step) || left == "" && len(report.Left) > 0 || !strings.Contains(strings.Join(report.Left, "\n"), left) {
		p.rig.t.Errorf("the report: %+v, want a step %q and left %q", report, step, left)
	}
	if after := p.snapshot(); after != p.was {
		p.rig.t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", p.was, after)
	}
}

func TestSystemdResolvedReadsAFileOfAnothersAgain(t *testing.T) {
	p := newPoisoned(t)
	p.has(func() {
		p.did = func(method string, _ []any) {
			if method == "ResolveRecord" && !strings.Contains(p.read("etc/resolv.conf"), "127.0.0.77") {
				p.knows("192.0.2.53")
			}
		}
	})
	p.systemd(func() { p.knows("192.0.2.53") })
	p.wantHealed("systemd-resolved had our address", "")
}

func TestSystemdResolvedIsRestartedWhereItKeepsUs(t *testing.T) {
	p := newPoisoned(t)
	p.systemd(func() { p.knows("192.0.2.53") })
	p.wantHealed("was restarted", "")
	if calls := p.said(); !strings.Contains(calls, "TryRestartUnit systemd-resolved.service replace") {
		t.Errorf("calls: %q", calls)
	}
	if report := p.restore(); report.Changed || len(report.Left) > 0 || strings.Contains(p.said(), "TryRestartUnit") {
		t.Errorf("a second time: %+v", report)
	}
}

func TestWithoutSystemdItIsSaidWhatToRun(t *testing.T) {
	newPoisoned(t).wantHealed("is put back", "systemd-resolved still asks [127.0.0.77] for all names")
}

func TestARestartThatDoesNotHelpIsSaid(t *testing.T) {
	p := newPoisoned(t)
	p.systemd(func() {}) // resolved.conf names it
	start := time.Now()
	p.wantHealed("is put back", "a restart did not help): systemctl restart systemd-resolved")
	if took := time.Since(start); took > restartTimeout+2*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestASystemdResolvedThatNeverKnewUsIsLeftAlone(t *testing.T) {
	p := newPoisoned(t)
	p.knows("192.0.2.53")
	p.systemd(func() {})
	p.wantHealed("asks none of our addresses", "")
	if calls := p.said(); strings.Contains(calls, "TryRestartUnit") || strings.Contains(calls, "ResolveRecord") {
		t.Errorf("calls: %q", calls)
	}
}

func TestASystemdResolvedThatHangsIsSaid(t *testing.T) {
	p := newPoisoned(t)
	p.has(func() { p.hang["Get"] = true })
	start := time.Now()
	p.wantHealed("is put back", "does not say whether it asks us")
	if took := time.Since(start); took > 2*busTimeout {
		t.Errorf("it took %s", took)
	}
}

// It answers the C library without a bus, and then cannot be asked whom it asks.
func TestASystemdResolvedOffTheBusIsSaid(t *testing.T) {
	for name, bus := range map[string]func(context.Context, string) (ownership, error){
		"off the bus": func(context.Context, string) (ownership, error) { return ownerNone, nil },
		"no bus":      func(context.Context, string) (ownership, error) { return ownerUnknown, os.ErrNotExist },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.opt.machine.bus = bus
			r.write("etc/resolv.conf", upstreamConf)
			r.applied()
			socket := r.path(resolvedSocket)
			r.must(os.MkdirAll(filepath.Dir(socket), 0o755))
			ln, err := net.Listen("unix", socket)
			r.must(err)
			report := r.restore()
			if !report.Changed || len(report.Left) != 1 || !strings.Contains(report.Left[0], mendResolved) {
				t.Errorf("the report: %+v", report)
			}
			r.must(ln.Close())
			r.applied()
			if report := r.restore(); !report.Changed || len(report.Left) > 0 {
				t.Errorf("with nobody listening: %+v", report)
			}
		})
	}
}

// A kill during the healing leaves the journal, so that the next one heals.
func TestHealingGoesBeforeTheJournalsEnd(t *testing.T) {
	p := newPoisoned(t)
	p.systemd(func() {
		if j, err := loadJournal(p.opt.StateDir); j == nil || err != nil {
			t.Errorf("the journal is gone already: %v, %v", j, err)
		}
		p.knows("192.0.2.53")
	})
	p.wantHealed("was restarted", "")
}

// While our link is told, its server is one of those that systemd-resolved tells; one more is what it has for good.
func TestAServerForAllNamesIsSaidWhileWeRun(t *testing.T) {
	p := newPoisoned(t)
	m := machine{}
	p.knows("127.0.0.77", "192.0.2.53")
	if got := m.staleResolved(t.Context(), stubConfig()); got != nil {
		t.Errorf("with our link's server alone: %q", got)
	}
	p.knows("127.0.0.77", "127.0.0.77", "192.0.2.53")
	if got := m.staleResolved(t.Context(), stubConfig()); len(got) != 1 || !strings.Contains(got[0], mendResolved) {
		t.Errorf("with a global one: %q", got)
	}
	if list := (&Manager{mode: modeDirect}).managedProblems(t.Context(), facts{}, stubConfig()); !slices.Equal(list, nil) {
		t.Errorf("in another mode: %q", list)
	}
}

// The link of a process that died is gone, and resolved is told of that by the kernel a moment later.
func TestADeadProcessesLinkIsWaitedFor(t *testing.T) {
	r := newRig(t)
	r.opt.machine.bus = nil
	r.write("run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n")
	r.link("../run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf")
	before := r.snapshot()
	o := newResolved1(t)
	p := &poisoned{rig: r, busObject: o}
	p.knows()
	m := r.open()
	m.managed = fakeLink(t)
	r.must(m.Apply(t.Context(), stubConfig()))
	if j, err := loadJournal(r.opt.StateDir); err != nil || j == nil || j.Mode != modeResolved || !slices.Equal(addrWords(j.Servers), []string{"127.0.0.77"}) {
		t.Fatalf("the journal: %+v, %v", j, err)
	}
	p.knows("127.0.0.77")
	var asked atomic.Int32
	o.has(func() {
		o.did = func(method string, _ []any) {
			if asked.Add(1) == 3 && method == "Get" {
				p.knows()
			}
		}
	})
	report := r.restore()
	if want := []string{"systemd-resolved has forgotten us", askedNone}; !slices.Equal(report.Steps, want) || report.Left != nil || !report.Changed {
		t.Errorf("the report: %+v", report)
	}
	if calls := o.said(); strings.Contains(calls, "ResolveRecord 0 . ") {
		t.Errorf("calls:\n%s", calls)
	}
	if after := r.snapshot(); after != before {
		t.Errorf("not as it was\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if report := r.restore(); report.Changed || report.Detail != nothingOurs {
		t.Errorf("a second time: %+v", report)
	}
}
