package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/meshdns/meshdns/node/control"
	"github.com/meshdns/meshdns/node/tunnel"
)

// lastPathsFile is where it is kept, below the state directory, at which addresses peers were reached directly: while the
// gateway is down nobody else tells that to a machine that boots. It has mode 0600: it says where others are.
const lastPathsFile = "paths.json"

// The bounds of that file.
const (
	maxLastPaths  = 4096
	maxPathsFile  = 1 << 20 // bytes
	lastPathLife  = 14 * 24 * time.Hour
	lastPathFresh = time.Hour   // a path that goes on is noted again after that
	savePaths     = time.Second // between two looks whether there is something to write
)

// lastPath is where a peer was reached directly.
type lastPath struct {
	Key  control.WireGuardKey `json:"key"`
	At   netip.AddrPort       `json:"at"`
	Seen time.Time            `json:"seen"`
}

// parseLastPaths reads what was kept, as much of it as is believed. The machine may be in another network by now: whether a
// place may be tried is decided when it is wanted.
func parseLastPaths(data []byte, now time.Time) (map[tunnel.Key]lastPath, error) {
	var file struct {
		Paths []lastPath `json:"paths"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	last := map[tunnel.Key]lastPath{}
	for _, l := range file.Paths {
		if l.fresh(now) && l.At.IsValid() && l.Key != (control.WireGuardKey{}) && len(last) < maxLastPaths {
			last[tunnel.Key(l.Key)] = l
		}
	}
	return last, nil
}

// fresh reports whether a path is young enough to be worth a try. A clock may have been off by an hour.
func (l lastPath) fresh(now time.Time) bool {
	age := now.Sub(l.Seen)
	return age < lastPathLife && age > -time.Hour
}

// formatLastPaths writes what is to be kept: the newest, up to the bound.
func formatLastPaths(last map[tunnel.Key]lastPath) ([]byte, error) {
	list := slices.SortedFunc(maps.Values(last), func(a, b lastPath) int {
		return cmp.Or(b.Seen.Compare(a.Seen), slices.Compare(a.Key[:], b.Key[:]))
	})
	return json.Marshal(map[string]any{"paths": list[:min(len(list), maxLastPaths)]})
}

// loadLastPaths reads where peers were reached. Whatever is wrong with the file costs only that.
func (n *Node) loadLastPaths() map[tunnel.Key]lastPath {
	path := filepath.Join(n.opt.Paths.State, lastPathsFile)
	data, err := readFile(path, maxPathsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return map[tunnel.Key]lastPath{}
	}
	var last map[tunnel.Key]lastPath
	if err == nil {
		last, err = parseLastPaths(data, time.Now())
	}
	if err != nil {
		n.log.Warn("where nodes were reached directly is not known any more", "err", fmt.Errorf("reading %s: %w", path, err))
		return map[tunnel.Key]lastPath{}
	}
	return last
}

// startLastPaths takes up what was kept, and keeps it from now on.
func (n *Node) startLastPaths() {
	last := n.loadLastPaths()
	n.paths.mu.Lock()
	n.paths.last = last
	n.paths.mu.Unlock()
	n.services.run("keeping of where nodes are", n.keepLastPaths)
}

// keepLastPaths writes where peers are reached, soon after that has changed: what is not on disk is lost with the power.
func (n *Node) keepLastPaths(ctx context.Context) error {
	for ctx.Err() == nil {
		sleep(ctx, savePaths)
		n.paths.mu.Lock()
		changed, last := n.paths.unsaved, maps.Clone(n.paths.last)
		n.paths.unsaved = false
		n.paths.mu.Unlock()
		if !changed {
			continue
		}
		data, err := formatLastPaths(last)
		if err == nil {
			err = writeFile(filepath.Join(n.opt.Paths.State, lastPathsFile), append(data, '\n'), 0o600)
		}
		if err != nil {
			n.log.Warn("where nodes are reached directly is not kept", "err", err)
			n.paths.mu.Lock()
			n.paths.unsaved = true // a disk that is full is not full for ever
			n.paths.mu.Unlock()
		}
	}
	return nil
}

// note takes note of where peers are reached directly now, and forgets those that are none any more.
func (s *paths) note(peers map[tunnel.Key]pathPeer, now time.Time) {
	for key, p := range s.peers {
		if p.state == direct {
			s.noteLocked(key, p.at, now)
		}
	}
	maps.DeleteFunc(s.last, func(key tunnel.Key, l lastPath) bool {
		_, ok := peers[key]
		gone := !l.fresh(now) || !ok && len(peers) > 0
		s.unsaved = s.unsaved || gone
		return gone
	})
}

// noteLocked takes note of where one is, if that is new or was noted long ago.
func (s *paths) noteLocked(key tunnel.Key, at netip.AddrPort, now time.Time) {
	l, had := s.last[key]
	if l.At == at && now.Sub(l.Seen) < lastPathFresh || !had && len(s.last) >= maxLastPaths {
		return
	}
	s.last[key], s.unsaved = lastPath{Key: control.WireGuardKey(key), At: at, Seen: now.UTC().Truncate(time.Second)}, true
}
