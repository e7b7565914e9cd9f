//go:build !linux

package funnel

// reader returns what reads once and forwards it.
func (f *flow) reader() func(func([]byte) error) (int, error) { return f.plainReader() }

// splice does nothing: bytes are copied.
func (f *flow) splice() error { return nil }
