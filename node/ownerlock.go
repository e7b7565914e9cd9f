package node

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meshdns/meshdns/node/control"
)

// pathLock is where the records are that a lock signs, and where its signatures go.
const pathLock = "/v1/lock"

// ownersLockFile is the owner's key, beside the configuration where nothing else is said.
const ownersLockFile = "lock.key"

// The bounds of what a lock reads and brings.
const (
	maxLockFile    = 64 << 10
	maxLockRecords = 64 << 20
	lockChunk      = 200 // signatures in one call: they fit into maxControlBody
)

// lockText is the file of the owner's key, in plain text or encrypted with a passphrase.
type lockText struct {
	Schema string             `json:"schema"` // meshdns.lock.key/v1
	Public control.ControlKey `json:"public"`
	Key    string             `json:"key"` // base64 of an Ed25519 seed
}

// lockReply says which key a new lock has.
type lockReply struct {
	Schema    string             `json:"schema"` // meshdns.lock/v1
	File      string             `json:"file"`
	Key       control.ControlKey `json:"key"`
	Encrypted bool               `json:"encrypted"`
}

// lockRecord is a node's record as a lock signs it. `meshdns gateway nodes --json` has these fields, too.
type lockRecord struct {
	Name      string               `json:"name"`
	State     string               `json:"state"` // node
	Addresses []netip.Addr         `json:"addresses"`
	Names     []string             `json:"names"`
	Key       control.WireGuardKey `json:"key"`
	Control   control.ControlKey   `json:"control"`
	Signature *control.Signature   `json:"signature"` // null: nobody's
}

// lockRecords are the records of a tailnet.
type lockRecords struct {
	Schema string       `json:"schema"` // meshdns.lock.records/v1
	Zone   string       `json:"zone"`
	Nodes  []lockRecord `json:"nodes"`
}

// lockSignatures are what a lock has signed, by node.
type lockSignatures struct {
	Schema     string                       `json:"schema"` // meshdns.lock.signatures/v1
	Zone       string                       `json:"zone"`
	Signatures map[string]control.Signature `json:"signatures"`
}

// ownersLock is the owner's key, opened.
type ownersLock struct{ key control.PrivateKey }

// Format prints nothing of the key: fmt does not ask the fields of a struct that are not exported.
func (ownersLock) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(a lock's key)") }

// LockFile is the file of the owner's key where none is named.
func (p Paths) LockFile() string { return filepath.Join(filepath.Dir(p.Config), ownersLockFile) }

// InitLock makes the owner's key, encrypted with a passphrase (age, scrypt) unless that is empty. An existing file is not
// replaced. It needs no node, and is best done on a machine that is no gateway.
func (p Paths) InitLock(file, passphrase string) (lockReply, error) {
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		return lockReply{}, hinted(nil, fmt.Errorf("writing %s: it exists", file), "take another name; a tailnet may have several locks")
	}
	key, err := control.NewPrivateKey()
	if err != nil {
		return lockReply{}, err
	}
	data, err := json.Marshal(lockText{"meshdns.lock.key/v1", key.Public(), base64.StdEncoding.EncodeToString(key.Seed())})
	if err != nil {
		return lockReply{}, fmt.Errorf("writing %s: %w", file, err)
	}
	data = append(data, '\n')
	if passphrase != "" {
		if data, err = seal(data, passphrase, backupWork); err != nil {
			return lockReply{}, fmt.Errorf("writing %s: %w", file, err)
		}
	}
	return lockReply{"meshdns.lock/v1", file, key.Public(), passphrase != ""}, writeFile(file, data, 0o600)
}

// OpenLock reads the owner's key. passphrase is asked only where the file is encrypted.
func (p Paths) OpenLock(file string, passphrase func() (string, error)) (ownersLock, error) {
	data, err := readFile(file, maxLockFile)
	if errors.Is(err, fs.ErrNotExist) {
		return ownersLock{}, hinted(ErrNotFound, err, "say where the key is: --key FILE; or make one: meshdns lock init")
	}
	if err != nil {
		return ownersLock{}, err
	}
	if bytes.HasPrefix(data, []byte("age-encryption.org/")) {
		phrase, err := passphrase()
		if err != nil {
			return ownersLock{}, err
		}
		if data, err = unseal(data, phrase, maxLockFile); err != nil {
			return ownersLock{}, fmt.Errorf("reading %s: %w", file, err)
		}
	}
	defer clear(data)
	lock, err := parseLock(data)
	if err != nil {
		return ownersLock{}, fmt.Errorf("reading %s: %w", file, err)
	}
	return lock, nil
}

