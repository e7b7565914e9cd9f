package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/meshdns/meshdns/resolver"
)

const (
	// highPort is the stub's port where 53 is not to be had.
	highPort = 5335
	// portTries is how many ports of the kernel's choice are tried for one that is free for UDP and TCP alike.
	portTries = 8
	// selfCheckTimeout bounds the first question to ourselves, over loopback.
	selfCheckTimeout = time.Second
)

// sockets are what one address is answered on.
type sockets struct {
	addr netip.AddrPort // with the port that was chosen, if that was left open
	udp  []*net.UDPConn
	tcp  net.Listener
}

func (s *sockets) close() {
	for _, conn := range s.udp {
		conn.Close()
	}
	s.tcp.Close()
}

// heldError says that an address is in use.
type heldError struct {
	addr   netip.AddrPort
	holder string // the program that holds it, "" if that could not be found out
	err    error
}

func (e *heldError) Error() string {
	if e.holder == "" {
		return fmt.Sprintf("listening on %s: another program holds it", e.addr)
	}
	return fmt.Sprintf("listening on %s: %s holds it", e.addr, e.holder)
}

func (e *heldError) Unwrap() error { return e.err }

// Hint says what the user can do.
func (e *heldError) Hint() string {
	return "end that program, or have it listen on other addresses than " + e.addr.Addr().String()
}

// listenDNS binds addr for UDP, with n sockets, and for TCP. An address in use is a *heldError.
func listenDNS(ctx context.Context, addr netip.AddrPort, n int) (*sockets, error) {
	for try := 1; ; try++ {
		s, err := listenOnce(ctx, addr, n)
		if err == nil {
			return s, nil
		}
		if !isAddrInUse(err) {
			return nil, err
		}
		if addr.Port() != 0 {
			return nil, &heldError{addr: addr, holder: portHolder(addr), err: err}
		}
		if try == portTries {
			return nil, err
		}
	}
}

func listenOnce(ctx context.Context, addr netip.AddrPort, n int) (*sockets, error) {
	conns, err := resolver.ListenUDP(ctx, addr, n)
	if err != nil {
		return nil, err
	}
	s := &sockets{udp: conns, addr: conns[0].LocalAddr().(*net.UDPAddr).AddrPort()}
	s.addr = netip.AddrPortFrom(s.addr.Addr().Unmap(), s.addr.Port())
	var lc net.ListenConfig
	if s.tcp, err = lc.Listen(ctx, "tcp", s.addr.String()); err != nil {
		for _, conn := range conns {
			conn.Close()
		}
		return nil, fmt.Errorf("listening on %s/tcp: %w", s.addr, err)
	}
	return s, nil
}

// listenStub binds the address that programs ask, or where another program or a right we lack keeps us from it a high
// port of it. problem says why it is not the address that was wanted, nil if it is.
func listenStub(ctx context.Context, want netip.AddrPort, n int) (s *sockets, problem, err error) {
	s, problem = listenDNS(ctx, want, n)
	if problem == nil {
		return s, nil, nil
	}
	for _, port := range []uint16{highPort, 0} {
		if port == want.Port() {
			continue
		}
		s, err = listenDNS(ctx, netip.AddrPortFrom(want.Addr(), port), n)
		if err == nil {
			return s, problem, nil
		}
	}
	return nil, nil, errors.Join(problem, err)
}

// probeTimeout bounds the wait for one nameserver.
const probeTimeout = time.Second

// probe asks a nameserver for the root's nameservers. Whatever it answers, it answers.
func probe(ctx context.Context, server netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, _, err := (&dns.Client{Timeout: probeTimeout}).ExchangeContext(ctx, new(dns.Msg).SetQuestion(".", dns.TypeNS), server.String())
	return err
}

// selfCheck asks addr for the zone's SOA over UDP and TCP: only a stub that answers, and is ours, is worth pointing a
// machine at.
func selfCheck(ctx context.Context, addr netip.AddrPort, zone string) error {
	ctx, cancel := context.WithTimeout(ctx, selfCheckTimeout)
	defer cancel()
	for _, network := range []string{"udp", "tcp"} {
		q := new(dns.Msg).SetQuestion(dns.Fqdn(zone), dns.TypeSOA)
		client := &dns.Client{Net: network, Timeout: selfCheckTimeout}
		reply, _, err := client.ExchangeContext(ctx, q, addr.String())
		if err != nil {
			return fmt.Errorf("asking our own stub %s/%s: %w", addr, network, err)
		}
		if reply.Rcode != dns.RcodeSuccess || !reply.Authoritative || len(reply.Answer) == 0 {
			return fmt.Errorf("asking our own stub %s/%s for %s: it answered %s, and not as the zone's server",
				addr, network, zone, dns.RcodeToString[reply.Rcode])
		}
	}
	return nil
}
