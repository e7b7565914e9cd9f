package resolver

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestGuestsAreToldNoNamesOfTheTailnet(t *testing.T) {
	u := newUpstream(t, answering(t))
	g := newRig(t, Config{Base: base(u), Table: bigTable(t)})
	g.SetGuestTable(mustTable(t, "foo-bar.ts.net"))
	conns, err := ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), 1)
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return g.ServeGuestUDP(ctx, conns[0]) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return g.ServeGuestTCP(ctx, ln) })
	for network, server := range map[string]string{"udp": conns[0].LocalAddr().String(), "tcp": ln.Addr().String()} {
		c := dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 4096}
		for name, rcode := range map[string]int{"big.foo-bar.ts.net.": dns.RcodeNameError, "1.0.64.100.in-addr.arpa.": dns.RcodeNameError, "www.example.": dns.RcodeSuccess} {
			before := u.asked.Load()
			m, _, err := c.Exchange(questionFor(name, dns.TypeA), server)
			if err != nil || m.Rcode != rcode || rcode == dns.RcodeSuccess && len(m.Answer) == 0 {
				t.Errorf("%s for %s: %v\n%v", network, name, err, m)
			}
			if rcode == dns.RcodeNameError && u.asked.Load() != before {
				t.Errorf("%s for %s: the upstream was asked", network, name)
			}
		}
	}
	// The machine's own programs are told as ever, by the workers that guests used too.
	for range 2 {
		if m := g.ask("big.foo-bar.ts.net", dns.TypeA); len(m.Answer) == 0 {
			t.Errorf("the machine itself: %v", m)
		}
	}
	if reply, err := g.Answer(t.Context(), query(t, "big.foo-bar.ts.net", dns.TypeA), TCP); err != nil || reply[3]&0xf != dns.RcodeSuccess {
		t.Errorf("a call of Answer: %v, %v", reply, err)
	}
	if got := g.Stats().TCP; got.Accepted != 3 || len(g.tcp.conns) != 0 {
		t.Errorf("connections of guests are counted as %+v", got)
	}
}
