package osconfig

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// journal says what a change replaced, so that any process can undo it. It is on the disk before the change is made.
type journal struct {
	Version int          `json:"version"`
	Mode    string       `json:"mode"`
	BootID  string       `json:"boot_id"` // of the boot that the change was made in
	Changed time.Time    `json:"changed"`
	Path    string       `json:"path"`             // of the file, or of the program that has our record
	Before  fileState    `json:"before"`           // what to put back
	InPlace bool         `json:"in_place"`         // the file was overwritten, not replaced
	Wrote   []written    `json:"wrote"`            // what may be there of ours, newest first
	Servers []netip.Addr `json:"servers"`          // the nameservers that are ours
	Search  []string     `json:"search,omitempty"` // the search domains that are
	Layers  []layer      `json:"layers,omitempty"` // what is beneath Before, the uppermost first
	Over    *over        `json:"over,omitempty"`   // what a VPN wrote that is not what the machine has by itself
	Scutil  *scutilNote  `json:"scutil,omitempty"`
	NRPT    *nrptNote    `json:"nrpt,omitempty"`
}

// written is one content that we wrote.
type written struct {
	SHA256 string `json:"sha256"`
	Data   []byte `json:"data"` // so that a half-written one can be told
}

const (
	journalVersion = 1
	journalName    = "dns-journal.json"
	// maxJournal bounds what is read of a journal: two files of maxFileBytes in base64, and attributes.
	maxJournal = 8 << 20
	// maxWrote is how many of our contents a journal keeps: the one in place, and the one that replaces it.
	maxWrote = 2
)

// errBadJournal says that a journal is there and cannot be read.
var errBadJournal = errors.New("it is no journal of ours")

func journalPath(stateDir string) string { return filepath.Join(stateDir, journalName) }

// loadJournal reads the journal in stateDir; nil if there is none.
func loadJournal(stateDir string) (*journal, error) {
	path := journalPath(stateDir)
	data, err := readNoFollow(path, maxJournal)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	j, err := parseJournal(data)
	if err != nil {
		return nil, fmt.Errorf("reading the journal %s: %w", path, err)
	}
	return j, nil
}

// parseJournal reads a journal. What it cannot undo as a whole it refuses as a whole.
func parseJournal(data []byte) (*journal, error) {
	j := &journal{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(j); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadJournal, err)
	}
	kinds := []string{kindMissing, kindRegular, kindSymlink}
	switch {
	case j.Version != journalVersion:
		return nil, fmt.Errorf("%w: its version is %d, not %d", errBadJournal, j.Version, journalVersion)
	case j.Mode == modeResolvconf || j.Mode == modeOpenresolv:
		if !filepath.IsAbs(j.Path) || filepath.Base(j.Path) != "resolvconf" {
			return nil, fmt.Errorf("%w: %.60q is no resolvconf", errBadJournal, j.Path)
		}
		return j, nil
	case j.Mode == modeNM, j.Mode == modeResolved, j.Mode == modeResolvd:
		return j, nil
	case j.Mode == modeScutil:
		if j.Scutil == nil || checkDomains(Config{Servers: make([]Server, 1), Match: j.Scutil.Files}) != nil {
			return nil, fmt.Errorf("%w: it names no files of ours", errBadJournal)
		}
		return j, nil
	case j.Mode == modeNRPT:
		if j.NRPT == nil {
			return nil, fmt.Errorf("%w: it names no rules of ours", errBadJournal)
		}
		return j, nil
	case j.Mode != modeDirect:
		return nil, fmt.Errorf("%w: its mode is %.60q", errBadJournal, j.Mode)
	case j.Path != confPath:
		return nil, fmt.Errorf("%w: it is about %.60q", errBadJournal, j.Path)
	case !slices.Contains(kinds, j.Before.Kind):
		return nil, fmt.Errorf("%w: it replaced a %.60q", errBadJournal, j.Before.Kind)
	case j.Before.Kind == kindSymlink && j.Before.Link == "":
		return nil, fmt.Errorf("%w: it replaced a link to nowhere", errBadJournal)
	case j.Before.Mode&^modeBits != 0:
		return nil, fmt.Errorf("%w: the mode of what it replaced is %o", errBadJournal, j.Before.Mode)
	case len(j.Layers) > maxLayers:
		return nil, fmt.Errorf("%w: it has %d layers", errBadJournal, len(j.Layers))
	}
	for _, l := range j.Layers {
		if !slices.Contains(kinds, l.Under.Kind) || l.Under.Kind == kindSymlink && l.Under.Link == "" || l.Under.Mode&^modeBits != 0 {
			return nil, fmt.Errorf("%w: beneath %.20q is a %.60q", errBadJournal, l.Link, l.Under.Kind)
		}
	}
	return j, nil
}

