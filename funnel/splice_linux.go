package funnel

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	spliceBytes = 1 << 20
	spliceTime  = time.Second // after which bytes that came are counted
)

// reader returns what reads once and forwards it. A TCP connection is waited for without a buffer.
func (f *flow) reader() func(func([]byte) error) (int, error) {
	tcp, ok := f.src.(*net.TCPConn)
	if !ok {
		return f.plainReader()
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return f.plainReader()
	}
	var c *chunk
	var n int
	var failed error
	ready := func(fd uintptr) bool {
		c = f.chunks.Get().(*chunk)
		for {
			n, failed = syscall.Read(int(fd), c[:f.size()])
			if failed != syscall.EINTR {
				break
			}
		}
		if failed == syscall.EAGAIN {
			f.chunks.Put(c)
			return false
		}
		return true
	}
	return func(forward func([]byte) error) (int, error) {
		if err := raw.Read(ready); err != nil {
			return 0, err
		}
		defer f.chunks.Put(c)
		if failed != nil {
			return 0, os.NewSyscallError("read", failed)
		}
		if n == 0 {
			return 0, io.EOF
		}
		return n, forward(c[:n])
	}
}

// splice moves bytes in the kernel for as long as many come, where both ends are its TCP connections.
func (f *flow) splice() error {
	dst, ok := f.dst.(*net.TCPConn)
	src, ok2 := f.src.(*net.TCPConn)
	if !ok || !ok2 || f.most > 0 {
		return nil
	}
	for {
		if err := src.SetReadDeadline(time.Now().Add(spliceTime)); err != nil {
			return err
		}
		n, err := dst.ReadFrom(&io.LimitedReader{R: src, N: spliceBytes})
		if n > 0 && f.came != nil {
			f.came()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
		// The deadline may be another's by now, who ended the visit; passed says so.
		err = errors.Join(err, src.SetReadDeadline(time.Time{}), f.passed(int(n)))
		if err != nil || n < spliceBytes {
			return err // the next read says whether that was the end
		}
	}
}
