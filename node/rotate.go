package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// pathRotate is the call that changes this machine's keys.
const pathRotate = "/v1/key/rotate"

// nextSecretsFile holds the keys that are to follow those of secretsFile, from before anybody hears of them until the gateway
// has put them into the map. So whenever the machine dies, one of the two is the one that the gateway knows.
const nextSecretsFile = "node.key.next"

// The times of a change of keys.
const (
	rotateTime = 12 * time.Second       // in which the gateway has to have put the new keys into the map
	spreadTime = 500 * time.Millisecond // in which the others have that map
	shakeTime  = 3 * time.Second        // in which a gateway that knows a key has answered it
	shakeLook  = 50 * time.Millisecond
)

// rotation is a change of this machine's keys that is under way.
type rotation struct {
	mu      sync.Mutex
	pending bool
	busy    bool          // somebody waits for it
	other   secrets       // those of the two that are not in use now
	ahead   bool          // those in use are the new ones
	done    chan struct{} // closed when it has taken place
}

type rotateRequest struct {
	Control bool `json:"control"` // the control key, too
}

// own are the keys that are in use now.
func (c *carrier) own() secrets {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.secrets
}

func (c *carrier) setOwn(s secrets) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.secrets = s
}

// openRotation finishes a change of keys that had taken place when this machine died, or has it go on.
func (n *Node) openRotation() error {
	path := filepath.Join(n.opt.Paths.State, nextSecretsFile)
	data, err := readFile(path, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer clear(data)
	next, err := parseSecrets(data)
	if err != nil || n.member.keeps == nil {
		n.log.Warn("keys that were to be used next are dropped", "file", path, "err", err)
		return os.Remove(path)
	}
	r := &n.rotation
	r.pending, r.other, r.done = true, next, make(chan struct{})
	keeps := n.member.keeps
	if slices.ContainsFunc(keeps.Map.Nodes, func(c control.Node) bool { return c.Name == keeps.Node && c.Keys() == next.keys() }) {
		r.other, n.carrier.secrets, r.ahead = n.carrier.secrets, next, true
		return n.endRotationLocked()
	}
	return nil
}

// endRotationLocked keeps the keys that are in use, and forgets the others.
func (n *Node) endRotationLocked() error {
	r := &n.rotation
	if r.ahead {
		if err := n.carrier.own().save(n.opt.Paths.State); err != nil {
			return err
		}
	}
	r.pending, r.other = false, secrets{}
	close(r.done)
	err := os.Remove(filepath.Join(n.opt.Paths.State, nextSecretsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// swapKeys has the tunnel use the other keys of the two.
func (n *Node) swapKeysLocked() error {
	r := &n.rotation
	if err := n.carrier.tunnel.SetKey(r.other.wireGuard); err != nil {
		return fmt.Errorf("changing the tunnel's key: %w", err)
	}
	now := n.carrier.own()
	n.carrier.setOwn(r.other)
	r.other, r.ahead = now, !r.ahead
	n.useClient()
	return nil
}

// under reports whether somebody is just changing the keys, and waits for it.
func (r *rotation) under() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.busy
}

// undecided reports whether it is not known which of the two keys the gateway knows.
func (r *rotation) undecided() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pending && !r.busy
}

// findKeys looks for those that the gateway knows: it answers a handshake of no others.
func (n *Node) findKeys(ctx context.Context) {
	for range 2 {
		if !n.rotation.undecided() || n.shakes(ctx) {
			return
		}
		n.tryOtherKeys()
		n.renewGateway(0)
	}
}

// shakes waits for a handshake with the gateway.
func (n *Node) shakes(ctx context.Context) bool {
	g, _ := n.firstGateway()
	for end := time.Now().Add(shakeTime); ctx.Err() == nil && time.Now().Before(end); sleep(ctx, shakeLook) {
		if s, ok := n.gatewayStats(g); ok && !s.Handshake.IsZero() {
			return true
		}
	}
	return false
}

// tryOtherKeys has a machine that died while its keys changed find out which of the two the gateway knows.
func (n *Node) tryOtherKeys() {
	n.rotation.mu.Lock()
	defer n.rotation.mu.Unlock()
	if n.rotation.pending && !n.rotation.busy {
		if err := n.swapKeysLocked(); err != nil {
			n.log.Error("the other keys are not tried", "err", err)
		}
	}
}

// gatewayKnows takes note that the gateway has answered to the keys in use: by its map, or by a stream at all where nobody is
// just changing them.
func (n *Node) gatewayKnows(keys control.Keys, stream bool) {
	r := &n.rotation
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.pending || stream && r.busy || keys != n.carrier.own().keys() || !stream && !r.ahead {
		return
	}
	if err := n.endRotationLocked(); err != nil {
		n.log.Error("the machine's keys are in use and not kept", "err", err)
	}
}

// useClient has the gateway be called with the keys that are in use.
func (n *Node) useClient() {
	n.member.mu.Lock()
	defer n.member.mu.Unlock()
	n.member.client = n.clientOf(n.member.keeps.Gateways[0])
}

// clientOf calls a gateway with the keys that are in use.
func (n *Node) clientOf(g gatewayContact) *control.Client {
	return &control.Client{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialTunnel(ctx, n.carrier.tunnel, network, address)
		},
		Server:  netip.AddrPortFrom(g.Server, control.Port),
		Gateway: g.Control,
		Key:     n.carrier.own().control,
		Clock:   n.gatewayClock,
	}
}

// caller is what the gateway is called with.
func (m *member) caller() *control.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.client
}

