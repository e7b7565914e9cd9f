package funnel

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

// transport is what both kinds have in common.
func (p *proxy) transport() *http.Transport {
	return &http.Transport{
		DialContext:            p.dial,
		TLSClientConfig:        p.tls(),
		TLSHandshakeTimeout:    reachTarget,
		DisableCompression:     true, // what is coded for the visitor stays so
		MaxIdleConns:           idleAll,
		MaxIdleConnsPerHost:    idleEach,
		IdleConnTimeout:        idleTarget,
		ExpectContinueTimeout:  p.server.times.proceed,
		MaxResponseHeaderBytes: maxAnswerHead,
		WriteBufferSize:        transportSize,
		ReadBufferSize:         transportSize,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingTime, PingTimeout: pingAnswerTime},
	}
}

// tls is how the target is known.
func (p *proxy) tls() *tls.Config {
	if !p.target.tls {
		return nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: p.mount.TLSName, InsecureSkipVerify: p.target.insecure}
	switch {
	case cfg.ServerName != "":
	case p.target.network == "unix":
		cfg.ServerName = "localhost"
	default:
		cfg.ServerName = hostOf(p.target.address)
	}
	if pin, err := parsePin(p.mount.TLSPin); err == nil {
		cfg.InsecureSkipVerify = true // the key is known, which says more than a chain
		cfg.VerifyConnection = func(state tls.ConnectionState) error { return checkPin(pin, state.PeerCertificates) }
	}
	return cfg
}

// errPin says that somebody else answers in the target's place.
var errPin = errors.New("its certificate has another key than tlsPin")

func checkPin(pin [sha256.Size]byte, chain []*x509.Certificate) error {
	if len(chain) == 0 || sha256.Sum256(chain[0].RawSubjectPublicKeyInfo) != pin {
		return errPin
	}
	return nil
}

// dial opens a connection to the target, and says for whom where the entry has it.
func (p *proxy) dial(ctx context.Context, _, pool string) (net.Conn, error) {
	conn, err := p.server.dial(ctx, p.entry, p.target)
	if err != nil || p.entry.ProxyProtocol == 0 {
		return conn, err
	}
	raw, err := hex.DecodeString(hostOf(pool))
	if err != nil {
		conn.Close()
		return nil, err
	}
	from, err := netip.ParseAddrPort(string(raw))
	if err == nil {
		err = announce(conn, from, p.entry)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// announce tells a target whose connection follows.
func announce(conn net.Conn, from netip.AddrPort, e Entry) error {
	to := addrOf(conn.LocalAddr())
	if !to.IsValid() || to.Addr().Is4() != from.Addr().Unmap().Is4() {
		to = netip.AddrPortFrom(netip.IPv4Unspecified(), e.Port)
		if from.Addr().Unmap().Is6() {
			to = netip.AddrPortFrom(netip.IPv6Unspecified(), e.Port)
		}
	}
	h := proxyproto.HeaderProxyFromAddrs(byte(e.ProxyProtocol), tcpAddr(from), tcpAddr(netip.AddrPortFrom(to.Addr(), e.Port)))
	if err := conn.SetWriteDeadline(time.Now().Add(reachTarget)); err != nil {
		return err
	}
	if _, err := h.WriteTo(conn); err != nil {
		return fmt.Errorf("writing the PROXY header: %w", err)
	}
	return conn.SetWriteDeadline(time.Time{})
}

// dial opens a connection to a target. A name for this machine is not looked up: it is this machine, over IPv4 or over
// IPv6, since many programs listen at one of the two.
func (s *Server) dial(ctx context.Context, e Entry, t target) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTarget)
	defer cancel()
	network := t.network
	if e.Kind == kindUDP {
		network = "udp"
	}
	d := &net.Dialer{}
	if network == "unix" {
		var conn net.Conn
		err := s.as(e, func() (err error) {
			conn, err = d.DialContext(ctx, network, t.address)
			return err
		})
		return conn, err
	}
	host, port, err := net.SplitHostPort(t.address)
	if err != nil {
		return nil, err
	}
	if !isLoopback(host) {
		if s.cfg.Dial != nil {
			return s.cfg.Dial(ctx, network, t.address)
		}
		return d.DialContext(ctx, network, t.address)
	}
	if isAddr(host) {
		return d.DialContext(ctx, network, t.address)
	}
	conn, err := d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		var err6 error
		if conn, err6 = d.DialContext(ctx, network, net.JoinHostPort("::1", port)); err6 != nil {
			return nil, err
		}
	}
	return conn, nil
}

// as does something with the rights of the user who made an entry.
func (s *Server) as(e Entry, do func() error) error {
	if s.cfg.As == nil {
		return do()
	}
	return s.cfg.As(e, do)
}
