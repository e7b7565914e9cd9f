// Package node is one machine on the tailnet: its configuration, the map of the tailnet, the control socket, and the
// start, wiring and stop of the parts that do the work.
package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/resolver"
)

// maxReaders is how many sockets read one UDP address: more than a few cores' worth of queries no machine asks itself.
const maxReaders = 8

// drainTime is how long whoever asked for the end is waited for to hear of it.
const drainTime = 500 * time.Millisecond

// Options are what a node needs besides its configuration.
type Options struct {
	Paths    Paths
	Try      bool              // for a first look: a high port, and the machine's DNS untouched
	Root     bool              // may bind port 53 and change the machine's DNS
	Version  string            // as Status tells it
	Notify   string            // the service manager's socket, NOTIFY_SOCKET; empty: none
	Watchdog string            // how often it wants to hear of us, WATCHDOG_USEC; empty: never
	Reread   <-chan os.Signal  // a value has the map read again; nil: it is watched only
	Report   func(line string) // is told each step of start and stop; nil: nobody is
	Ready    func(Status)      // is called once, when all has started; nil: nothing is
	Logger   *slog.Logger      // nil: nothing is logged

	reached []netip.Addr  // tests: where nodes reach a gateway, other than at its public addresses
	relayed bool          // tests: no direct path is tried
	udp     uint16        // tests: the port at which its WireGuard is reached, and above it the relay's, other than its own
	probe   time.Duration // tests: until UDP is tried again; zero: as it is
	joined  func()        // tests: is called when somebody has a place, and has not been told of it
	// tests: how the world's DNS is asked
	outside func(ctx context.Context, q *dns.Msg, server netip.AddrPort) (*dns.Msg, error)
	clock   func() time.Time // tests: what trust is measured by, other than the machine's clock
}

// Node is one machine on the tailnet. Its methods may be called at the same time.
type Node struct {
	cfg Config
	opt Options
	log *slog.Logger

	started      time.Time
	resolver     *resolver.Resolver
	tailnet      tailnet
	routing      routing
	stub         netip.AddrPort   // invalid until it is bound
	stubFault    error            // why the machine's DNS cannot be pointed at the stub
	listen       []netip.AddrPort // further addresses
	containers   containers
	takeover     takeover
	carrier      carrier
	gateway      gateway
	member       member
	dropped      dropped
	echo         echo
	paths        paths
	rotation     rotation
	texts        *gatewayTexts
	registration *registration
	serving      serving
	heard        heardTexts
	connections  connections
	certs        certificates
	portal       *portal // nil: off
	system       *group  // what has to end before the machine's DNS is given back
	control      localAPI
	services     *group
	undo         undoStack
	shedScrapes  atomic.Uint64

	ending  chan struct{} // closed when somebody asked for the end over the socket
	endOnce sync.Once
	ended   chan struct{} // closed when everything is put back; endErr then holds
	endErr  error
}

// New returns a node that does nothing until Run. cfg must be valid.
func New(cfg Config, opt Options) (*Node, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.Report == nil {
		opt.Report = func(string) {}
	}
	if opt.Ready == nil {
		opt.Ready = func(Status) {}
	}
	if opt.Paths.State == "" || opt.Paths.Socket == "" {
		return nil, errors.New("a node needs a state directory and a control socket")
	}
	n := &Node{
		cfg:          cfg,
		opt:          opt,
		log:          opt.Logger,
		heard:        heardTexts{wake: make(chan struct{}, 1)},
		registration: newRegistration(),
		ending:       make(chan struct{}),
		ended:        make(chan struct{}),
	}
	n.texts = &gatewayTexts{
		gateways: n.textGateways, place: n.textPlace, life: func() context.Context { return n.services.ctx }, log: n.log, ears: ears{since: time.Now()},
	}
	return n, nil
}

// Run starts the node, runs it until ctx ends or Down is called over the control socket, and puts everything back. It
// returns nil if all of that went well, at most 2 s after the end was asked for. It can be called once.
func (n *Node) Run(ctx context.Context) error {
	n.started = time.Now()
	n.undo.log = n.log
	n.services, n.system = newGroup(), newGroup()
	err := n.start(ctx)
	if err == nil {
		n.report("ready")
		n.opt.Ready(n.status())
		n.notify("READY=1")
		err = n.wait(ctx)
		n.notify("STOPPING=1")
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // asked to end while it was starting
	}
	// The order matters to whoever waits on `down`: first all is put back, then endErr is set for the handler, then
	// the answer goes out.
	n.endErr = n.undo.run()
	close(n.ended)
	drain, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if n.control.server != nil {
		n.control.drain(drain) // whoever asked for the end is told of it now
	}
	if n.endErr == nil && err == nil {
		n.report("ended")
	}
	return errors.Join(err, n.endErr)
}

