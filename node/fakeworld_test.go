package node

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// fakeWorld is the world's DNS.
type fakeWorld struct {
	mu      chan struct{} // holds a token
	records map[string]string
	asked   int
	broken  bool
}

func newFakeWorld() *fakeWorld {
	w := &fakeWorld{mu: make(chan struct{}, 1), records: map[string]string{}}
	w.mu <- struct{}{}
	return w
}

// set has a name and type have data; "" takes it away.
func (w *fakeWorld) set(name, data string) {
	w.with(func() {
		if w.records[name] = data; data == "" {
			delete(w.records, name)
		}
	})
}

func (w *fakeWorld) with(f func()) {
	<-w.mu
	f()
	w.mu <- struct{}{}
}

func (w *fakeWorld) exchange(_ context.Context, q *dns.Msg, _ netip.AddrPort) (m *dns.Msg, err error) {
	w.with(func() {
		w.asked++
		if w.broken {
			err = errors.New("no answer")
			return
		}
		m = new(dns.Msg).SetReply(q)
		name, kind := foldName(q.Question[0].Name), dns.TypeToString[q.Question[0].Qtype]
		for line := range strings.SplitSeq(w.records[name+" "+kind], "\n") {
			if line == "" {
				continue
			}
			var rr dns.RR
			if rr, err = dns.NewRR(name + ". 60 " + kind + " " + line); err == nil {
				m.Answer = append(m.Answer, rr)
			}
		}
	})
	return m, err
}
