// Package tunnel is a node's WireGuard: the kernel's, one on a TUN device or one inside this process, behind one Dial and
// Listen on tailnet addresses. It does not decide who is a peer, nor which way to take to one; it is told.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mode is the kind of WireGuard that carries the tailnet.
type Mode string

// The modes. Off means that another program (wg-quick, Headscale, Tailscale) carries it: the addresses are on its link.
const (
	Auto      Mode = "auto"
	Kernel    Mode = "kernel"
	TUN       Mode = "tun"
	Userspace Mode = "userspace"
	Off       Mode = "off"
)

// Config says what a Tunnel is made of. Addresses and Ranges are required, and Key in every mode but Off.
type Config struct {
	Mode      Mode           // Auto if empty
	Key       Secret         // this node's private key
	Addresses []netip.Addr   // this node's
	Ranges    []netip.Prefix // the tailnet's: what is routed into the tunnel, and refused from other links
	Port      uint16         // UDP; any if zero
	Link      string         // its name; "meshdns0" if empty, or, in mode Off, the link that has the addresses
	MTU       int            // from the link of the default route if zero; 1280 to 1420
	StateDir  string         // where changes to the machine are noted; required for Kernel and TUN

	// Exempt are addresses of this machine in Ranges that other links may be asked at: the service address (S9 guards it).
	Exempt []netip.Addr
	// Bridges are links whose forwarded packets into the tailnet pass: those of containers. None if empty.
	Bridges []string
	// Loopback says to which ports of 127.0.0.1 connections go that nothing in this process listens for, where the node has
	// no address of the machine's: mode Userspace. nil: to none. It is asked anew for each.
	Loopback func(port uint16) bool

	// Incoming sees each datagram on WireGuard's UDP socket before WireGuard does, and takes it by returning true. Outgoing
	// sees each that WireGuard sends. Neither may keep the slice or block. Not in modes Kernel and Off, whose sockets are
	// not this process's.
	Incoming func(from netip.AddrPort, datagram []byte) bool
	Outgoing func(to netip.AddrPort, datagram []byte) bool

	Logger *slog.Logger // nil discards
}

// engine is one WireGuard.
type engine interface {
	apply(c change) error
	stats() ([]PeerStats, error)
	port() (uint16, error)
	close() error
}

// network is what sockets on tailnet addresses are made from.
type network interface {
	dial(ctx context.Context, network string, local netip.Addr, to netip.AddrPort) (net.Conn, error)
	listen(ctx context.Context, network string, on netip.AddrPort) (net.Listener, error)
	listenPacket(ctx context.Context, network string, on netip.AddrPort) (net.PacketConn, error)
}

// carrier is an opened mode.
type carrier struct {
	mode    Mode
	engine  engine // nil in mode Off
	network network
	socket  *socket               // nil where the UDP socket is not this process's
	policy  func(p *policy) error // nil where it cannot be enforced
	// redirect leads what is for an own address and port to another port of it; 0: not any more. nil where nobody else could have it.
	redirect func(on netip.AddrPort, to uint16) error

	link  string // "" where there is none
	index int
	notes []string     // what the user should know about it
	undo  func() error // what is left after engine.close; may be nil
}

// Tunnel carries the tailnet of one node. Its methods may be called at the same time; between Start and Close.
type Tunnel struct {
	config Config
	kick   chan struct{} // the watcher has something to wait for
	ended  sync.WaitGroup
	cancel context.CancelFunc

	mu      sync.Mutex
	carrier *carrier
	why     []string
	peers   []Peer // as they were set
	applied []Peer // as the engine has them
}

const (
	defaultLink  = "meshdns0"
	minMTU       = 1280 // IPv6's least (RFC 8200, section 5)
	maxMTU       = 1420 // 1500 less IPv6, UDP and WireGuard
	maxAddresses = 16
	maxRanges    = 64
	maxBridges   = 64
	maxExempt    = 16
)

// New checks the configuration; Start does the rest.
func New(c Config) (*Tunnel, error) {
	if c.Mode == "" {
		c.Mode = Auto
	}
	if c.Link == "" && c.Mode != Off {
		c.Link = defaultLink
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Tunnel{config: c, kick: make(chan struct{}, 1)}, nil
}

func (c Config) check() error {
	if !slices.Contains([]Mode{Auto, Kernel, TUN, Userspace, Off}, c.Mode) {
		return fmt.Errorf("tunnel mode %q is not auto, kernel, tun, userspace or off", c.Mode)
	}
	if c.Key.IsZero() && c.Mode != Off {
		return errors.New("no private key")
	}
	if !linkName(c.Link) {
		return fmt.Errorf("link name %q: not 1 to 15 letters, digits, dots and dashes", c.Link)
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return fmt.Errorf("MTU %d is not between %d and %d", c.MTU, minMTU, maxMTU)
	}
	for _, b := range c.Bridges {
		if !linkName(b) || b == "" || len(c.Bridges) > maxBridges {
			return fmt.Errorf("bridges %q: at most %d, each the name of a link", c.Bridges, maxBridges)
		}
	}
	return c.checkAddresses()
}

// linkName tells whether a name is one that Linux takes, and nothing else to a shell, a path or nft.
func linkName(name string) bool {
	return len(name) <= 15 && name != "." && name != ".." && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._@", r)
	})
}

