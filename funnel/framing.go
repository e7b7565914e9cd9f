package funnel

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"
)

// The bounds of an HTTP/1 message's frame, in bytes.
const (
	maxHead      = 64 << 10 // request line and headers
	maxTrailers  = 8 << 10
	maxChunkLine = 256
	maxDigits    = 15 // of a length, which no file has
)

// errFraming says that the end of a message can be read in two ways, by which one request passes for two.
var errFraming = errors.New("a request whose end is not certain")

// framed is a connection that speaks HTTP/1: what is read from it is HTTP/1 by the letter. net/http takes more than
// that, a Content-Length beside a Transfer-Encoding for one (RFC 9112, section 6.3), lines that end in a bare LF for another.
type framed struct {
	net.Conn

	frame framing
	bad   error
	wrong atomic.Bool // bad is there
	raw   atomic.Bool // no HTTP/1 any more
}

// Read reads, up to the first byte that is wrong.
func (c *framed) Read(p []byte) (int, error) {
	if c.bad != nil {
		return 0, c.bad
	}
	n, err := c.Conn.Read(p)
	if n == 0 || c.raw.Load() {
		return n, err
	}
	good, bad := c.frame.feed(p[:n])
	switch {
	case bad != nil:
		c.bad = bad
		c.wrong.Store(true)
		return good, bad
	case c.frame.state == framePassed:
		c.raw.Store(true)
	}
	return n, err
}

// CloseWrite ends our side of the connection, where it has sides.
func (c *framed) CloseWrite() error { return closeWrite(c.Conn) }

// framing follows the frames of HTTP/1 requests, one after the other. It takes what can be read in one way alone.
type framing struct {
	preface bool // an HTTP/2 connection may start here too (RFC 9113, section 3.3)

	state  frameState
	line   []byte // that has begun
	size   int    // of the head, or of the trailers, until now
	length uint64 // what is left of the body or of the chunk
	frame  frameHeaders
}

// frameHeaders is what the headers of one request say about its end.
type frameHeaders struct {
	old     bool // HTTP/1.0
	chunked bool
	sized   bool
	hosts   int
}

type frameState int

const (
	frameStart frameState = iota
	frameHead
	frameBody
	frameChunk     // the line of a chunk's size
	frameChunkData // and what it holds
	frameChunkEnd  // and the line end behind that
	frameTrailers
	framePassed // it is not HTTP/1
)

// prefaceLine starts an HTTP/2 connection.
const prefaceLine = "PRI * HTTP/2.0"

// feed follows p, and says how much of it is right.
func (f *framing) feed(p []byte) (int, error) {
	for at := 0; at < len(p); {
		switch f.state {
		case framePassed:
			return len(p), nil
		case frameBody, frameChunkData:
			n := uint64(len(p) - at)
			n = min(n, f.length)
			f.length -= n
			at += int(n)
			if f.length == 0 {
				f.bodyEnd()
			}
		default:
			n, whole, err := f.take(p[at:])
			if err == nil && whole {
				err = f.endLine()
			}
			if err != nil {
				return at, err
			}
			at += n
		}
	}
	return len(p), nil
}

// take adds to the line that has begun, up to its end.
func (f *framing) take(p []byte) (n int, whole bool, err error) {
	n = len(p)
	if end := bytes.IndexByte(p, '\n'); end >= 0 {
		n, whole = end+1, true
	}
	f.size += n
	if f.size > f.most() {
		return 0, false, errFraming
	}
	f.line = append(f.line, p[:n]...)
	return n, whole, nil
}

// most is how long what is read in lines may be. A head may be a little longer than net/http takes, which then answers
// with 431.
func (f *framing) most() int {
	switch f.state {
	case frameChunk, frameChunkEnd:
		return maxChunkLine
	case frameTrailers:
		return maxTrailers
	}
	return maxHead + 16<<10
}

