package resolver

import (
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestPublicDoesNotAnswerToPortZero changes the sender of a datagram that came, as only a forger can.
func TestPublicDoesNotAnswerToPortZero(t *testing.T) {
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	client, err := net.DialUDP("udp4", nil, pc.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	c, err := newUDPConn(pc)
	if err != nil {
		t.Fatal(err)
	}
	a := newPublic(t)
	w := &authorityWorker{a: a, srv: c, in: newReceiver(authorityBuffer), out: newSender()}
	for i, zero := range []bool{true, false} {
		send(t, client, query(t, "photos."+publicZone, dns.TypeA))
		if n, err := w.in.recv(c); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if zero {
			w.in.peers[0].name.Port = 0
		}
		w.handle(1)
		if s := a.Stats(); s.Ignored != 1 || s.Answered != uint64(i) || s.Dropped != 0 {
			t.Errorf("port zero %t: %+v", zero, s)
		}
	}
	_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := client.Read(make([]byte, 512)); err != nil {
		t.Error(n, err)
	}
}
