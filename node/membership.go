package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"

	"github.com/meshdns/meshdns/node/control"
)

// membership is what a machine keeps of the tailnet that it has joined: enough to start with while no gateway is to be had.
type membership struct {
	Node     string           `json:"node"`
	Gateways []gatewayContact `json:"gateways"`
	Map      *control.Map     `json:"map"`               // the last good one
	Pins     control.Pins     `json:"pins"`              // keys of other nodes, as they were seen first (S3)
	Joining  bool             `json:"joining,omitempty"` // the gateway may not have heard of this machine's own key yet
	Gone     []goneNode       `json:"gone,omitempty"`
}

// gatewayContact is how a gateway is reached and known.
type gatewayContact struct {
	Name      string               `json:"name,omitempty"` // its node in the map, once there is one
	Key       control.WireGuardKey `json:"key"`
	Control   control.ControlKey   `json:"control"`   // pinned
	Server    netip.Addr           `json:"server"`    // its tailnet address
	Endpoints []netip.AddrPort     `json:"endpoints"` // of its WireGuard
	Carrier   netip.AddrPort       `json:"carrier"`   // where packets go over TLS when UDP is blocked; invalid: nowhere
	Relay     []netip.AddrPort     `json:"relay,omitempty"`
	RelayKey  control.WireGuardKey `json:"relay_key"`

	way [carriedPorts]netip.AddrPort // where UDP is blocked: what stands for its ports on this machine

	at int // which of the endpoints is used now
}

// membershipFile is where it lies below the state directory, with mode 0600: it says who speaks to whom.
const membershipFile = "tailnet.json"

// maxMembership is the size in bytes up to which it is read: a map of 50,000 nodes, and their pins.
const maxMembership = 64 << 20

// loadMembership is the membership that is kept, nil where the machine has joined nothing.
func loadMembership(stateDir string) (*membership, error) {
	path := filepath.Join(stateDir, membershipFile)
	data, err := readFile(path, maxMembership)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := parseMembership(data)
	if err != nil {
		return nil, damagedMembership(stateDir, err)
	}
	return m, nil
}

// parseMembership reads the file.
func parseMembership(data []byte) (*membership, error) {
	m := new(membership)
	if err := json.Unmarshal(data, m); err != nil || m.Map == nil || m.Node == "" || len(m.Gateways) == 0 {
		return nil, errors.New("not the membership that was written there")
	}
	if m.Pins == nil {
		m.Pins = control.Pins{}
	}
	return m, nil
}

// damagedMembership says that the file is not what was written there.
func damagedMembership(stateDir string, err error) error {
	return hinted(nil, fmt.Errorf("reading %s: %w", filepath.Join(stateDir, membershipFile), err), "remove the file and join anew, with a new invite")
}

// save writes the membership, in one step.
func (m *membership) save(stateDir string) error {
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("writing the membership: %w", err)
	}
	return writeFile(filepath.Join(stateDir, membershipFile), append(data, '\n'), 0o600)
}
