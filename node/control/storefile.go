package control

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// damagedError says that a store's file is not what was written there. bbolt itself panics at most such files, takes an
// empty one for a new one, and goes on writing into others.
type damagedError struct {
	path string
	err  error
}

func (e *damagedError) Error() string {
	return fmt.Sprintf("opening %s: the file is damaged: %v", e.path, e.err)
}

func (e *damagedError) Unwrap() error { return e.err }

// Hint says what the user can do.
func (e *damagedError) Hint() string {
	return "nothing was changed; put the newest backup back: meshdns gateway restore --force FILE"
}

// unwrittenError says that the disk did not take a change, which was not made: what was there before is there still.
type unwrittenError struct {
	path string
	err  error
}

func (e *unwrittenError) Error() string { return fmt.Sprintf("writing %s: %v", e.path, e.err) }

func (e *unwrittenError) Unwrap() error { return e.err }

// Hint says what the user can do.
func (e *unwrittenError) Hint() string {
	if errors.Is(e.err, syscall.ENOSPC) {
		return "make space on the disk of " + filepath.Dir(e.path) + ", and try again; nothing was changed"
	}
	return "see whether the disk of " + filepath.Dir(e.path) + " can be written to; nothing was changed"
}

// openWhole opens a file, which it makes if there is none, once all of it has been seen to be whole.
func openWhole(path string) (*bolt.DB, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = makeFile(path)
	}
	if err == nil {
		err = checkFile(path)
	}
	if err != nil {
		return nil, err
	}
	return openBolt(path, false)
}

// makeFile makes an empty store in one step: no file that was not written to its end ever has the name.
func makeFile(path string) error {
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("making %s: %w", path, err)
	}
	db, err := openBolt(next, true)
	if err == nil {
		err = db.Close()
	}
	if err == nil {
		err = os.Rename(next, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("making %s: %w", path, err), os.Remove(next))
	}
	return nil
}

// openBolt opens a file, whose bucket of records is made only where that is wanted: without it the file is another one.
func openBolt(path string, empty bool) (db *bolt.DB, err error) {
	defer func() {
		if p := recover(); p != nil { // by which bbolt says that it cannot go on
			db, err = nil, &damagedError{path, fmt.Errorf("%v", p)}
		}
	}()
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTime})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("opening %s: another program has it open", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	if empty {
		err = db.Update(func(tx *bolt.Tx) error {
			_, err := tx.CreateBucket(bucket)
			return err
		})
	} else {
		err = db.View(func(tx *bolt.Tx) error {
			if tx.Bucket(bucket) == nil {
				return &damagedError{path, errors.New("it holds no registry")}
			}
			return nil
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), db.Close())
	}
	return db, nil
}

// checkFile says what is wrong with a file. One that another program writes at this moment may look wrong once.
func checkFile(path string) error {
	var err error
	for range 3 {
		if err = checkOnce(path); err == nil {
			return nil
		}
	}
	return err
}

func checkOnce(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	if err := checkPages(f, info.Size()); err != nil {
		return &damagedError{path, err}
	}
	return nil
}

// What bbolt writes (its internal/common): pages in the machine's byte order, each with a head of 16 bytes: its number,
// flags, count of elements and how many pages it has besides. The first two pages are the roots, taken in turns.
const (
	pageHead     = 16
	elementSize  = 16
	rootSize     = 64
	fileMagic    = 0xED0CDAED
	fileVersion  = 2
	flagBranch   = 1
	flagLeaf     = 2
	flagFree     = 0x10
	flagBucket   = 1
	manyFree     = 0xFFFF // then the count is the first of the list
	noFreeList   = 1<<64 - 1
	maxPageSize  = 1 << 24
	maxFilePages = 1 << 24
)

var order = binary.NativeEndian

// fileRoot is one of the two roots.
type fileRoot struct {
	pageSize             int64
	bucket, free, number uint64 // pages of the top bucket and of the list of free ones, and how many there are
	transaction          uint64
}

// pageCheck walks through a file.
type pageCheck struct {
	file io.ReaderAt
	root fileRoot
	seen map[uint64]bool
}

// checkPages says what is wrong with a file of bbolt's: whether all that it refers to is there, once, and in order.
func checkPages(file io.ReaderAt, size int64) error {
	root, err := readRoots(file, size)
	if err != nil {
		return err
	}
	if root.number > maxFilePages || int64(root.number)*root.pageSize > size {
		return fmt.Errorf("it has %d bytes, and is to have %d pages of %d", size, root.number, root.pageSize)
	}
	c := pageCheck{file, root, map[uint64]bool{}}
	if err := c.tree(root.bucket, nil); err != nil {
		return err
	}
	return c.free(root.free)
}

// readRoots is the newer root of those that are whole. The second is looked for behind pages of every size.
func readRoots(file io.ReaderAt, size int64) (fileRoot, error) {
	best, found := readRoot(file, 0)
	for at := int64(1024); at <= maxPageSize && at < size; at *= 2 {
		if r, ok := readRoot(file, at); ok && r.pageSize == at && (!found || r.transaction > best.transaction) {
			best, found = r, true
		}
	}
	if !found {
		return fileRoot{}, fmt.Errorf("it has %d bytes, and neither of the two roots of a registry", size)
	}
	return best, nil
}