// start takes the steps to a running node in their order; the undo stack knows how to go back.
func (n *Node) start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		n.takePlace, n.openGateway, n.openMembership, n.loadTailnet, n.startTunnel, n.startResolver, n.startContainers, n.takeDNS, n.startProxy, n.openControl, n.startEcho, n.startGateway, n.startMember, n.startCerts, n.startServing, n.startWatching, n.startWatchdog,
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// wait returns when the node has to end, with an error if that is for a reason of its own.
func (n *Node) wait(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.ending:
			return nil
		case err := <-n.services.failed:
			return err
		case err := <-n.system.failed:
			return err
		case <-n.opt.Reread:
			n.reread()
		}
	}
}

// end has Run return, and waits until everything is put back.
func (n *Node) end(ctx context.Context) error {
	n.endOnce.Do(func() { close(n.ending) })
	select {
	case <-n.ended:
		return n.endErr
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end: %w", ctx.Err())
	}
}

func (n *Node) report(format string, args ...any) { n.opt.Report(fmt.Sprintf(format, args...)) }

func (n *Node) notify(state string) {
	if err := notify(n.opt.Notify, state); err != nil {
		n.log.Warn("the service manager was not told", "err", err)
	}
}

// takePlace makes sure that no other node runs here. It looks at the socket too, since that may be another one's
// though the state directory is not.
func (n *Node) takePlace(ctx context.Context) error {
	state := n.opt.Paths.State
	_, statErr := os.Stat(state)
	_, parentErr := os.Stat(filepath.Dir(state))
	unlock, err := n.awaitPlace(ctx)
	if err != nil {
		return err
	}
	n.undo.push("unlocking the state directory", func(context.Context) error {
		defer unlock()
		if n.opt.Try && errors.Is(statErr, fs.ErrNotExist) {
			// A first look leaves nothing behind of what it made.
			if errors.Is(parentErr, fs.ErrNotExist) {
				defer os.Remove(filepath.Dir(state)) // unless somebody else has something there by now
			}
			return os.RemoveAll(state)
		}
		return nil
	})
	return nil
}

// placeTime is how long a node that seems to run is waited for. One that was killed while it started a program leaves its
// lock and sockets to that for a moment, until it is that program (close-on-exec).
const placeTime = 500 * time.Millisecond

// awaitPlace takes the state directory's lock, once nobody has it or answers at the control socket.
func (n *Node) awaitPlace(ctx context.Context) (unlock func(), err error) {
	tick := time.NewTicker(placeTime / 20)
	defer tick.Stop()
	over := time.After(placeTime)
	for {
		if answers(n.opt.Paths.Socket) {
			err = runningError("it answers at " + n.opt.Paths.Socket)
		} else {
			unlock, err = lockState(n.opt.Paths.State)
		}
		if !errors.Is(err, errRunning) {
			return unlock, err
		}
		select {
		case <-tick.C:
		case <-over:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// openControl opens the control socket.
func (n *Node) openControl(context.Context) error {
	path := n.opt.Paths.Socket
	ln, err := listenControl(path)
	if err != nil {
		return err
	}
	n.control.endpoints, n.control.log, n.control.serving = n.endpoints(), n.log, n.serveUsers()
	n.control.open(ln)
	n.services.run("connections to nodes", n.connections.run)
	// It outlives the services: `down` waits on it until all the rest is put back. Run's drain ends it.
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := n.control.serve(); err != nil {
			n.log.Error("the control socket is gone", "err", err)
		}
	}()
	n.undo.push("closing the control socket", func(context.Context) error {
		n.control.refuse()
		<-served
		return nil
	})
	n.report("control socket %s", path)
	return n.openMetrics()
}

// openMetrics opens the metrics' own address, if there is one.
func (n *Node) openMetrics() error {
	if n.cfg.Metrics == "" {
		return nil
	}
	ln, err := net.Listen("tcp", n.cfg.Metrics)
	if err != nil {
		return hinted(nil, fmt.Errorf("listening for Prometheus: %w", err), "choose another address for metrics:")
	}
	n.services.run("metrics", func(ctx context.Context) error { return n.serveMetrics(ctx, ln) })
	n.report("metrics at http://%s/metrics", ln.Addr())
	return nil
}

// readers is how many sockets read one UDP address.
func readers() int { return min(runtime.GOMAXPROCS(0), maxReaders) }
