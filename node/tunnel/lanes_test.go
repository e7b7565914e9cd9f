package tunnel

import (
	"context"
	"net/netip"
	"testing"
)

func TestPacketsOfOneSenderKeepTheirOrder(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := &netstack{ctx: ctx, lanes: make([]chan []arrival, 3)}
	for i := range n.lanes {
		n.lanes[i] = make(chan []arrival, 100)
	}
	const offset, count = 16, 20
	senders := []string{"10.8.0.2", "10.8.0.3", "10.8.0.4", "10.8.0.5", "fd00::2", "fd00::7"}
	var bufs [][]byte
	for i := range count * len(senders) {
		from := senders[i%len(senders)]
		to := "10.8.0.1"
		if netip.MustParseAddr(from).Is6() {
			to = "fd00::1"
		}
		bufs = append(bufs, append(make([]byte, offset), ip(from, to, 17, append(udpHeader(1, 2), byte(i/len(senders))))...))
	}
	if written, err := n.Write(bufs, offset); err != nil || written != len(bufs) {
		t.Fatal(written, err)
	}
	last, lanes := map[netip.Addr]int{}, map[netip.Addr]int{}
	for i, lane := range n.lanes {
		close(lane)
		for list := range lane {
			for _, a := range list {
				packet := a.packet.ToView().AsSlice()
				p, ok := parsePacket(packet)
				number := int(packet[len(packet)-1])
				if before, had := lanes[p.source]; !ok || had && before != i || number != last[p.source] {
					t.Fatalf("number %d of %s is on lane %d, after %d on %d", number, p.source, i, last[p.source], before)
				}
				lanes[p.source], last[p.source] = i, number+1
			}
		}
	}
	for _, from := range senders {
		if got := last[netip.MustParseAddr(from)]; got != count {
			t.Errorf("%d packets of %s, want %d", got, from, count)
		}
	}
	cancel()
	if _, err := n.Write(bufs[:1], offset); err == nil {
		t.Error("a network that is closed takes packets")
	}
}
