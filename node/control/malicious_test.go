package control

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// dial opens a connection of a node to the gateway, past its client.
func (r *rig) dial(m member) net.Conn {
	r.t.Helper()
	config, err := m.key.TLS(r.key.Public().Is)
	if err != nil {
		r.t.Fatal(err)
	}
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(m.Addresses[0], 0))}
	conn, err := (&tls.Dialer{NetDialer: &dialer, Config: config}).DialContext(r.t.Context(), "tcp", r.addr.String())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// A node that sends a call's body a little at a time, or none of it, is let go, and holds nobody up.
func TestASlowBodyIsLetGo(t *testing.T) {
	r := newRig(t)
	nas, bad := r.join("nas"), r.join("bad")
	r.body = 300 * time.Millisecond
	r.serve()
	for _, path := range []string{pathReport, pathJoin, pathSign} {
		conn := r.dial(bad)
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", path); err != nil {
			t.Fatal(err)
		}
		if err := r.clientOf(nas).Report(t.Context(), Report{}); err != nil {
			t.Errorf("%s: another node: %v", path, err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 4") {
			t.Errorf("%s: it got %.60q, %v", path, answer, err)
		}
	}
}

// A body that has no end is read up to its bound.
func TestAHugeBodyIsCutOff(t *testing.T) {
	r := newRig(t)
	nas, bad := r.join("nas"), r.join("bad")
	r.serve()
	conn := r.dial(bad)
	var sent int
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", pathReport)
		for err == nil && sent < 64<<20 {
			_, err = fmt.Fprintf(conn, "1000\r\n%s\r\n", strings.Repeat(" ", 4096))
			sent += 4096
		}
	}()
	resp, err := io.ReadAll(conn)
	conn.Close()
	<-done
	// What the connection's buffers hold is sent before that is noticed.
	if !strings.HasPrefix(string(resp), "HTTP/1.1 4") || sent > 32<<20 {
		t.Errorf("%.60q (%v) after %d bytes", resp, err, sent)
	}
	if err := r.clientOf(nas).Report(t.Context(), Report{}); err != nil {
		t.Errorf("another node: %v", err)
	}
}

// A node that calls from many connections at once gets a few of them, and others are answered meanwhile.
func TestAFloodLeavesRoomForOthers(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas, bad := r.join("nas"), r.join("bad")
	stop := make(chan struct{})
	var flood sync.WaitGroup
	var mu sync.Mutex
	var answered, refused int
	for range 4 * maxConnsEach {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := r.clientOf(bad).Report(t.Context(), Report{})
				mu.Lock()
				if err == nil {
					answered++
				} else {
					refused++
				}
				mu.Unlock()
			}
		})
	}
	eventually(t, "the flood", func() bool { mu.Lock(); defer mu.Unlock(); return refused > 100 })
	start := time.Now()
	for range 10 {
		if err := r.clientOf(nas).Report(t.Context(), Report{}); err != nil {
			t.Errorf("another node, while that goes on: %v", err)
		}
	}
	close(stop)
	flood.Wait()
	if most := callsBurst + int(time.Since(start).Seconds()+30)*callsRefill; answered > most {
		t.Errorf("%d calls were answered, at most %d may be", answered, most)
	}
}

