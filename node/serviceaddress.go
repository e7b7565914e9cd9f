package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// serviceAddress is the address at which containers are answered: the configured one, or the highest one of the map's
// first IPv4 range that neither a node nor one of taken has.
func serviceAddress(configured netip.Addr, m *Map, taken []netip.Addr) (netip.Addr, error) {
	if configured.IsValid() {
		for _, node := range m.Nodes() {
			if slices.Contains(node.Addresses, configured) {
				return netip.Addr{}, hinted(nil, fmt.Errorf("dns.service is %s, and the node %s has that address", configured, node.Name), "choose another dns.service")
			}
		}
		return configured, nil
	}
	if a := m.freeAddress(taken); a.IsValid() {
		return a, nil
	}
	return netip.Addr{}, hinted(nil, errors.New("the map has no IPv4 range with a free address for containers to ask"), "set dns.service")
}

// keepsAddress reports whether a is still good with the map m.
func keepsAddress(a, configured netip.Addr, m *Map) bool {
	taken := slices.ContainsFunc(m.Nodes(), func(node Machine) bool { return slices.Contains(node.Addresses, a) })
	return !taken && (a == configured || !configured.IsValid() && rangeOf(m.Ranges(), a).IsValid())
}

// serviceNote is what is written down before lo is given an address, so that any process can take it back.
type serviceNote struct {
	Address netip.Addr `json:"address"`
}

func serviceNotePath(stateDir string) string { return filepath.Join(stateDir, "service-address.json") }

func noteService(stateDir string, a netip.Addr) error {
	data, err := json.Marshal(serviceNote{a})
	if err != nil {
		return fmt.Errorf("noting the service address: %w", err)
	}
	return writeFile(serviceNotePath(stateDir), append(data, '\n'), 0o600)
}

// takeServiceBack takes the address back that a note in stateDir speaks of, and then the note. It returns the zero Addr
// if there is none.
func takeServiceBack(stateDir string) (netip.Addr, error) {
	path := serviceNotePath(stateDir)
	data, err := readFile(path, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return netip.Addr{}, nil
	}
	if err != nil {
		return netip.Addr{}, err
	}
	var note serviceNote
	// One that cannot be read was torn by the file system before the address was there: it is on the disk before.
	if json.Unmarshal(data, &note) == nil && note.Address.Is4() {
		if err := dropAddress(note.Address); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return netip.Addr{}, fmt.Errorf("taking %s off lo: %w", note.Address, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return netip.Addr{}, fmt.Errorf("removing the note of the service address: %w", err)
	}
	return note.Address, nil
}
