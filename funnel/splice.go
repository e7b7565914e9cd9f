package funnel

import (
	"errors"
	"io"
	"net"
	"sync"
)

const (
	copyBuffer  = 32 << 10
	smallBuffer = 4 << 10 // where a connection cannot be waited for without one
)

// chunk is what was read at once. It is had only for as long as there are bytes in it: a visitor who says nothing holds none.
type chunk [copyBuffer]byte

// newChunks returns a pool of them.
func newChunks() *sync.Pool { return &sync.Pool{New: func() any { return new(chunk) }} }

// flow is one way of a visit.
type flow struct {
	dst, src net.Conn
	chunks   *sync.Pool
	most     int             // bytes at once; zero: a chunk
	came     func()          // is told that bytes have come, before they are written; nil: nobody is
	passed   func(int) error // is told of bytes that were written, and says whether more may be
}

// run copies until src ends.
func (f *flow) run() error {
	read := f.reader()
	for {
		n, err := read(f.forward)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n == copyBuffer {
			if err := f.splice(); err != nil {
				return err
			}
		}
	}
}

// size is how many bytes are taken at once.
func (f *flow) size() int {
	if f.most > 0 {
		return min(f.most, copyBuffer)
	}
	return copyBuffer
}

// forward writes what was read.
func (f *flow) forward(p []byte) error {
	if f.came != nil {
		f.came()
	}
	if _, err := f.dst.Write(p); err != nil {
		return err
	}
	return f.passed(len(p))
}

// plainReader reads with a buffer of its own, that is small while little comes.
func (f *flow) plainReader() func(func([]byte) error) (int, error) {
	small := make([]byte, min(smallBuffer, f.size()))
	big := false
	return func(forward func([]byte) error) (int, error) {
		buf := small
		if big {
			c := f.chunks.Get().(*chunk)
			defer f.chunks.Put(c)
			buf = c[:f.size()]
		}
		n, err := f.src.Read(buf)
		if n > 0 {
			err = errors.Join(forward(buf[:n]), err)
		}
		big = n >= len(small)
		return n, err
	}
}
