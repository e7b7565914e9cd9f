package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// record is one record of the registry.
type record struct {
	Key      string
	Value    []byte // nil: it is gone
	Revision uint64 // of the change that wrote it
}

// change writes one record if it still has the revision that it was read with. It is a record on its way in: Revision 0
// wants that there is none, a nil Value removes it.
type change = record

// records are what a Store holds, or what became of it.
type records struct {
	List     []record
	Revision uint64 // of the newest change
	Whole    bool   // it is everything: what is not in List is gone
}

// store keeps the registry's records. Gateways that share one are to see each other's changes. Every change has a
// revision, which only grows.
type store interface {
	// Load returns all records.
	Load(ctx context.Context) (records, error)
	// Watch waits for changes after a revision, and returns the records that they left.
	Watch(ctx context.Context, after uint64) (records, error)
	// CompareAndSwap makes all changes or none, durably. errConflict says that a record had another revision.
	CompareAndSwap(ctx context.Context, changes ...change) (uint64, error)
	// Close ends its use.
	Close() error
}

// The bounds of a store.
const (
	maxKey    = 256
	maxValue  = 64 << 10
	lockTime  = 2 * time.Second
	maxLagged = 4096 // changes that a watcher may be behind before it gets everything again
)

// fileStore is a store in one file. bbolt writes a transaction to free pages, syncs, and then swaps the root in one
// sector with a checksum: after a power cut at any moment the file holds the transaction before or the one after.
type fileStore struct {
	db    *bolt.DB
	first uint64 // the newest revision when it was opened: what led there is not remembered

	mu      sync.Mutex
	log     []record // of the newest changes, by revision
	changed chan struct{}
}

// bucket holds the records: each value is a revision of 8 bytes and the record's own.
var bucket = []byte("records")

// openFileStore opens the store in a file, which it makes with mode 0600 if there is none. One process may have it open;
// another one's is an error after 2 s. A file that is damaged is an error, and left as it is.
func openFileStore(path string) (*fileStore, error) {
	db, err := openWhole(path)
	if err != nil {
		return nil, err
	}
	s := &fileStore{db: db, changed: make(chan struct{})}
	err = db.View(func(tx *bolt.Tx) error {
		s.first = tx.Bucket(bucket).Sequence()
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), db.Close())
	}
	return s, nil
}

// syncDir makes the names in a directory outlive a power cut.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Close ends the store's use. Whoever watches is left waiting for their own contexts.
func (s *fileStore) Close() error { return s.db.Close() }

// snapshot writes the file as of one transaction, which writers do not wait for.
func (s *fileStore) snapshot(w io.Writer) error {
	err := s.db.View(func(tx *bolt.Tx) error {
		_, err := tx.WriteTo(w)
		return err
	})
	if err != nil {
		return fmt.Errorf("copying %s: %w", s.db.Path(), err)
	}
	return nil
}

// Load returns all records.
func (s *fileStore) Load(context.Context) (records, error) {
	all := records{Whole: true}
	err := s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucket)
		all.Revision = b.Sequence()
		return b.ForEach(func(k, v []byte) error {
			r, err := unpack(k, v)
			all.List = append(all.List, r)
			return err
		})
	})
	if err != nil {
		return records{}, &damagedError{s.db.Path(), err}
	}
	return all, nil
}

// unpack reads a stored record. What bbolt gives is its own memory, so it is copied.
func unpack(k, v []byte) (record, error) {
	if len(v) < 8 {
		return record{}, fmt.Errorf("record %q has %d bytes", k, len(v))
	}
	return record{Key: string(k), Value: append([]byte{}, v[8:]...), Revision: binary.BigEndian.Uint64(v)}, nil
}

// Watch waits for changes after a revision.
func (s *fileStore) Watch(ctx context.Context, after uint64) (records, error) {
	for {
		s.mu.Lock()
		changed, log := s.changed, s.log
		s.mu.Unlock()
		if n := len(log); after < s.first || n > 0 && log[n-1].Revision > after {
			if after < s.first || log[0].Revision > after+1 {
				return s.Load(ctx) // from before what is remembered
			}
			return records{List: newest(log, after), Revision: log[n-1].Revision}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return records{}, ctx.Err()
		}
	}
}

// newest are the last states of the records that changed after a revision.
func newest(log []record, after uint64) []record {
	var list []record
	place := map[string]int{}
	for _, r := range log {
		if r.Revision <= after {
			continue
		}
		if i, ok := place[r.Key]; ok {
			list[i] = r
			continue
		}
		place[r.Key] = len(list)
		list = append(list, r)
	}
	return list
}

// CompareAndSwap makes all changes or none. When it returns they are on the disk.
func (s *fileStore) CompareAndSwap(_ context.Context, changes ...change) (uint64, error) {
	for _, c := range changes {
		if c.Key == "" || len(c.Key) > maxKey || len(c.Value) > maxValue {
			return 0, fmt.Errorf("writing record %.64q: it has %d bytes, and its key %d", c.Key, len(c.Value), len(c.Key))
		}
	}
	var revision uint64
	// What is told to watchers has the order of what is written.
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucket)
		var err error
		if revision, err = b.NextSequence(); err != nil {
			return err
		}
		for _, c := range changes {
			if err := swap(b, c, revision); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, errConflict) {
		return 0, err
	}
	if err != nil {
		return 0, &unwrittenError{s.db.Path(), err}
	}
	for _, c := range changes {
		s.log = append(s.log, record{Key: c.Key, Value: c.Value, Revision: revision})
	}
	if over := len(s.log) - maxLagged; over > 0 {
		// A transaction's records stay together: part of one would look like all of it.
		for over < len(s.log) && s.log[over].Revision == s.log[over-1].Revision {
			over++
		}
		s.log = append([]record{}, s.log[over:]...) // a new array: watchers read the old one
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return revision, nil
}

// swap makes one change in a transaction.
func swap(b *bolt.Bucket, c change, revision uint64) error {
	key := []byte(c.Key)
	var had uint64
	if v := b.Get(key); v != nil {
		old, err := unpack(key, v)
		if err != nil {
			return err
		}
		had = old.Revision
	}
	if had != c.Revision {
		return fmt.Errorf("record %q: %w", c.Key, errConflict)
	}
	if c.Value == nil {
		return b.Delete(key)
	}
	return b.Put(key, append(binary.BigEndian.AppendUint64(nil, revision), c.Value...))
}