func readRoot(file io.ReaderAt, at int64) (fileRoot, bool) {
	b := make([]byte, pageHead+rootSize)
	if _, err := file.ReadAt(b, at); err != nil {
		return fileRoot{}, false
	}
	b = b[pageHead:]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:rootSize-8]) // which never fails
	r := fileRoot{
		pageSize: int64(order.Uint32(b[8:])), bucket: order.Uint64(b[16:]), free: order.Uint64(b[32:]),
		number: order.Uint64(b[40:]), transaction: order.Uint64(b[48:]),
	}
	ok := order.Uint32(b) == fileMagic && order.Uint32(b[4:]) == fileVersion && order.Uint64(b[56:]) == sum.Sum64() &&
		r.pageSize >= 1024 && r.pageSize <= maxPageSize && r.number >= 2
	return r, ok
}

// page reads a page that nothing else has referred to.
func (c *pageCheck) page(id uint64) ([]byte, error) {
	if id < 2 || id >= c.root.number {
		return nil, fmt.Errorf("there is no page %d", id)
	}
	head := make([]byte, pageHead)
	if _, err := c.file.ReadAt(head, int64(id)*c.root.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	more := uint64(order.Uint32(head[12:]))
	if order.Uint64(head) != id || id+more >= c.root.number {
		return nil, fmt.Errorf("page %d is not where it was written", id)
	}
	for i := id; i <= id+more; i++ {
		if c.seen[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		c.seen[i] = true
	}
	b := make([]byte, int64(more+1)*c.root.pageSize)
	if _, err := c.file.ReadAt(b, int64(id)*c.root.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return b, nil
}

// tree checks a page and all below it. first is the first key that it may have; nil: any.
func (c *pageCheck) tree(id uint64, first []byte) error {
	b, err := c.page(id)
	if err != nil {
		return err
	}
	if order.Uint16(b[8:]) != flagBranch {
		return c.leaf(b, id, first)
	}
	count := int(order.Uint16(b[10:]))
	if count == 0 || pageHead+count*elementSize > len(b) {
		return fmt.Errorf("page %d has %d elements", id, count)
	}
	for i := range count {
		e := b[pageHead+i*elementSize:]
		key, ok := part(e, uint64(order.Uint32(e)), uint64(order.Uint32(e[4:])))
		if !ok || i > 0 && bytes.Compare(key, first) <= 0 || first != nil && bytes.Compare(key, first) < 0 {
			return fmt.Errorf("page %d is out of order", id)
		}
		if err := c.tree(order.Uint64(e[8:]), key); err != nil {
			return err
		}
		first = key
	}
	return nil
}

// leaf checks a page of records, or of buckets.
func (c *pageCheck) leaf(b []byte, id uint64, first []byte) error {
	count := int(order.Uint16(b[10:]))
	if order.Uint16(b[8:]) != flagLeaf || pageHead+count*elementSize > len(b) {
		return fmt.Errorf("page %d is of no kind that belongs there", id)
	}
	for i := range count {
		e := b[pageHead+i*elementSize:]
		at, keySize, size := uint64(order.Uint32(e[4:])), uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
		key, ok := part(e, at, keySize)
		value, ok2 := part(e, at+keySize, size)
		if !ok || !ok2 || len(key) == 0 || i > 0 && bytes.Compare(key, first) <= 0 || first != nil && bytes.Compare(key, first) < 0 {
			return fmt.Errorf("page %d is out of order", id)
		}
		first = key
		if order.Uint32(e) != flagBucket {
			continue
		}
		if err := c.bucket(value, id); err != nil {
			return err
		}
	}
	return nil
}

// bucket checks a bucket: the number of its first page, or, where it is small, the page itself.
func (c *pageCheck) bucket(value []byte, id uint64) error {
	if len(value) < 16 {
		return fmt.Errorf("page %d has a bucket of %d bytes", id, len(value))
	}
	if top := order.Uint64(value); top != 0 {
		return c.tree(top, nil)
	}
	if len(value) < 16+pageHead {
		return fmt.Errorf("page %d has a bucket of %d bytes", id, len(value))
	}
	return c.leaf(value[16:], id, nil)
}

// part is a part of what an element refers to, counted from the element.
func part(element []byte, at, size uint64) ([]byte, bool) {
	if at > uint64(len(element)) || size > uint64(len(element))-at {
		return nil, false
	}
	return element[at : at+size], true
}

// free checks the list of pages that may be written over: one that is in use would be lost.
func (c *pageCheck) free(id uint64) error {
	if id == noFreeList {
		return nil
	}
	b, err := c.page(id)
	if err != nil {
		return err
	}
	count, list := uint64(order.Uint16(b[10:])), b[pageHead:]
	if count == manyFree {
		count, list = order.Uint64(list), list[8:]
	}
	if order.Uint16(b[8:]) != flagFree || count > uint64(len(list)/8) {
		return fmt.Errorf("page %d is no list of free pages", id)
	}
	last := uint64(1)
	for i := range count {
		one := order.Uint64(list[i*8:])
		if one <= last || one >= c.root.number || c.seen[one] {
			return fmt.Errorf("page %d counts page %d as free", id, one)
		}
		last = one
	}
	return nil
}
