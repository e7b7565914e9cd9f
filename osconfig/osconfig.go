// Package osconfig points the operating system's DNS at a resolver, watches that it stays so, and puts back what was
// there before: on exit, from another process, and at the next start after a process that died. It answers no queries.
package osconfig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
)

// ErrNoBase says that the machine names no nameserver but ours.
var ErrNoBase = errors.New("the machine names no nameserver")

// ErrRefused is wrapped by the errors that say why the machine's DNS is left alone. Nothing is changed then.
var ErrRefused = errors.New("refused")

// Server is a DNS server.
type Server struct {
	AddrPort netip.AddrPort
	Name     string // for DNS over TLS; empty: plain DNS
}

// Config is what the machine is to be told. The zero Config gives the machine's DNS back.
type Config struct {
	Servers []Server
	Search  []string // for short names; they go before what the machine searches already
	Match   []string // suffixes to ask Servers for, where the system tells suffixes apart; empty: everything

	// Service, if valid, is where Servers answer as well, on port 53, for those that copy resolv.conf and cannot use a
	// loopback address: containers. It stands in the file in their place.
	Service netip.Addr
}

func (c Config) isZero() bool { return len(c.Servers)+len(c.Search)+len(c.Match) == 0 }

// addrs are all addresses that are ours.
func (c Config) addrs() []netip.Addr {
	list := make([]netip.Addr, 0, len(c.Servers)+1)
	if c.Service.IsValid() {
		list = append(list, c.Service)
	}
	for _, s := range c.Servers {
		list = append(list, s.AddrPort.Addr())
	}
	return list
}

// written are those of them that a resolv.conf names. A loopback address beside the service address would have k3s take
// the file for one that is no use to its containers.
func (c Config) written() []netip.Addr {
	addrs := c.addrs()
	if c.Service.IsValid() {
		return addrs[:1]
	}
	return addrs[:min(len(addrs), maxServersWritten)]
}

// Base is the DNS that the machine has by itself.
type Base struct {
	Servers []Server
	Search  []string
	Routes  map[string][]Server // by domain: what other servers than those are asked for
	tunnels []Tunnel            // which gave some of that
}

// Options are what a Manager needs. StateDir is required.
type Options struct {
	StateDir string // where the journal is kept; it has to outlive a power cut, which /run and /tmp do not

	Mode   string       // "" and auto: as the facts say; off: change nothing; direct: /etc/resolv.conf, if that is safe
	OnBase func(Base)   // is told of changed base servers, from Watch's goroutine; nil: nobody is
	Logger *slog.Logger // nil: nothing is logged

	// Verify asks server, as a program would that reads the machine's settings, for something that only we know. If it
	// fails the change is undone. nil: that the settings read back right has to do.
	Verify func(ctx context.Context, server netip.AddrPort) error

	// Probe asks server for anything at all. It is called of what the machine names once its DNS is given back; what fails
	// is told, and no failure: the network may be down. nil: nothing is asked.
	Probe func(ctx context.Context, server netip.AddrPort) error

	machine machine // tests: another root, bus or host name
}

// Plan says what Apply would do.
type Plan struct {
	Mode     string   // who owns the machine's DNS
	Possible bool     // whether Apply would change it
	Reason   string   // why not
	Hint     string   // what the user can do about that
	Trace    []string // the facts that led to that, in the order in which they counted
	Diff     string   // the change, of /etc/resolv.conf or of what its manager is told, in unified form; empty: none
}

// Status says how the machine's DNS is.
type Status struct {
	Mode     string
	Active   bool     // it names our servers, as far as is known
	Split    bool     // they are asked for what Config.Match names alone; else for everything
	Problems []string // what somebody should know of it, a line each
	Trace    []string // the facts that led to the mode
	Tunnels  []Tunnel // other VPNs that have a say in it
	Given    Report   // what came of giving it back, the last time
}

// Report says what giving the machine's DNS back came to.
type Report struct {
	Changed bool     // something was put back
	Detail  string   // what was done, or why nothing
	Steps   []string // what was done and what was seen then, a line each
	Left    []string // what is still to be done by somebody, and with which command
}

func (r Report) String() string { return r.Detail }

// add adds what came of a further step.
func (r *Report) add(steps, left []string) {
	r.Steps, r.Left = append(r.Steps, steps...), append(r.Left, left...)
}

// refusal is why the machine's DNS is left alone.
type refusal struct {
	why  string
	hint string
}

func (r *refusal) Error() string { return r.why }

// Hint says what the user can do.
func (r *refusal) Hint() string { return r.hint }

// Unwrap makes every refusal an ErrRefused.
func (r *refusal) Unwrap() error { return ErrRefused }

func refuse(hint, format string, args ...any) *refusal {
	return &refusal{why: fmt.Sprintf(format, args...), hint: hint}
}