// parseLock reads the key. Its errors hold nothing of it.
func parseLock(data []byte) (ownersLock, error) {
	var text lockText
	if err := json.Unmarshal(data, &text); err != nil || text.Schema != "meshdns.lock.key/v1" {
		return ownersLock{}, errors.New("not the key of a lock")
	}
	seed, err := base64.StdEncoding.Strict().DecodeString(text.Key)
	if err != nil {
		return ownersLock{}, errors.New("the key is damaged")
	}
	key, err := control.PrivateKeyFrom(seed)
	if err != nil || key.Public() != text.Public {
		return ownersLock{}, errors.New("the key is damaged")
	}
	return ownersLock{key}, nil
}

// Key is what nodes know the lock by.
func (l ownersLock) Key() control.ControlKey { return l.key.Public() }

// Sign signs the nodes that this lock has not signed as they are, and for which ask says so. It is told what to show: a line each.
// only are names, empty for all nodes.
func (l ownersLock) Sign(r lockRecords, only []string, ask func(name string, lines []string) bool) (lockSignatures, error) {
	s := lockSignatures{"meshdns.lock.signatures/v1", r.Zone, map[string]control.Signature{}}
	for _, name := range only {
		if !slices.ContainsFunc(r.Nodes, func(one lockRecord) bool { return one.Name == name }) {
			return s, hinted(ErrNotFound, fmt.Errorf("%s has no node %s", r.Zone, name), "")
		}
	}
	for _, one := range r.Nodes {
		n := one.node()
		if len(only) > 0 && !slices.Contains(only, one.Name) || n.SignedBy(r.Zone, []control.ControlKey{l.Key()}) {
			continue
		}
		if ask(one.Name, one.lines()) {
			s.Signatures[one.Name] = l.key.SignNode(r.Zone, n)
		}
	}
	return s, nil
}

// lines are a record in words, as `meshdns key show` on the node has its keys.
func (r lockRecord) lines() []string {
	var addrs []string
	for _, a := range r.Addresses {
		addrs = append(addrs, a.String())
	}
	list := []string{"addresses " + strings.Join(addrs, ",")}
	if len(r.Names) > 0 {
		list = append(list, "names     "+strings.Join(r.Names, ","))
	}
	list = append(list, "wireguard "+r.Key.String(), "control   "+r.Control.String())
	if r.Signature != nil {
		list = append(list, "signed so far by another key, or as something else")
	}
	return list
}

func (r lockRecord) node() control.Node {
	return control.Node{Name: r.Name, Addresses: r.Addresses, Names: r.Names, Key: r.Key, Control: r.Control, Signature: r.Signature}
}

func lockRecordOf(n control.Node) lockRecord {
	return lockRecord{
		Name: n.Name, State: "node", Addresses: notNil(n.Addresses), Names: notNil(n.Names), Key: n.Key, Control: n.Control, Signature: n.Signature,
	}
}

// LockRecords are the records that a lock signs: from what `meshdns gateway nodes --json` printed, or with nil as the node that
// runs here has them.
func (c Client) LockRecords(ctx context.Context, from io.Reader) (lockRecords, error) {
	if from == nil {
		return get[lockRecords](ctx, c, pathLock, nil)
	}
	data, err := readBounded(from, maxLockRecords)
	if err != nil {
		return lockRecords{}, fmt.Errorf("reading the nodes: %w", err)
	}
	r, err := parseLockRecords(data)
	if err != nil || r.Zone == "" {
		return lockRecords{}, hinted(ErrBadRequest, errors.New("reading the nodes: not a list of them"), "on the gateway: meshdns gateway nodes --json")
	}
	return r, nil
}

