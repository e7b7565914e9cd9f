package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// wholeStore is a file with records on several pages, some of which were written over.
func wholeStore(t testing.TB, path string) []byte {
	t.Helper()
	s, err := openFileStore(path)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]uint64{}
	for i := range 60 {
		var list []change
		for k := range 8 {
			key := fmt.Sprintf("node/%03d", (i*7+k*31)%200)
			list = append(list, change{Key: key, Value: bytes.Repeat([]byte{byte(i)}, 150), Revision: at[key]})
		}
		revision, err := s.CompareAndSwap(t.Context(), list...)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			at[c.Key] = revision
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestADamagedFileIsRefusedAndLeftAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	good := wholeStore(t, path)
	page := os.Getpagesize()
	damage := map[string]func(b []byte) []byte{
		"nothing was written":        func([]byte) []byte { return nil },
		"a part of the first page":   func(b []byte) []byte { return b[:100] },
		"only the roots":             func(b []byte) []byte { return b[:2*page] },
		"half of it":                 func(b []byte) []byte { return b[:len(b)/2/page*page] },
		"zeros for the second half":  func(b []byte) []byte { clear(b[len(b)/8:]); return b },
		"zeros":                      func(b []byte) []byte { clear(b); return b },
		"no root":                    func(b []byte) []byte { clear(b[:2*page]); return b },
		"another program's file":     func([]byte) []byte { return []byte(strings.Repeat("not a registry\n", 2000)) },
		"pages that are not written": func(b []byte) []byte { clear(b[2*page:]); return b },
	}
	for name, change := range damage {
		t.Run(name, func(t *testing.T) {
			bad := change(bytes.Clone(good))
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := openFileStore(path)
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			var damaged *damagedError
			if !errors.As(err, &damaged) || !strings.Contains(err.Error(), path) || !strings.Contains(damaged.Hint(), "gateway restore --force") {
				t.Errorf("%v", err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, bad) {
				t.Errorf("the file was changed: %d bytes, %v", len(now), err)
			}
		})
	}
}

// A bolt file without the bucket is somebody else's, and gets none.
func TestAnotherProgramsStoreIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucket([]byte("theirs"))
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err := openFileStore(path); err == nil || !strings.Contains(err.Error(), "holds no registry") {
		t.Errorf("%v, %v", s, err)
	}
}

// A store that is not finished when the power goes is none: there is nothing with its name.
func TestAStoreIsMadeInOneStep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	if err := os.WriteFile(path+".new", []byte("a beginning"), 0o600); err != nil {
		t.Fatal(err)
	}
	newStore(t, path)
	if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was begun is still there: %v", err)
	}
}

// sector is what a disk writes whole, or not at all.
const sector = 512

// A power cut may come at any moment of a change: then any of the sectors that are under way are on the disk, and the root, which
// is written once they are there, is on it or not. Whatever is there is opened, and is the state before the change or the one after.
func TestAPowerCutAtAnyMomentLosesNoChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	before := wholeStore(t, path)
	source := rand.New(rand.NewPCG(4, 2))
	for round := range 12 {
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		s := newStore(t, path)
		was, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var list []change
		for k := range 1 + source.IntN(40) {
			list = append(list, change{Key: fmt.Sprintf("round/%d/%d", round, k), Value: bytes.Repeat([]byte("x"), source.IntN(3000))})
		}
		for _, one := range was.List[:source.IntN(20)] {
			list = append(list, change{Key: one.Key, Revision: one.Revision})
		}
		if _, err := s.CompareAndSwap(t.Context(), list...); err != nil {
			t.Fatal(err)
		}
		is, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 12 {
			rooted := source.IntN(2) == 0
			want := was
			if rooted {
				want = is
			}
			if err := os.WriteFile(path, cutImage(source, before, after, rooted), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := openFileStore(path)
			if err != nil {
				t.Fatalf("round %d, with the root %t: %v", round, rooted, err)
			}
			got, err := s.Load(t.Context())
			if err != nil || got.Revision != want.Revision || words(got.List) != words(want.List) {
				t.Errorf("round %d, with the root %t: revision %d, %v", round, rooted, got.Revision, err)
			}
			// And it takes the next change.
			if _, err := s.CompareAndSwap(t.Context(), change{Key: "next", Value: []byte("x")}); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := checkFile(path); err != nil {
				t.Error(err)
			}
		}
		before = after
	}
}