// serveRotate changes this machine's keys.
func (n *Node) serveRotate(r *http.Request, _ caller) (any, error) {
	var in rotateRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if !n.member.joined() || n.carrier.tunnel == nil {
		return nil, hinted(ErrBadRequest, errors.New("only the keys of a machine that has joined a gateway change like this"),
			"with a static map: end the node, remove "+secretsFile+", write what meshdns key show prints into the map")
	}
	ctx, cancel := context.WithTimeout(r.Context(), rotateTime)
	defer cancel()
	if err := n.rotate(ctx, in.Control); err != nil {
		return nil, err
	}
	keys := n.carrier.own().keys()
	return keysReply{Schema: "meshdns.key/v1", WireGuard: keys.Key.String(), Control: keys.Control.String()}, nil
}

// rotate changes the WireGuard key, and the control key too if asked. The old control key vouches for both, which is what
// other nodes believe (S3).
func (n *Node) rotate(ctx context.Context, both bool) error {
	next, err := newSecrets()
	if err != nil {
		return err
	}
	next.joined = true
	if !both {
		next.control = n.carrier.own().control
	}
	done, err := n.beginRotation(ctx, next)
	if err != nil {
		return err
	}
	defer func() {
		n.rotation.mu.Lock()
		defer n.rotation.mu.Unlock()
		n.rotation.busy = false
	}()
	n.renewGateway(0)
	select {
	case <-done:
	case <-ctx.Done():
		return hinted(ErrTimeout, errors.New("the gateway has not confirmed the new keys; this machine goes on trying"), "see: meshdns status")
	}
	n.log.Info("this machine's keys have changed")
	sleep(ctx, spreadTime)
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	for _, p := range n.paths.peers {
		p.rekeyed(time.Now())
	}
	n.paths.wake()
	return nil
}

// beginRotation tells the gateway, and has the tunnel use the new key.
func (n *Node) beginRotation(ctx context.Context, next secrets) (done <-chan struct{}, err error) {
	r := &n.rotation
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending {
		return nil, hinted(nil, errors.New("the machine's keys are being changed already"), "try again in a minute")
	}
	n.member.mu.Lock()
	zone, name := n.member.keeps.Map.Zone, n.member.keeps.Node
	n.member.mu.Unlock()
	old := n.carrier.own()
	if err := next.saveAs(filepath.Join(n.opt.Paths.State, nextSecretsFile)); err != nil {
		return nil, err
	}
	err = n.member.caller().Rotate(ctx, old.control.Rotate(zone, name, old.keys(), next.keys()))
	if err != nil {
		// The gateway may have heard it. It takes the new keys once they are used, which they never are.
		return nil, errors.Join(fmt.Errorf("telling the gateway of the new keys: %w", err), os.Remove(filepath.Join(n.opt.Paths.State, nextSecretsFile)))
	}
	r.pending, r.ahead, r.other, r.done = true, false, next, make(chan struct{})
	err = n.swapKeysLocked()
	r.busy = err == nil
	return r.done, err
}

// RotateKey has the node change its WireGuard key, and its control key too if asked. No connection is lost.
func (c Client) RotateKey(ctx context.Context, both bool) (keysReply, error) {
	return post[keysReply](ctx, c, pathRotate, rotateRequest{Control: both})
}
