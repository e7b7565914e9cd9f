package main

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// authority is a CA that speaks ACME as Let's Encrypt does, for as long as the demo lasts.
type authority struct {
	directory string // its address
	host      string // in that
	httpsRoot []byte // PEM, that its HTTPS is believed by
	root      []byte // PEM, that its certificates are believed by
	server    *http.Server
	done      chan struct{}
}

// caaName is the CA's name in CAA records.
const caaName = "pebble.example"

// certificateLife is that of the CA's certificates.
const certificateLife = 90 * 24 * time.Hour

// startAuthority runs one that looks at the DNS through a server.
func startAuthority(dns netip.AddrPort) (*authority, error) {
	// Pebble waits and fails at random otherwise, so that clients learn to bear that.
	for name, value := range map[string]string{"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0", "PEBBLE_WFE_NONCEREJECT": "0"} {
		if err := os.Setenv(name, value); err != nil {
			return nil, fmt.Errorf("telling the CA to be quick: %w", err)
		}
	}
	own, err := loopbackCertificate()
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the CA: %w", err)
	}
	quiet, store := log.New(io.Discard, "", 0), db.NewMemoryStore()
	signer := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: uint64(certificateLife / time.Second)}})
	front := wfe.New(quiet, store, va.New(quiet, 0, 0, false, dns.String(), store), signer, []string{caaName}, false, false, 1, 1)
	a := &authority{
		directory: "https://" + ln.Addr().String() + wfe.DirectoryPath,
		host:      ln.Addr().String(),
		httpsRoot: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}),
		root:      signer.GetRootCert(0).PEM(),
		server: &http.Server{
			Handler: front.Handler(), ErrorLog: quiet, ReadHeaderTimeout: 10 * time.Second, TLSConfig: &tls.Config{Certificates: []tls.Certificate{own}},
		},
		done: make(chan struct{}),
	}
	go func() {
		defer close(a.done)
		_ = a.server.ServeTLS(ln, "", "") // which says that it was ended
	}()
	return a, nil
}

// end ends it.
func (a *authority) end(ctx context.Context) error {
	err := a.server.Shutdown(ctx)
	if err != nil {
		err = a.server.Close()
	}
	<-a.done
	return err
}
