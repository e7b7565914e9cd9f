package node

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// secrets are this machine's private keys. They print nothing of themselves.
type secrets struct {
	wireGuard tunnel.Secret
	control   control.PrivateKey
	joined    bool // a tailnet knows them: to join anew takes new ones, since its nodes may have seen these removed
}

// keys are their public halves.
func (s secrets) keys() control.Keys {
	return control.Keys{Key: control.WireGuardKey(s.wireGuard.Public()), Control: s.control.Public()}
}

// Format prints nothing of the keys: fmt does not ask the fields of a struct that are not exported.
func (secrets) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(private keys)") }

// secretsFile is where they lie below the state directory, with mode 0600.
const secretsFile = "node.key"

// secretsText is the file.
type secretsText struct {
	WireGuard string `json:"wireguard"` // base64, as wg genkey prints it
	Control   string `json:"control"`   // base64 of an Ed25519 seed
	Joined    bool   `json:"joined,omitempty"`
}

// loadSecrets reads the machine's keys, or makes them where there are none.
func loadSecrets(stateDir string) (secrets, error) {
	path := filepath.Join(stateDir, secretsFile)
	data, err := readFile(path, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		s, err := newSecrets()
		if err != nil {
			return secrets{}, err
		}
		return s, s.save(stateDir)
	}
	if err != nil {
		return secrets{}, err
	}
	defer clear(data)
	s, err := parseSecrets(data)
	if err != nil {
		return secrets{}, hinted(nil, fmt.Errorf("reading %s: %w", path, err),
			"put the file back from a backup; with new keys (remove it) this machine has to join anew")
	}
	return s, nil
}

// keysReply are a machine's public keys, as others know it.
type keysReply struct {
	Schema    string `json:"schema"` // meshdns.key/v1
	WireGuard string `json:"wireguard"`
	Control   string `json:"control"`
}

// Keys are the machine's public keys, which are made where there are none.
func (p Paths) Keys() (keysReply, error) {
	if _, err := os.Stat(filepath.Join(p.State, secretsFile)); errors.Is(err, fs.ErrNotExist) {
		unlock, err := lockState(p.State) // a node that starts now makes them as well
		if err != nil {
			return keysReply{}, err
		}
		defer unlock()
	}
	s, err := loadSecrets(p.State)
	if err != nil {
		return keysReply{}, err
	}
	keys := s.keys()
	return keysReply{Schema: "meshdns.key/v1", WireGuard: keys.Key.String(), Control: keys.Control.String()}, nil
}

func newSecrets() (secrets, error) {
	key, err := control.NewPrivateKey()
	return secrets{wireGuard: tunnel.NewSecret(), control: key}, err
}

// parseSecrets reads the file. Its errors hold nothing of it.
func parseSecrets(data []byte) (secrets, error) {
	var text secretsText
	if err := json.Unmarshal(data, &text); err != nil {
		return secrets{}, errors.New("not the keys that were written there")
	}
	s := secrets{joined: text.Joined}
	raw, err := base64.StdEncoding.Strict().DecodeString(text.WireGuard)
	if err != nil || len(raw) != len(s.wireGuard) {
		return secrets{}, errors.New("the WireGuard key is damaged")
	}
	copy(s.wireGuard[:], raw)
	seed, err := base64.StdEncoding.Strict().DecodeString(text.Control)
	if err == nil {
		s.control, err = control.PrivateKeyFrom(seed)
	}
	if err != nil || s.wireGuard.IsZero() {
		return secrets{}, errors.New("the keys are damaged")
	}
	return s, nil
}

// save writes the keys, in one step.
func (s secrets) save(stateDir string) error { return s.saveAs(filepath.Join(stateDir, secretsFile)) }

func (s secrets) saveAs(path string) error {
	data, err := json.Marshal(secretsText{
		WireGuard: base64.StdEncoding.EncodeToString(s.wireGuard[:]),
		Control:   base64.StdEncoding.EncodeToString(s.control.Seed()),
		Joined:    s.joined,
	})
	if err != nil {
		return fmt.Errorf("writing the machine's keys: %w", err)
	}
	defer clear(data)
	return writeFile(path, append(data, '\n'), 0o600)
}
