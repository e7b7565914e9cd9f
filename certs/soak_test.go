package certs

import (
	"crypto/tls"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Certificates of three minutes are renewed for ten, from a real CA, while clients shake hands all the time.
func TestSoakRenewalUnderHandshakes(t *testing.T) {
	if os.Getenv("MESHDNS_SOAK") == "" {
		t.Skip("takes ten minutes: make soak, or MESHDNS_SOAK=1")
	}
	p := newPebble(t, newNameServer(t), 3*time.Minute)
	m := p.manager(t, nil)
	defer running(t, m)()
	if _, _, err := m.Get(t.Context(), Request{Names: nasNames()}); err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: m.GetCertificate})
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	defer wait.Wait()
	defer ln.Close()
	wait.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wait.Go(func() {
				defer conn.Close()
				_ = conn.(*tls.Conn).HandshakeContext(t.Context()) // the client tells
			})
		}
	})
	var done, failed atomic.Uint64
	end := time.Now().Add(10 * time.Minute)
	serials := map[string]bool{}
	var mu sync.Mutex
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			name := []string{"nas.foo-bar.example.org", "x.nas.foo-bar.example.org", "photos.foo-bar.example.org", "NAS.foo-bar.example.org"}[i]
			pace := time.NewTicker(20 * time.Millisecond)
			defer pace.Stop()
			for time.Now().Before(end) {
				<-pace.C
				d := tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{ServerName: name, RootCAs: p.root(t)}}
				conn, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
				if err != nil {
					failed.Add(1)
					t.Error(err)
					return
				}
				mu.Lock()
				serials[conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
				mu.Unlock()
				conn.Close()
				done.Add(1)
			}
		})
	}
	clients.Wait()
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d handshakes, %d failed, %d certificates", done.Load(), failed.Load(), len(serials))
	if len(serials) < 5 {
		t.Errorf("%d certificates in ten minutes", len(serials))
	}
}
