package tunnel

import (
	"net/netip"
	"reflect"
	"testing"

	"golang.zx2c4.com/wireguard/device"
)

// queueLengths are those of a peer's queues in each direction.
func queueLengths(t *testing.T, d *device.Device, key Key) (out, in int) {
	t.Helper()
	p := d.LookupPeer(device.NoisePublicKey(key))
	if p == nil {
		t.Fatal("the peer is not known")
	}
	queue := reflect.ValueOf(p).Elem().FieldByName("queue")
	return queue.FieldByName("outbound").Elem().FieldByName("c").Cap(), queue.FieldByName("inbound").Elem().FieldByName("c").Cap()
}

func TestPeersHaveSmallQueues(t *testing.T) {
	n := startNode(t, 1, nil)
	engine := n.Tunnel.carrier.engine.(*wgdevice)
	key := NewSecret().Public()
	if err := n.SetPeers([]Peer{{Key: key, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/32")}}}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // made, and made again
		if out, in := queueLengths(t, engine.dev, key); out != peerQueue || in != peerQueue {
			t.Fatalf("a peer has room for %d and %d batches, want %d", out, in, peerQueue)
		}
		if err := n.Forget(key); err != nil {
			t.Fatal(err)
		}
	}
	own := engine.own
	if err := engine.apply(change{peers: []peerChange{{key: own, add: true}}}); err != nil || engine.dev.LookupPeer(device.NoisePublicKey(own)) != nil {
		t.Errorf("a device has itself for a peer: %v", err)
	}
}

func TestTheRelaysPeersHaveSmallQueues(t *testing.T) {
	r, _ := startRelay(t, RelayConfig{})
	key := NewSecret().Public()
	until(t, "the relay to be served", func() bool {
		r.syncing.Lock()
		defer r.syncing.Unlock()
		return r.endpoint != nil
	})
	if err := r.SetPeers([]Key{key}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if out, in := queueLengths(t, r.endpoint, key); out != peerQueue || in != peerQueue {
			t.Fatalf("a peer has room for %d and %d batches, want %d", out, in, peerQueue)
		}
		if err := r.Forget(key); err != nil {
			t.Fatal(err)
		}
	}
}
