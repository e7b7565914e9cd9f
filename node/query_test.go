package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// testServer is a name server on loopback, over UDP and TCP, that answers with handle.
func testServer(t *testing.T, handle dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	s, err := listenDNS(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: s.udp[0], Handler: handle}, {Listener: s.tcp, Handler: handle}} {
		started, ended := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			_ = server.ActivateAndServe() // what it cannot serve, the test sees
		}()
		<-started
		t.Cleanup(func() {
			_ = server.Shutdown()
			<-ended
		})
	}
	return s.addr
}

func TestQueryTakesTheWholeAnswer(t *testing.T) {
	long := strings.Repeat("x", 200)
	at := testServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if w.RemoteAddr().Network() == "udp" {
			m.Truncated = true
		} else {
			m.Answer = append(m.Answer, &dns.TXT{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 7},
				Txt: []string{long},
			})
		}
		_ = w.WriteMsg(m)
	})
	got, err := Query(t.Context(), at, "big.example", "txt")
	if err != nil {
		t.Fatal(err)
	}
	want := answerRecord{Name: "big.example.", Type: "TXT", TTL: 7, Data: `"` + long + `"`}
	if len(got.Answer) != 1 || got.Answer[0] != want {
		t.Errorf("got %+v, want the answer that came over TCP", got)
	}
}

func TestQueryTellsTheServersReason(t *testing.T) {
	at := testServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		m.SetEdns0(querySize, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNoReachableAuthority, ExtraText: "all dead"}}
		_ = w.WriteMsg(m)
	})
	got, err := Query(t.Context(), at, "example.com", "")
	if err != nil || got.Rcode != "SERVFAIL" || got.Extended != "No Reachable Authority: all dead" {
		t.Errorf("got %+v, %v; want SERVFAIL with its reason", got, err)
	}
}

func TestQueryDoesNotWaitForEver(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Query(ctx, silent.LocalAddr().(*net.UDPAddr).AddrPort(), "example.com", "")
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v, want ErrTimeout", err)
	}
}

func TestShortNamesGoThroughTheSearchList(t *testing.T) {
	search := []string{"foo-bar.ts.net", "lan."}
	tests := []struct {
		name string
		want []string
	}{
		{"nas", []string{"nas.foo-bar.ts.net.", "nas.lan.", "nas."}},
		{"nas.", []string{"nas."}},
		{"nas.foo", []string{"nas.foo."}},
		{"NAS.foo.", []string{"nas.foo."}},
		{"bücher", []string{"xn--bcher-kva.foo-bar.ts.net.", "xn--bcher-kva.lan.", "xn--bcher-kva."}},
		{"_sip._tcp.example.com", []string{"_sip._tcp.example.com."}},
		{"192.0.2.1", []string{"1.2.0.192.in-addr.arpa."}},
		{"::ffff:192.0.2.1", []string{"1.2.0.192.in-addr.arpa."}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q, err := parseQuestion(tt.name, "")
			if got := q.candidates(search); err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func FuzzQuestion(f *testing.F) {
	for _, s := range []string{"nas", "nas.example.", "192.0.2.1", "fe80::1%eth0", "bücher", "a..b", "*.x", `a\.b`, `\300`, "_sip._tcp", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		q, err := parseQuestion(name, "")
		if err != nil {
			if !errors.Is(err, ErrBadRequest) {
				t.Errorf("%q: %v is not ErrBadRequest", name, err)
			}
			return
		}
		for _, candidate := range q.candidates(nil) {
			if _, err := new(dns.Msg).SetQuestion(candidate, q.kind).Pack(); err != nil {
				t.Errorf("%q: the question for %q does not pack: %v", name, candidate, err)
			}
		}
	})
}
