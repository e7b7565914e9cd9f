package node

import (
	"bufio"
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/meshdns/meshdns/node/tunnel"
)

// maxPreshared is the size in bytes up to which tunnel.preshared is read: a line for each of 10,000 nodes.
const maxPreshared = 1 << 20

// anyNode stands for all nodes that have no line of their own.
const anyNode = "*"

// preshared are the secrets that this machine has in common with others. WireGuard mixes one into each handshake, which who
// records it now cannot undo with a computer that breaks the keys one day. They print nothing of themselves.
type preshared struct {
	pairs  map[string]tunnel.Secret // by the other node's name
	common tunnel.Secret            // zero: none
}

// Format prints nothing of the secrets: fmt does not ask the fields of a struct that are not exported.
func (preshared) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(preshared keys)") }

// loadPreshared reads the file of secrets; no file: there are none. Others may not read it.
func loadPreshared(path string) (preshared, error) {
	if path == "" {
		return preshared{}, nil
	}
	f, err := openPrivate(path, func(info os.FileInfo) error {
		if mayNameCommands(info, os.Geteuid()) && onlyOurs(info) {
			return nil
		}
		return errors.New("others may read or write it, or it is another user's")
	})
	if err != nil {
		return preshared{}, err
	}
	defer f.Close()
	data, err := readBounded(f, maxPreshared)
	if err == nil {
		defer clear(data)
		var p preshared
		if p, err = parsePreshared(data); err == nil {
			return p, nil
		}
	}
	return preshared{}, hinted(nil, fmt.Errorf("reading %s: %w", path, err), "a line is a node's name and a key as wg genpsk prints it, or * and the key of all others")
}

// parsePreshared reads the lines. Its errors hold nothing of the keys.
func parsePreshared(data []byte) (preshared, error) {
	p := preshared{pairs: map[string]tunnel.Secret{}}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for number := 1; lines.Scan(); number++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		if len(words) != 2 {
			return preshared{}, fmt.Errorf("line %d: not a name and a key", number)
		}
		var key tunnel.Secret
		raw, err := base64.StdEncoding.Strict().DecodeString(words[1])
		if err != nil || len(raw) != len(key) {
			return preshared{}, fmt.Errorf("line %d: the key is not base64 of %d bytes", number, len(key))
		}
		copy(key[:], raw)
		clear(raw)
		name := words[0]
		_, twice := p.pairs[name]
		switch {
		case key.IsZero():
			return preshared{}, fmt.Errorf("line %d: a key of zeros is none", number)
		case twice || name == anyNode && !p.common.IsZero():
			return preshared{}, fmt.Errorf("line %d: a second key of %.70q", number, name)
		case name == anyNode:
			p.common = key
			continue
		}
		if label, msg := checkLabel(name); msg != "" || label != name {
			return preshared{}, fmt.Errorf("line %d: %.70q is not a node's name", number, name)
		}
		p.pairs[name] = key
	}
	if lines.Err() != nil {
		return preshared{}, errors.New("a line is too long")
	}
	return p, nil
}

// with is the secret of the pair of self and another node of a zone; zero: none. That of a pair without a line of its own is made of
// the common one, so that no two pairs have the same, and both sides know it. It goes by the names: keys change.
func (p preshared) with(zone, self, other string) (tunnel.Secret, error) {
	if key, ok := p.pairs[other]; ok || p.common.IsZero() {
		return key, nil
	}
	info := []byte("meshdns preshared key")
	for _, part := range []string{zone, min(self, other), max(self, other)} {
		info = append(binary.BigEndian.AppendUint32(info, uint32(len(part))), part...)
	}
	key, err := hkdf.Key(sha256.New, p.common[:], nil, string(info), len(tunnel.Secret{}))
	if err != nil {
		return tunnel.Secret{}, fmt.Errorf("making the preshared key with %s: %w", other, err)
	}
	return tunnel.Secret(key), nil
}

// share gives the peers of a map the secrets that this machine has in common with them. The gateway that it has joined is none of
// them: it has to be reached before anybody has a name.
func (p preshared) share(peers []tunnel.Peer, m *Map, self string, joined bool) error {
	if len(p.pairs) == 0 && p.common.IsZero() {
		return nil
	}
	names := map[string]Machine{}
	for _, node := range m.Nodes() {
		names[node.Key] = node
	}
	for i := range peers {
		node, ok := names[peers[i].Key.String()]
		if !ok || joined && node.Gateway {
			continue
		}
		key, err := p.with(m.Zone(), self, node.Name)
		if err != nil {
			return err
		}
		peers[i].Preshared = key
	}
	return nil
}