// outlivesBoot reports whether what the journal is about is still there after a boot.
func (j *journal) outlivesBoot() bool {
	return slices.Contains([]string{modeDirect, modeScutil, modeNRPT, modeResolvd}, j.Mode)
}

// newJournal is the journal of a change that makes c's servers the machine's.
func (m machine) newJournal(mode, path string, c Config) *journal {
	return &journal{
		Version: journalVersion,
		Mode:    mode,
		BootID:  m.bootID(),
		Changed: time.Now().UTC().Truncate(time.Second),
		Path:    path,
		Servers: c.addrs(),
		Search:  c.Search,
	}
}

// saveJournal has the journal on the disk when it returns. The directory is made if it does not exist.
func (d disk) saveJournal(stateDir string, j *journal) error {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	state := fileState{Kind: kindRegular, Data: append(data, '\n'), Mode: 0o600, UID: os.Geteuid(), GID: os.Getegid()}
	if _, err := d.make(journalPath(stateDir), state); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	return nil
}

// dropJournal ends the journal.
func (d disk) dropJournal(stateDir string) error {
	if err := d.remove(journalPath(stateDir)); err != nil {
		return fmt.Errorf("ending the journal: %w", err)
	}
	if err := d.syncDir(stateDir); err != nil {
		return fmt.Errorf("ending the journal: %w", err)
	}
	return nil
}

// note adds a content that we are about to write.
func (j *journal) note(data []byte) {
	sum := sha256.Sum256(data)
	w := written{SHA256: hex.EncodeToString(sum[:]), Data: data}
	j.Wrote = slices.DeleteFunc(j.Wrote, func(old written) bool { return old.SHA256 == w.SHA256 })
	j.Wrote = append([]written{w}, j.Wrote[:min(len(j.Wrote), maxWrote-1)]...)
}

// condition is what a file is to a journal.
type condition string

const (
	isOurs    condition = "ours"            // what we wrote
	isHalf    condition = "half-written"    // by a process of ours that died, or on the way back
	isBefore  condition = "as it was"       // what was there before
	isEmptied condition = "without servers" // no program would get an answer from it
	isTainted condition = "mixed"           // somebody else's, and it has something of ours
	isOver    condition = "a VPN's"         // of one that has left, or asks us
	isForeign condition = "somebody else's" // and nothing of ours
)

// judge says what now, found at the path, is. Who wrote last wins, except with a file that leaves the machine without
// names: an empty list is never a new truth, and neither is a list of servers that are about to go.
func (j *journal) judge(now fileState) condition {
	switch {
	case now.same(j.Before):
		return isBefore
	case j.Over != nil && now.same(j.Over.File):
		return isOver
	case now.Kind == kindMissing && j.Before.usable():
		return isEmptied
	case now.Kind != kindRegular:
		return isForeign
	}
	sum := sha256.Sum256(now.Data)
	text := hex.EncodeToString(sum[:])
	if slices.ContainsFunc(j.Wrote, func(w written) bool { return w.SHA256 == text }) {
		return isOurs
	}
	if j.InPlace && j.torn(now.Data) {
		return isHalf
	}
	all := parseResolvConf(now.Data).nameservers
	others := slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return slices.Contains(j.Servers, a) })
	switch {
	case len(others) == 0 && (len(all) > 0 || j.Before.usable()):
		return isEmptied
	case len(others) < len(all) || bytes.Contains(now.Data, []byte(ourFirstLine)):
		return isTainted
	}
	return isForeign
}

// usable reports whether programs may get answers from what a resolv.conf names. A link may lead somewhere later.
func (s fileState) usable() bool {
	return s.Kind == kindSymlink || s.Kind == kindRegular && len(parseResolvConf(s.Data).nameservers) > 0
}

// torn reports whether data is on the way between what was there and what we wrote, in either direction.
func (j *journal) torn(data []byte) bool {
	for i, w := range j.Wrote {
		if isTorn(data, j.Before.Data, w.Data) || isTorn(data, w.Data, j.Before.Data) {
			return true
		}
		for _, older := range j.Wrote[i+1:] {
			if isTorn(data, older.Data, w.Data) {
				return true
			}
		}
	}
	return false
}

// remaining is what somebody else's file comes to without us, or what was there before, if without us nothing is left.
func (j *journal) remaining(now fileState) fileState {
	switch j.judge(now) {
	case isForeign:
		return now
	case isTainted:
		now.Data = withoutTraces(withoutServers(now.Data, j.Servers), j.Search)
		return now
	}
	return j.Before
}

// same reports whether programs find the same in both.
func (s fileState) same(other fileState) bool {
	return s.Kind == other.Kind && s.Link == other.Link && bytes.Equal(s.Data, other.Data)
}
