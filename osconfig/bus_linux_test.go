package osconfig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// busConfig is a bus of a test's own. It knows how to start one program, which nothing of ours may make it do.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=DIR/bus</listen>
  <servicedir>DIR/services</servicedir>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
`

// privateBus is a system bus that only the test is on.
type privateBus struct {
	t    *testing.T
	dir  string
	addr string
}

// newBus starts a bus and has this process take it for the machine's.
func newBus(t *testing.T) *privateBus {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("NOT PROVEN: dbus-daemon is not installed (make deps)")
	}
	b := &privateBus{t: t, dir: memoryDir(t)} // short: the path of a socket has 107 bytes
	b.addr = "unix:path=" + b.dir + "/bus"
	b.put("bus.conf", strings.ReplaceAll(busConfig, "DIR", b.dir), 0o644)
	b.put("services/resolve1.service", "[D-BUS Service]\nName="+resolvedName+"\nExec="+b.dir+"/start\n", 0o644)
	b.put("start", "#!/bin/sh\n: >"+b.dir+"/started\n", 0o755)
	cmd := exec.Command(program, "--config-file="+b.dir+"/bus.conf", "--nofork", "--nopidfile", "--print-address=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // whatever becomes of the test
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("dbus-daemon says %q: %v", line, err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", b.addr)
	return b
}

func (b *privateBus) put(name, text string, mode os.FileMode) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		b.t.Fatal(err)
	}
}

// started reports whether the bus started a program that nobody had started.
func (b *privateBus) started() bool {
	_, err := os.Stat(filepath.Join(b.dir, "started"))
	return err == nil
}

// join is a program on the bus that owns a name.
func (b *privateBus) join(name string) *dbus.Conn {
	b.t.Helper()
	conn, err := dbus.Connect(b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = conn.Close() })
	if reply, err := conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		b.t.Fatalf("owning %s: %v, %v", name, reply, err)
	}
	return conn
}

// busObject is a fake object: its methods note how they were called, and then do what the test says.
type busObject struct {
	t     *testing.T
	mu    sync.Mutex
	calls []string                        // of the methods, with their arguments
	err   map[string]*dbus.Error          // what a method answers
	hang  map[string]bool                 // the methods that never answer
	props map[string]map[string]any       // by object and interface, and name
	done  chan struct{}                   // closed when the test ends
	did   func(method string, args []any) // nil: nothing
}

func newBusObject(t *testing.T) *busObject {
	o := &busObject{t: t, err: map[string]*dbus.Error{}, hang: map[string]bool{}, props: map[string]map[string]any{}, done: make(chan struct{})}
	t.Cleanup(func() { close(o.done) })
	return o
}

// called notes a call and says what to answer.
func (o *busObject) called(method string, args ...any) *dbus.Error {
	o.mu.Lock()
	o.calls = append(o.calls, strings.TrimSuffix(fmt.Sprintln(append([]any{method}, args...)...), "\n"))
	hangs, err, did := o.hang[method], o.err[method], o.did
	o.mu.Unlock()
	if hangs {
		<-o.done
	}
	if err == nil && did != nil {
		did(method, args)
	}
	return err
}

// has replaces how the object is; f is called with the lock held.
func (o *busObject) has(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

// said is what was called, once.
func (o *busObject) said() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := strings.Join(o.calls, "\n")
	o.calls = nil
	return all
}

// export gives an object's methods and its properties a place on the bus.
func (o *busObject) export(conn *dbus.Conn, path dbus.ObjectPath, iface string, methods map[string]any) {
	o.t.Helper()
	get := func(kind, name string) (dbus.Variant, *dbus.Error) {
		if err := o.called("Get", name); err != nil {
			return dbus.Variant{}, err
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		v, ok := o.props[string(path)+" "+kind][name]
		if !ok {
			return dbus.Variant{}, dbus.MakeFailedError(errors.New("no property " + kind + "." + name))
		}
		return dbus.MakeVariant(v), nil
	}
	err := errors.Join(
		conn.ExportMethodTable(methods, path, iface),
		conn.ExportMethodTable(map[string]any{"Get": get}, path, "org.freedesktop.DBus.Properties"),
	)
	if err != nil {
		o.t.Fatal(err)
	}
}

func TestAskingForAnOwnerStartsNobody(t *testing.T) {
	b := newBus(t)
	for name, want := range map[string]ownership{resolvedName: ownerNone, "org.example.Unknown": ownerNone} {
		if got, err := busOwner(t.Context(), name); got != want || err != nil {
			t.Errorf("%s: owned by %s, %v; want %s", name, got, err, want)
		}
	}
	for what, f := range map[string]func() error{
		"the base": func() error { _, err := newResolved().base(t.Context()); return err },
		"what holds": func() error {
			_, err := (&resolved{link: &tunLink{index: 42}}).holds(t.Context(), stubConfig())
			return err
		},
		"an apply":    func() error { return fakeLink(t).apply(t.Context(), stubConfig()) },
		"NM's base":   func() error { _, err := newNetworkManager(machine{}, "").base(t.Context()); return err },
		"connman's":   func() error { _, err := newConnman().base(t.Context()); return err },
		"NM's global": func() error { return (&networkManager{}).reload(t.Context()) },
	} {
		if err := f(); err == nil {
			t.Errorf("%s: no error, with nobody on the bus", what)
		}
	}
	if b.started() {
		t.Error("the bus has started systemd-resolved")
	}
	// The test can see that: a call without our flag does start it.
	conn, err := dialBus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Object(resolvedName, resolvedPath).Go("org.freedesktop.DBus.Peer.Ping", dbus.FlagNoReplyExpected, nil)
	eventually(t, "the bus to start it", b.started)
}

func TestOwnersAreSeen(t *testing.T) {
	b := newBus(t)
	conn := b.join(nmName)
	if got, err := busOwner(t.Context(), nmName); got != ownerPresent || err != nil {
		t.Errorf("owned by %s, %v", got, err)
	}
	conn.Close()
	eventually(t, "the name to be free", func() bool {
		got, err := busOwner(t.Context(), nmName)
		return got == ownerNone && err == nil
	})
}

// A socket without a bus behind it: whoever connects is never answered.
func TestABusThatNeverAnswersCostsNoMoreThanItsTime(t *testing.T) {
	dir := memoryDir(t)
	ln, err := net.Listen("unix", dir+"/bus")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+dir+"/bus")
	start := time.Now()
	got, err := busOwner(t.Context(), resolvedName)
	if got != ownerUnknown || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("owned by %s, %v; want it unknown for lack of time", got, err)
	}
	if took := time.Since(start); took > busTimeout+time.Second {
		t.Errorf("it took %s, more than %s", took, busTimeout)
	}
}

func TestNoBusIsSaidPlainly(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+memoryDir(t)+"/none")
	if got, err := busOwner(t.Context(), resolvedName); got != ownerUnknown || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("owned by %s, %v; want an error that the file is missing", got, err)
	}
	if mode, rc := nmFacts(t.Context()); mode != "" || rc != "" {
		t.Errorf("NetworkManager is in mode %q, %q", mode, rc)
	}
}

func TestTheBusIsFollowed(t *testing.T) {
	b := newBus(t)
	ctx, cancel := context.WithCancel(t.Context())
	woken := make(chan struct{}, 100)
	ended := make(chan struct{})
	go func() { followBus(ctx, func() { woken <- struct{}{} }); close(ended) }()
	wakes := func(what string) {
		t.Helper()
		select {
		case <-woken:
		case <-time.After(10 * time.Second):
			t.Fatalf("it does not wake for %s", what)
		}
	}
	wakes("what happened before")
	select {
	case <-woken: // the bus tells each new connection of its own name, mostly after the library is ready to hear of it
	case <-time.After(200 * time.Millisecond):
	}
	b.join("org.example.Other").Close() // is nothing to us; it would be first
	conn := b.join(nmName)
	wakes("NetworkManager's start")
	o := newBusObject(t)
	o.export(conn, nmPath+"/IP4Config/1", nmName+".IP4Config", nil)
	for _, signal := range []struct {
		path dbus.ObjectPath
		name string
	}{{nmPath + "/Devices/1", "PropertiesChanged"}, {nmPath + "/IP4Config/1", "Other"}, {nmPath + "/IP4Config/1", "PropertiesChanged"}} {
		if err := conn.Emit(signal.path, "org.freedesktop.DBus.Properties."+signal.name, nmName, map[string]dbus.Variant{}, []string{}); err != nil {
			t.Fatal(err)
		}
	}
	wakes("new servers of a connection")
	conn.Close()
	wakes("NetworkManager's end")
	b.join(resolvedName)
	wakes("systemd-resolved's start")
	c := newFakeConnman(t, b)
	wakes("connman's start")
	if err := c.conn.Emit("/net/connman/service/x", connmanName+".Service.PropertyChanged", "Strength", dbus.MakeVariant(byte(50))); err != nil {
		t.Fatal(err) // of every network that is heard: nothing to us
	}
	c.roams("192.0.2.54")
	wakes("connman's new servers")
	if n := len(woken); n > 0 {
		t.Errorf("woken %d times more than something happened", n)
	}
	cancel()
	<-ended
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	(&watched{rig: &rig{t: t}}).until(what, cond)
}

// One look at the machine asks several things of the bus, over one connection.
func TestALookDialsTheBusOnce(t *testing.T) {
	b := newBus(t)
	r := newRig(t)
	r.opt.machine.bus = nil
	r.write("etc/resolv.conf", "search corp.example\n") // so that NetworkManager is asked for servers as well
	o := newBusObject(t)
	nm := b.join(nmName)
	o.export(nm, nmPath+"/DnsManager", nmName+".DnsManager", nil)
	o.export(nm, nmPath, nmName, nil)
	o.has(func() {
		o.props[string(nmPath)+"/DnsManager "+nmName+".DnsManager"] = map[string]any{"Mode": "none", "RcManager": "unmanaged"}
		o.props[string(nmPath)+" "+nmName] = map[string]any{"ActiveConnections": []dbus.ObjectPath{}}
	})
	m := r.applied()
	eye := b.join("org.example.Eye")
	newcomers := make(chan *dbus.Signal, 100)
	eye.Signal(newcomers)
	if err := eye.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(1, "")); err != nil {
		t.Fatal(err)
	}
	m.look(t.Context())
	// A method call of the same connection is answered after every signal that came before.
	if err := eye.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
		t.Fatal(err)
	}
	n := 0
	for len(newcomers) > 0 {
		if s := <-newcomers; strings.HasPrefix(s.Body[0].(string), ":") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d programs joined the bus during one look, want 1", n)
	}
}