// parseLockRecords leaves out invites, which have no keys yet.
func parseLockRecords(data []byte) (lockRecords, error) {
	var list struct {
		Zone  string            `json:"zone"`
		Nodes []json.RawMessage `json:"nodes"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return lockRecords{}, err
	}
	r := lockRecords{Schema: "meshdns.lock.records/v1", Zone: list.Zone}
	for _, one := range list.Nodes {
		var kind struct {
			State string `json:"state"`
		}
		if err := json.Unmarshal(one, &kind); err != nil {
			return lockRecords{}, err
		}
		if kind.State != "node" {
			continue
		}
		var record lockRecord
		if err := json.Unmarshal(one, &record); err != nil {
			return lockRecords{}, err
		}
		// What is to be signed is shown on a terminal, where a name could hide what it is.
		for _, name := range append([]string{record.Name}, record.Names...) {
			if label, msg := checkLabel(name); msg != "" || label != name {
				return lockRecords{}, fmt.Errorf("%q is no node's name", name)
			}
		}
		r.Nodes = append(r.Nodes, record)
	}
	return r, nil
}

// readLockSignatures reads what `meshdns lock sign FILE` printed.
func readLockSignatures(from io.Reader) (lockSignatures, error) {
	var s lockSignatures
	data, err := readBounded(from, maxLockRecords)
	if err != nil {
		return s, fmt.Errorf("reading the signatures: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil || s.Schema != "meshdns.lock.signatures/v1" {
		return s, hinted(ErrBadRequest, errors.New("reading the signatures: there are none"), "the owner makes them: meshdns lock sign FILE")
	}
	return s, nil
}

// serveLock tells the records of the tailnet, as the gateway tells them.
func (n *Node) serveLock(*http.Request, caller) (any, error) {
	var m *control.Map
	switch {
	case n.gateway.registry != nil:
		m, _ = n.gateway.registry.Map()
	case n.member.keeps != nil:
		n.member.mu.Lock()
		m = n.member.keeps.Map
		n.member.mu.Unlock()
	default:
		return nil, errNoTailnet()
	}
	reply := lockRecords{"meshdns.lock.records/v1", m.Zone, []lockRecord{}}
	for _, one := range m.Nodes {
		reply.Nodes = append(reply.Nodes, lockRecordOf(one))
	}
	return reply, nil
}

func errNoTailnet() error {
	return hinted(ErrBadRequest, errors.New("this node has no gateway, so nothing is there to be signed"), "run this on a node that has joined one, or give a file: meshdns lock sign FILE")
}

// serveSign takes signatures, and brings them to the gateway.
func (n *Node) serveSign(r *http.Request, _ caller) (any, error) {
	var in lockSignatures
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	m, _ := n.tailnet.current()
	if in.Zone != m.Zone() {
		return nil, hinted(ErrBadRequest, fmt.Errorf("the signatures are for %s, and this node is in %s", in.Zone, m.Zone()), "")
	}
	var err error
	switch {
	case n.gateway.registry != nil:
		for _, name := range slices.Sorted(maps.Keys(in.Signatures)) {
			err = errors.Join(err, n.gateway.registry.Sign(r.Context(), name, in.Signatures[name]))
		}
	case n.member.keeps != nil && n.carrier.tunnel != nil:
		err = n.member.caller().Sign(r.Context(), in.Signatures)
	default:
		err = errNoTailnet()
	}
	var refused *control.RefusedError
	if errors.As(err, &refused) {
		err = hinted(ErrBadRequest, err, refused.Hint())
	}
	return struct{}{}, err
}

// TakeSignatures has a gateway take what `meshdns lock sign FILE` printed. It returns how many signatures that are.
func (c Client) TakeSignatures(ctx context.Context, from io.Reader) (int, error) {
	s, err := readLockSignatures(from)
	if err != nil {
		return 0, err
	}
	return len(s.Signatures), c.BringSignatures(ctx, s)
}

// BringSignatures has a node bring a lock's signatures to the gateway.
func (c Client) BringSignatures(ctx context.Context, s lockSignatures) error {
	for names := range slices.Chunk(slices.Sorted(maps.Keys(s.Signatures)), lockChunk) {
		part := lockSignatures{s.Schema, s.Zone, map[string]control.Signature{}}
		for _, name := range names {
			part.Signatures[name] = s.Signatures[name]
		}
		if _, err := post[struct{}](ctx, c, pathLock, part); err != nil {
			return err
		}
	}
	return nil
}
