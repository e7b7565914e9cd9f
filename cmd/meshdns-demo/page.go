package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/meshdns/meshdns/node"
)

// maxPage is how much of a page is read.
const maxPage = 64 << 10

// serve shows a directory of the nas to the tailnet.
func (d *demo) serve(ctx context.Context) (string, error) {
	site := filepath.Join(d.dir, "site")
	err := os.Mkdir(site, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(site, "index.html"), []byte("<!doctype html><title>nas</title><p>"+pageText+"</p>\n"), 0o600)
	}
	if err != nil {
		return "", err
	}
	at, err := d.show(ctx, site, false)
	return "the nas shows a page to the tailnet at " + at, err
}

// funnel shows the same to the world.
func (d *demo) funnel(ctx context.Context) (said string, err error) {
	d.url, err = d.show(ctx, "443", true)
	return "and to the world at " + d.url, err
}

// show has the nas show something for as long as it runs, and returns the address.
func (d *demo) show(ctx context.Context, target string, public bool) (at string, err error) {
	req := d.nas.ServeRequest()
	req.Target, req.Public, req.Background = target, public, true
	err = d.nas.Serve(ctx, req, func(kind, text string, data json.RawMessage) {
		var up struct {
			Entries []struct {
				URL string `json:"url"`
			} `json:"entries"`
		}
		if kind == "up" && json.Unmarshal(data, &up) == nil && len(up.Entries) > 0 {
			at = up.Entries[0].URL
		}
	})
	if err == nil && at == "" {
		err = errors.New("the nas does not say where")
	}
	return at, err
}

// readInside reads the page on the laptop, whose proxy is the way into the tailnet for programs where there is no root.
func (d *demo) readInside(ctx context.Context) (string, error) {
	proxy := &url.URL{Scheme: "socks5h", Host: local(d.ports.laptopProxy).String()}
	seen, err := d.read(ctx, "https://"+nasName+"/", &http.Transport{Proxy: http.ProxyURL(proxy)})
	return "from the laptop, through WireGuard: " + seen, err
}

// visit reads the page as somebody who knows nothing but the name, and believes the CA.
func (d *demo) visit(ctx context.Context) (string, error) {
	reply, err := node.Query(ctx, local(d.ports.dns), nasName, "A")
	if err != nil {
		return "", err
	}
	if len(reply.Answer) != 1 {
		return "", fmt.Errorf("the world's DNS has %d addresses at %s: %s", len(reply.Answer), nasName, reply.Rcode)
	}
	addr, err := netip.ParseAddr(reply.Answer[0].Data)
	if err != nil {
		return "", fmt.Errorf("reading the name server's answer: %w", err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, at string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(at)
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(addr.String(), port))
	}}
	seen, err := d.read(ctx, d.url, transport)
	return fmt.Sprintf("at the gateway, %s in public: %s", addr, seen), err
}

// read gets the page, and says what was seen.
func (d *demo) read(ctx context.Context, at string, transport *http.Transport) (string, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.ca.root)
	transport.TLSClientConfig, transport.DisableKeepAlives, transport.ForceAttemptHTTP2 = &tls.Config{RootCAs: roots}, true, true
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", at, err)
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), pageText) {
		return "", fmt.Errorf("%s answers %s, and not the page: %.200q", at, resp.Status, body)
	}
	return fmt.Sprintf("%s, %s, certificate of %q", resp.Status, resp.Proto, resp.TLS.PeerCertificates[0].Issuer.CommonName), nil
}

// believes checks a chain as a browser does that has this root.
func believes(root []byte, chain, name string) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	block, rest := pem.Decode([]byte(chain))
	if block == nil {
		return errors.New("there is no certificate in the answer")
	}
	between.AppendCertsFromPEM(rest)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("reading the certificate: %w", err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between}); err != nil {
		return fmt.Errorf("believing the certificate: %w", err)
	}
	return nil
}