// cutImage is the disk after a power cut between two states of a file.
func cutImage(source *rand.Rand, before, after []byte, rooted bool) []byte {
	image := bytes.Clone(before)
	if rooted || source.IntN(2) == 0 { // what a file grows by is zeros at first
		image = append(image, make([]byte, max(0, len(after)-len(before)))...)
	}
	roots := 2 * os.Getpagesize()
	for at := 0; at < len(image); at += sector {
		isRoot := at < roots
		if isRoot && rooted || !isRoot && (rooted || source.IntN(2) == 0) {
			copy(image[at:min(at+sector, len(image))], after[at:])
		}
	}
	return image
}

// Whatever passes the check is opened and read without a panic, and goes on to take changes.
func FuzzStoreFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "registry.db")
	good := wholeStore(f, path)
	f.Add(uint32(0), []byte{}, uint32(len(good)))
	f.Add(uint32(2*os.Getpagesize()), make([]byte, 16), uint32(len(good)))
	f.Add(uint32(16), bytes.Repeat([]byte{255}, 8), uint32(3*os.Getpagesize()))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, size uint32) {
		data := bytes.Clone(good[:min(int(size), len(good))])
		if int(at) < len(data) {
			copy(data[at:], patch)
		}
		path := filepath.Join(t.TempDir(), "registry.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		err := checkFile(path)
		var damaged *damagedError
		if err != nil && !errors.As(err, &damaged) {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		s, err := openFileStore(path)
		if errors.As(err, &damaged) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		all, err := s.Load(t.Context())
		if err != nil {
			return // a record is shorter than its revision
		}
		if _, err := s.CompareAndSwap(t.Context(), change{Key: "fuzz", Value: []byte("x"), Revision: 0}); err != nil {
			t.Errorf("%d records, %v", len(all.List), err)
		}
	})
}

// A record that is not what was written there keeps the gateway from starting, and names the file.
func TestADamagedRecordIsSaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	s := newStore(t, path)
	if _, err := s.CompareAndSwap(t.Context(), change{Key: nodeKey + "nas", Value: []byte(`{"node": {"na`)}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	r, err := OpenRegistry(t.Context(), RegistryConfig{File: path, Zone: testZone, Ranges: testRanges()})
	var damaged *damagedError
	if !errors.As(err, &damaged) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "node/nas") {
		t.Errorf("%v, %v", r, err)
	}
}

// fullStore is a store on a disk that takes nothing.
type fullStore struct{ *fileStore }

func (s fullStore) CompareAndSwap(context.Context, ...change) (uint64, error) {
	return 0, &unwrittenError{s.db.Path(), syscall.ENOSPC}
}

// A gateway that is started on a full disk serves what it has, as one that was started anew; one that has nothing does not start.
func TestAGatewayStartsOnAFullDisk(t *testing.T) {
	r := newRig(t)
	r.join("nas")
	have, _ := r.registry.Map()
	cfg := r.registry.cfg
	r.now = r.now.Add(time.Hour)
	full, err := openRegistry(t.Context(), cfg, fullStore{r.store})
	if err != nil {
		t.Fatal(err)
	}
	m, _ := full.Map()
	if mapNames(m) != "edge nas " || m.Epoch <= have.Epoch || m.Version < have.Version {
		t.Errorf("%s, %d.%d after %d.%d", mapNames(m), m.Epoch, m.Version, have.Epoch, have.Version)
	}
	var unwritten *unwrittenError
	if _, err := full.NewInvite(t.Context(), InviteOptions{Name: "tv"}); !errors.As(err, &unwritten) || !errors.As(full.Fault(), &unwritten) || !strings.Contains(unwritten.Hint(), "make space") {
		t.Errorf("%v, %v", err, full.Fault())
	}
	for _, n := range m.Nodes {
		if err := full.Put(t.Context(), n); err != nil {
			t.Errorf("what is there already: %v", err)
		}
	}
	// Once there is space it goes on.
	full.store = r.store
	if _, err := full.NewInvite(t.Context(), InviteOptions{Name: "tv"}); err != nil || full.Fault() != nil {
		t.Errorf("%v, %v", err, full.Fault())
	}
	if again, _ := r.open().Map(); again.Epoch <= m.Epoch {
		t.Errorf("epoch %d after %d", again.Epoch, m.Epoch)
	}
	if none, err := openRegistry(t.Context(), cfg, fullStore{newStore(t, filepath.Join(t.TempDir(), "new.db"))}); err == nil {
		t.Errorf("a registry of nothing: %+v", none)
	}
}
