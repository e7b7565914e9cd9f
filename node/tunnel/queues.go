package tunnel

import (
	"reflect"
	"unsafe"

	"golang.zx2c4.com/wireguard/device"
)

// peerQueue is how many batches of packets wait for a peer's turn, in each direction: several times what is under way between two
// processors. wireguard-go has room for 1024, which is 16 KiB a peer; a gateway has each node for a peer twice.
const peerQueue = 64

// changePeers takes away the peers of a device that go, and has it know those that come, with small queues. It returns what is to be
// set of those that stay or come. wireguard-go does not let the length be chosen, so it is changed from outside before a peer is
// started, when nothing else has its queues. Where its types are not those that were built for, all stays as it is.
func changePeers(d *device.Device, own Key, changes []peerChange) []peerChange {
	left := make([]peerChange, 0, len(changes))
	for _, c := range changes {
		if c.remove {
			d.RemovePeer(device.NoisePublicKey(c.key))
			continue
		}
		left = append(left, c)
		if !c.add || c.key == own {
			continue
		}
		if p, err := d.NewPeer(device.NoisePublicKey(c.key)); err == nil { // else it is known
			shrinkQueues(reflect.ValueOf(p).Elem().FieldByName("queue"))
		}
	}
	return left
}

// shrinkQueues replaces the channels of a peer that was not started.
func shrinkQueues(queue reflect.Value) {
	if queue.Kind() != reflect.Struct {
		return
	}
	for _, name := range []string{"outbound", "inbound"} {
		q := queue.FieldByName(name)
		if q.Kind() != reflect.Pointer || q.Elem().Kind() != reflect.Struct {
			continue
		}
		if c := q.Elem().FieldByName("c"); c.Kind() == reflect.Chan && c.Type().ChanDir() == reflect.BothDir && c.Cap() > peerQueue {
			reflect.NewAt(c.Type(), unsafe.Pointer(c.UnsafeAddr())).Elem().Set(reflect.MakeChan(c.Type(), peerQueue))
		}
	}
}