// A control key that calls through a join, or from its own place for another one, changes nothing of others.
func TestANodeTakesNobodysName(t *testing.T) {
	r := newRig(t)
	r.serve()
	nas, bad := r.join("nas"), r.join("bad")
	before, _ := r.registry.Map()
	_, err := r.clientOf(bad).Join(t.Context(), JoinRequest{Name: "nas", Key: newPair(t)})
	wantCode(t, err, codeInviteUnknown)
	i := r.invite(InviteOptions{Reusable: true})
	_, err = r.client(i.Address, newPrivateKey(t)).Join(t.Context(), JoinRequest{Name: "nas", Key: newPair(t)})
	wantCode(t, err, codeNameTaken)
	// It moves neither another node's keys, be the statement its own or a copy, nor where that one is.
	next := Keys{newPair(t), newPrivateKey(t).Public()}
	wantCode(t, r.clientOf(bad).Rotate(t.Context(), bad.key.Rotate(testZone, "nas", nas.Keys(), next)), codeNotYou)
	wantCode(t, r.clientOf(bad).Rotate(t.Context(), nas.key.Rotate(testZone, "nas", nas.Keys(), next)), codeNotYou)
	wantCode(t, r.clientOf(bad).Rotate(t.Context(), bad.key.Rotate(testZone, "bad", bad.Keys(), nas.Keys())), codeKeyKnown)
	if err := r.clientOf(bad).Report(t.Context(), Report{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.168.0.9:2000")}}); err != nil {
		t.Fatal(err)
	}
	if got := r.registry.Endpoints("nas"); len(got) != 0 {
		t.Errorf("nas is told to be at %v", got)
	}
	if after, _ := r.registry.Map(); !reflect.DeepEqual(before.Nodes, after.Nodes) {
		t.Errorf("%+v became %+v", before.Nodes, after.Nodes)
	}
}

// Whatever a node calls with, nothing of any other node changes.
func FuzzANodesCalls(f *testing.F) {
	f.Add(byte(0), []byte(`{"epoch":1,"version":2,"endpoints":["192.168.1.2:41642"]}`))
	f.Add(byte(1), []byte(`{"node":"nas"}`))
	f.Add(byte(2), []byte(`{"from":{"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},"to":{},"signature":"AAAA"}`))
	f.Add(byte(3), []byte(`{"nas":{"by":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","signature":"AAAA"}}`))
	f.Add(byte(4), []byte(`{"name":"nas","key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="}`))
	store, err := openFileStore(filepath.Join(f.TempDir(), "registry.db"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { store.Close() })
	registry, err := openRegistry(f.Context(), RegistryConfig{Zone: testZone, Ranges: testRanges(), Lock: []ControlKey{{1}}}, store)
	if err != nil {
		f.Fatal(err)
	}
	for i, name := range []string{"nas", "bad"} {
		n := Node{Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{127, 80, 0, byte(i + 2)})}, Key: WireGuardKey{byte(i + 1)}, Control: ControlKey{byte(i + 1)}}
		if err := registry.Put(f.Context(), n); err != nil {
			f.Fatal(err)
		}
	}
	server := NewServer(ServerConfig{Registry: registry})
	others := func() string {
		m, _ := registry.Map()
		var list []any
		for _, n := range m.Nodes {
			if n.Name != "bad" {
				list = append(list, n)
			}
		}
		list = append(list, registry.Endpoints("nas"), m.Policy, m.Zone, m.Ranges, len(registry.Peers()))
		text, err := json.Marshal(list)
		if err != nil {
			f.Fatal(err)
		}
		return string(text)
	}
	before := others()
	f.Fuzz(func(t *testing.T, which byte, body []byte) {
		calls := []func() error{
			func() error { _, err := server.report(t.Context(), "bad", strings.NewReader(string(body))); return err },
			func() error {
				_, err := server.connect(t.Context(), "bad", strings.NewReader(string(body)))
				return err
			},
			func() error { _, err := server.rotate(t.Context(), "bad", strings.NewReader(string(body))); return err },
			func() error { _, err := server.sign(t.Context(), "bad", strings.NewReader(string(body))); return err },
			func() error {
				var req JoinRequest
				if err := decode(strings.NewReader(string(body)), &req); err != nil {
					return err
				}
				_, err := registry.Join(t.Context(), netip.MustParseAddr("127.80.0.3"), ControlKey{2}, req)
				return err
			},
		}
		var refused *RefusedError
		if err := calls[int(which)%len(calls)](); err != nil && (!errors.As(err, &refused) || refused.Status >= http.StatusInternalServerError) {
			t.Errorf("call %d is not refused: %v", int(which)%len(calls), err)
		}
		if after := others(); after != before {
			t.Errorf("another node became\n%s\nand was\n%s", after, before)
		}
	})
}