// endLine reads a whole line.
func (f *framing) endLine() error {
	line, ok := bytes.CutSuffix(f.line, []byte("\r\n"))
	if !ok || bytes.ContainsAny(line, "\r\x00") {
		return errFraming
	}
	err := f.read(string(line))
	f.line = f.line[:0]
	if cap(f.line) > maxTrailers {
		f.line = nil // one odd request is not remembered for as long as the connection lasts
	}
	return err
}

// read reads a line for what it is here.
func (f *framing) read(line string) error {
	switch f.state {
	case frameStart:
		return f.start(line)
	case frameHead:
		if line == "" {
			return f.headEnd()
		}
		return f.header(line)
	case frameChunk:
		return f.chunk(line)
	case frameChunkEnd:
		if line != "" {
			return errFraming
		}
		f.state, f.size = frameChunk, 0
	case frameTrailers:
		if line == "" {
			f.state, f.size = frameStart, 0
			return nil
		}
		name, _, err := splitHeader(line)
		if err != nil || isFraming(name) || name == "Host" {
			return errFraming
		}
	}
	return nil
}

// start reads a request line: three words and one space between each (RFC 9112, section 3).
func (f *framing) start(line string) error {
	if line == prefaceLine && f.preface {
		f.state = framePassed
		return nil
	}
	method, rest, _ := strings.Cut(line, " ")
	to, version, _ := strings.Cut(rest, " ")
	if !httpguts.ValidHeaderFieldName(method) || to == "" || strings.ContainsFunc(to, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return errFraming
	}
	f.frame = frameHeaders{old: version == "HTTP/1.0"}
	if !f.frame.old && version != "HTTP/1.1" {
		return errFraming
	}
	f.state, f.preface = frameHead, false
	return nil
}

// header reads one header.
func (f *framing) header(line string) error {
	name, value, err := splitHeader(line)
	if err != nil {
		return err
	}
	switch name {
	case "Host":
		if f.frame.hosts++; f.frame.hosts > 1 {
			return errFraming
		}
	case "Content-Length":
		if f.frame.sized || value == "" || len(value) > maxDigits {
			return errFraming
		}
		f.frame.sized, f.length = true, 0
		for _, c := range []byte(value) {
			if c < '0' || c > '9' {
				return errFraming
			}
			f.length = f.length*10 + uint64(c-'0')
		}
	case "Transfer-Encoding":
		if f.frame.chunked || f.frame.old || !strings.EqualFold(value, "chunked") {
			return errFraming
		}
		f.frame.chunked = true
	}
	return nil
}

// splitHeader takes a header apart. A line that begins with a space goes on with the one before (RFC 9112, section 5.2):
// there is no name at its beginning.
func splitHeader(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || !httpguts.ValidHeaderFieldName(name) {
		return "", "", errFraming
	}
	return http.CanonicalHeaderKey(name), strings.Trim(value, " \t"), nil
}

// headEnd is where the head of a request ends: what comes next is as it says.
func (f *framing) headEnd() error {
	f.size = 0
	switch {
	case f.frame.chunked && f.frame.sized:
		return errFraming
	case f.frame.chunked:
		f.state = frameChunk
	case f.frame.sized && f.length > 0:
		f.state = frameBody
	default:
		f.state = frameStart
	}
	return nil
}

// chunk reads the size of a chunk, and passes over what it says besides (RFC 9112, section 7.1.1).
func (f *framing) chunk(line string) error {
	size, _, _ := strings.Cut(line, ";")
	if size == "" || len(size) > maxDigits {
		return errFraming
	}
	f.length = 0
	for _, c := range []byte(size) {
		d := hexDigit(c)
		if d < 0 {
			return errFraming
		}
		f.length = f.length<<4 | uint64(d)
	}
	f.state, f.size = frameChunkData, 0
	if f.length == 0 {
		f.state = frameTrailers
	}
	return nil
}

// hexDigit is what a digit stands for, or -1 for what is none.
func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// bodyEnd is where a body or a chunk ends.
func (f *framing) bodyEnd() {
	if f.state == frameChunkData {
		f.state = frameChunkEnd
	} else {
		f.state = frameStart
	}
	f.size = 0
}
