package resolver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Times of connecting. A query waits four seconds at most, and is to be asked in them too.
const (
	dialTimeout    = 2 * time.Second // for the TCP connection to one address
	connectTimeout = 3 * time.Second // for all: the lookup, all addresses, TLS
	addressLife    = 5 * time.Minute // how long resolved addresses are used
)

// sessionsKept is how many TLS sessions are kept for resumption, which saves a server the costly half of a handshake.
const sessionsKept = 8

// connector makes connections to one upstream. It dials addresses only: a name would be looked up by the operating
// system, which asks us.
type connector struct {
	upstream Upstream
	tls      *tls.Config // nil: none
	resolve  resolveFunc
	wrap     func(net.Conn) net.Conn // if set, applied to each TCP connection

	mu       sync.Mutex
	resolved []netip.Addr
	until    time.Time  // resolved is used until then
	good     netip.Addr // the address that was reached last
}

// clientTLS is the configuration for u. The certificate must be valid for the name or address that u names.
func clientTLS(u Upstream, roots *x509.CertPool, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         u.serverName(),
		RootCAs:            roots,
		NextProtos:         protocols,
		ClientSessionCache: tls.NewLRUClientSessionCache(sessionsKept),
	}
}

// connect returns a connection to the first of the upstream's addresses that can be reached, handshake done.
func (c *connector) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	addrs, err := c.addrs(ctx)
	if err != nil {
		return nil, err
	}
	var failed error
	for i, a := range addrs {
		conn, err := c.connectTo(ctx, netip.AddrPortFrom(a, c.upstream.addr.Port()), len(addrs)-i)
		if err == nil {
			c.reached(a)
			return conn, nil
		}
		if failed == nil {
			failed = err
		} else {
			failed = fmt.Errorf("%w; %w", failed, err)
		}
	}
	c.forget()
	return nil, fmt.Errorf("connecting: %w", failed)
}

// connectTo connects to one address within its share of the time that is left for so many.
func (c *connector) connectTo(ctx context.Context, addr netip.AddrPort, left int) (net.Conn, error) {
	deadline, _ := ctx.Deadline()
	ctx, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
	defer cancel()
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	if c.wrap != nil {
		conn = c.wrap(conn)
	}
	if c.tls == nil {
		return conn, nil
	}
	secured := tls.Client(conn, c.tls)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("shaking hands with %s: %w", addr, err)
	}
	return secured, nil
}

// addrs lists where the upstream is reached, the address that worked last in front.
func (c *connector) addrs(ctx context.Context) ([]netip.Addr, error) {
	addrs := c.upstream.addrs()
	if len(addrs) == 0 {
		var err error
		if addrs, err = c.lookup(ctx); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(addrs, c.good); i > 0 {
		addrs = append([]netip.Addr{c.good}, slices.Delete(slices.Clone(addrs), i, i+1)...)
	}
	return addrs, nil
}

// lookup resolves the upstream's host. When that fails, addresses that once were right are better than none.
func (c *connector) lookup(ctx context.Context) ([]netip.Addr, error) {
	c.mu.Lock()
	old, until := c.resolved, c.until
	c.mu.Unlock()
	if time.Now().Before(until) {
		return old, nil
	}
	found, err := c.ask(ctx)
	if err != nil {
		if len(old) > 0 {
			return old, nil
		}
		return nil, &bootstrapError{upstream: c.upstream, err: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resolved, c.until = found, time.Now().Add(addressLife)
	return found, nil
}

// ask calls resolve and drops what no server can have.
func (c *connector) ask(ctx context.Context) ([]netip.Addr, error) {
	if c.resolve == nil {
		return nil, errNoAddress
	}
	found, err := c.resolve(ctx, c.upstream.name)
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(slices.Clone(found), func(a netip.Addr) bool {
		return !a.IsValid() || a.IsUnspecified() || a.IsMulticast()
	})
	if len(found) == 0 {
		return nil, errNoAddress
	}
	return found[:min(len(found), maxBootstrap)], nil
}

func (c *connector) reached(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.good = a
}

// forget has the host resolved again next time: none of its addresses could be reached.
func (c *connector) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = time.Time{}
}

var errNoAddress = errors.New("no address found")

// bootstrapError says that an upstream given by name cannot be reached for want of an address.
type bootstrapError struct {
	upstream Upstream
	err      error
}

func (e *bootstrapError) Error() string {
	return fmt.Sprintf("resolving %s: %v", e.upstream.name, e.err)
}

func (e *bootstrapError) Unwrap() error { return e.err }

// Hint says how to do without a lookup.
func (e *bootstrapError) Hint() string {
	spelt, _, _ := strings.Cut(e.upstream.String(), "#")
	return "give the addresses of " + e.upstream.name + " behind #, as in " + spelt + "#192.0.2.1"
}