func (c Config) checkAddresses() error {
	if n := len(c.Addresses); n == 0 || n > maxAddresses {
		return fmt.Errorf("%d addresses, not 1 to %d", n, maxAddresses)
	}
	if n := len(c.Ranges); n == 0 || n > maxRanges {
		return fmt.Errorf("%d ranges, not 1 to %d", n, maxRanges)
	}
	if len(c.Exempt) > maxExempt {
		return fmt.Errorf("%d exempt addresses, at most %d", len(c.Exempt), maxExempt)
	}
	for _, r := range c.Ranges {
		if !r.IsValid() || r != r.Masked() || r.Addr().Is4In6() || r.Bits() == 0 {
			return fmt.Errorf("range %s is not one", r)
		}
	}
	for _, a := range c.Addresses {
		if a.Zone() != "" || !slices.ContainsFunc(c.Ranges, func(r netip.Prefix) bool { return r.Contains(a) }) {
			return fmt.Errorf("address %s is in none of the ranges", a)
		}
	}
	return nil
}

// Start brings the tunnel up, in the first mode that works if it is Auto, and returns when it carries packets.
func (t *Tunnel) Start(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.carrier != nil {
		return errors.New("tunnel is started already")
	}
	carrier, why, err := choose(ctx, t.config)
	t.why = why
	if err != nil {
		return err
	}
	t.carrier = carrier
	t.peers, t.applied = nil, nil
	t.config.Logger.Info("tunnel is up", "mode", carrier.mode, "link", carrier.link)
	var background context.Context
	background, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	t.ended.Go(func() { t.watch(background) })
	return nil
}

// opener brings one mode up. An error that is errors.ErrUnsupported means that this machine does not have it.
type opener struct {
	mode Mode
	open func(context.Context, Config) (*carrier, error)
}

// choose opens the configured mode, or the first that the machine has, and says why the others were passed over.
func choose(ctx context.Context, c Config) (*carrier, []string, error) {
	return chooseFrom(ctx, c, []opener{{Kernel, openKernel}, {TUN, openTUN}, {Userspace, openUserspace}, {Off, openOff}})
}

func chooseFrom(ctx context.Context, c Config, openers []opener) (*carrier, []string, error) {
	var why []string
	for _, o := range openers {
		if c.Mode != o.mode && (c.Mode != Auto || o.mode == Off) {
			continue
		}
		opened, err := o.open(ctx, c)
		if err == nil {
			opened.mode = o.mode
			if c.Mode == Auto {
				why = append(why, fmt.Sprintf("%s: chosen", o.mode))
			} else {
				why = append(why, fmt.Sprintf("%s: configured", o.mode))
			}
			return opened, append(why, opened.notes...), nil
		}
		why = append(why, fmt.Sprintf("%s: %v", o.mode, err))
		if c.Mode != Auto || !errors.Is(err, errors.ErrUnsupported) {
			return nil, why, fmt.Errorf("bringing up the tunnel (%s): %w", o.mode, err)
		}
	}
	return nil, why, errors.New("bringing up the tunnel: no mode works here")
}

// Close takes the tunnel down, removes what Start made, and returns when all that it started has ended.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	c := t.carrier
	t.carrier = nil
	t.mu.Unlock()
	if c == nil {
		return nil
	}
	t.cancel()
	t.ended.Wait()
	return c.close()
}

func (c *carrier) close() error {
	var err, err2 error
	if c.engine != nil {
		err = c.engine.close()
	}
	if c.undo != nil {
		err2 = c.undo()
	}
	return errors.Join(err, err2)
}

// Mode is the mode that carries the tailnet, and Why the trace that led to it, a line each.
func (t *Tunnel) Mode() Mode {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.carrier == nil {
		return ""
	}
	return t.carrier.mode
}

// Why is the trace that led to the mode, or to none: "kernel: no wireguard module (operation not supported)".
func (t *Tunnel) Why() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.why)
}

// Link is the network link that has the addresses; ok is false where there is none.
func (t *Tunnel) Link() (name string, index int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.carrier == nil || t.carrier.link == "" {
		return "", 0, false
	}
	return t.carrier.link, t.carrier.index, true
}

// current is what carries the tailnet.
func (t *Tunnel) current() (*carrier, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.currentLocked()
}

func (t *Tunnel) currentLocked() (*carrier, error) {
	if t.carrier == nil {
		return nil, fmt.Errorf("tunnel: %w", net.ErrClosed)
	}
	return t.carrier, nil
}

// managedLocked is current, where peers are ours to set.
func (t *Tunnel) managedLocked() (*carrier, error) {
	c, err := t.currentLocked()
	if err == nil && c.engine == nil {
		err = fmt.Errorf("tunnel is off, its peers belong to another program: %w", errors.ErrUnsupported)
	}
	return c, err
}

const settleEvery = 500 * time.Millisecond

// watch moves addresses to a peer's new key once that has completed a handshake.
func (t *Tunnel) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.kick:
		}
		for open := true; open; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(settleEvery):
			}
			var err error
			if open, err = t.settleNow(); err != nil {
				t.config.Logger.Warn("cannot move addresses to a new key", "error", err)
			}
		}
	}
}
