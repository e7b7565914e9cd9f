package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/netip"
	"path/filepath"
	"slices"

	cryptorand "crypto/rand"
)

// drawnRanges are the ranges that a machine without a map drew for itself.
type drawnRanges struct {
	V4 netip.Prefix `json:"v4"`
	V6 netip.Prefix `json:"v6"`
}

// loadRanges returns the ranges kept in the state directory. The first time it draws them, clear of every network
// that the machine knows, and keeps them.
func loadRanges(stateDir string) (drawnRanges, error) {
	return keptRanges(filepath.Join(stateDir, "ranges.json"), func() (drawnRanges, error) {
		taken, err := knownNetworks()
		if err != nil {
			return drawnRanges{}, err
		}
		return drawRanges(cryptorand.Reader, taken)
	})
}

// keptRanges returns the ranges in a file, which is made by draw if it does not exist.
func keptRanges(path string, draw func() (drawnRanges, error)) (drawnRanges, error) {
	data, err := readFile(path, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return newRanges(path, draw)
	}
	if err != nil {
		return drawnRanges{}, err
	}
	var r drawnRanges
	if err := json.Unmarshal(data, &r); err != nil || !r.valid() {
		return drawnRanges{}, hinted(nil, fmt.Errorf("reading %s: not the ranges that were written there", path),
			"remove the file to draw new ranges; this machine's addresses change then")
	}
	return r, nil
}

func newRanges(path string, draw func() (drawnRanges, error)) (drawnRanges, error) {
	r, err := draw()
	if err != nil {
		return drawnRanges{}, fmt.Errorf("drawing address ranges: %w", err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return drawnRanges{}, fmt.Errorf("writing %s: %w", path, err)
	}
	return r, writeFile(path, append(data, '\n'), 0o600)
}

func (r drawnRanges) valid() bool {
	if !r.V4.IsValid() || !r.V6.IsValid() || !r.V4.Addr().Is4() || !ula().Overlaps(r.V6) {
		return false
	}
	v4, _ := checkRange(r.V4, nil)
	v6, _ := checkRange(r.V6, nil)
	return v4 == "" && v6 == "" && r.V4.Bits() <= 30 && r.V6.Bits() <= 64
}

// drawBits is the size of the IPv4 range: 4,094 machines, and 4,096 such ranges to draw from in 10.0.0.0/8.
const drawBits = 20

// drawRanges takes a random /20 that overlaps none of the taken networks, and a random unique local /48. Where a route
// takes the whole of 10.0.0.0/8, as company networks do, the other private blocks are tried.
func drawRanges(random io.Reader, taken []netip.Prefix) (drawnRanges, error) {
	for _, pool := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} {
		free := freeRanges(netip.MustParsePrefix(pool), taken)
		if len(free) == 0 {
			continue
		}
		i, err := cryptorand.Int(random, big.NewInt(int64(len(free))))
		if err != nil {
			return drawnRanges{}, err
		}
		v6, err := drawULA(random, taken)
		return drawnRanges{V4: free[i.Int64()], V6: v6}, err
	}
	return drawnRanges{}, hinted(nil, errors.New("every private IPv4 range is in use on this machine"),
		"write a map with ranges: that suit you")
}

// freeRanges are the /20s of pool that overlap nothing that is taken.
func freeRanges(pool netip.Prefix, taken []netip.Prefix) []netip.Prefix {
	var free []netip.Prefix
	for a := pool.Addr(); pool.Contains(a); a = lastAddr(netip.PrefixFrom(a, drawBits)).Next() {
		if p := netip.PrefixFrom(a, drawBits); !slices.ContainsFunc(taken, p.Overlaps) {
			free = append(free, p)
		}
	}
	return free
}

// drawULA makes a prefix as RFC 4193, 3.2.2 does, but of random bits instead of a hash of time and address.
func drawULA(random io.Reader, taken []netip.Prefix) (netip.Prefix, error) {
	for range 100 { // the first will do, unless the source of randomness is broken
		b := [16]byte{0: 0xfd}
		if _, err := io.ReadFull(random, b[1:6]); err != nil {
			return netip.Prefix{}, err
		}
		if p := netip.PrefixFrom(netip.AddrFrom16(b), 48); !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("every drawn IPv6 range is in use on this machine")
}
