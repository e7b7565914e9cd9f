package funnel

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// shapes are requests whose end can be read in two ways, or that are no HTTP/1 at all. Behind each stands a second one,
// which must not be answered.
func shapes() map[string]string {
	const next = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n"
	return map[string]string{
		"both lengths":                "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 45\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next,
		"both lengths, turned":        "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + next,
		"two lengths":                 "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n" + next,
		"two lengths alike":           "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n" + next,
		"lengths in a list":           "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0, 0\r\n\r\n" + next,
		"a signed length":             "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: +0\r\n\r\n" + next,
		"a negative length":           "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: -1\r\n\r\n" + next,
		"a hexadecimal length":        "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0x0\r\n\r\n" + next,
		"an empty length":             "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length:\r\n\r\n" + next,
		"a length beyond all":         "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 18446744073709551616\r\n\r\n" + next,
		"two codings":                 "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + next,
		"codings in a list":           "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + next,
		"an unknown coding":           "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + next,
		"a coding with VT":            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + next,
		"a quoted coding":             "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n" + next,
		"chunks in HTTP/1.0":          "POST / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next,
		"a space before the colon":    "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + next,
		"a folded header":             "POST / HTTP/1.1\r\nHost: a.example\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n" + next,
		"a folded first header":       "POST / HTTP/1.1\r\n Host: a.example\r\n\r\n" + next,
		"a bare LF":                   "GET / HTTP/1.1\nHost: a.example\n\n" + next,
		"a bare LF in a header":       "GET / HTTP/1.1\r\nHost: a.example\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next,
		"a bare CR in a header":       "GET / HTTP/1.1\r\nHost: a.example\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next,
		"a NUL":                       "GET / HTTP/1.1\r\nHost: a.example\r\nX: \x00\r\n\r\n" + next,
		"a header without a name":     "GET / HTTP/1.1\r\nHost: a.example\r\n: y\r\n\r\n" + next,
		"a header without a colon":    "GET / HTTP/1.1\r\nHost: a.example\r\nX\r\n\r\n" + next,
		"two hosts":                   "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n" + next,
		"two spaces":                  "GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n" + next,
		"a tab":                       "GET\t/ HTTP/1.1\r\nHost: a.example\r\n\r\n" + next,
		"no version":                  "GET /\r\n" + next,
		"another version":             "GET / HTTP/1.2\r\nHost: a.example\r\n\r\n" + next,
		"an empty line first":         "\r\n" + next,
		"a chunk of a signed size":    "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n+0\r\n\r\n" + next,
		"a chunk of a spaced size":    "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0 \r\n\r\n" + next,
		"a chunk of a long size":      "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000000\r\n\r\n" + next,
		"a chunk's line with an LF":   "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\n" + next,
		"an extension with a bare CR": "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0;a\rb\r\n\r\n" + next,
		"an extension without end":    "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0;" + strings.Repeat("a", 300) + "\r\n\r\n" + next,
		"a chunk without its end":     "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n" + next,
		"a length in a trailer":       "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 44\r\n\r\n" + next,
		"a host in a trailer":         "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b.example\r\n\r\n" + next,
	}
}

func TestWhatCanBeReadInTwoWaysIsRefused(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Int64
	to := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil && r.URL.Path == "/smuggled" {
			asked.Add(1)
		}
	})
	w.set(site("https", "a.example", 443, false, to), site("http", "a.example", 80, false, to))
	secure, plain := w.tailnet(443), w.tailnet(80)
	for name, request := range shapes() {
		t.Run(name, func(t *testing.T) {
			for _, dial := range []func() (net.Conn, error){
				func() (net.Conn, error) { return net.Dial("tcp", plain) },
				func() (net.Conn, error) {
					return tls.Dial("tcp", secure, &tls.Config{RootCAs: w.ca.pool, ServerName: "a.example"})
				},
			} {
				conn, err := dial()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				answers := exchange(t, conn, request)
				for _, a := range answers {
					if a != http.StatusBadRequest {
						t.Errorf("answers %v", answers)
					}
				}
				if len(answers) > 1 {
					t.Errorf("%d answers", len(answers))
				}
			}
			if asked.Load() != 0 {
				t.Error("the second request was answered")
			}
		})
	}
}

// exchange sends bytes, and returns the statuses of what comes back until the end.
func exchange(t *testing.T, conn net.Conn, request string) (statuses []int) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	for {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "reset") {
				return statuses
			}
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		statuses = append(statuses, res.StatusCode)
	}
}

func TestRequestsInARowAreAnswered(t *testing.T) {
	w := newWorld(t)
	w.set(site("http", "a.example", 80, false, backend(t, mirror)))
	conn, err := net.Dial("tcp", w.tailnet(80))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const row = "GET /1 HTTP/1.1\r\nHost: a.example\r\n\r\n" +
		"POST /2 HTTP/1.1\r\nHost:a.example\r\nContent-Length: \t3 \r\n\r\nabc" +
		"POST /3 HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: Chunked\r\nTrailer: X\r\n\r\n3;a=\"b\"\r\nabc\r\n00\r\nX: y\r\n\r\n" +
		"GET http://a.example/4 HTTP/1.1\r\nHost: a.example\r\n\r\n" +
		"GET /5 HTTP/1.0\r\nHost: a.example\r\n\r\n"
	if got := exchange(t, conn, row); !slices.Equal(got, []int{200, 200, 200, 200, 200}) {
		t.Error(got)
	}
}

func TestAHeadIsBounded(t *testing.T) {
	w := newWorld(t)
	w.set(site("http", "a.example", 80, false, backend(t, mirror)))
	addr := w.tailnet(80)
	for name, request := range map[string]string{
		"one header":   "GET / HTTP/1.1\r\nHost: a.example\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n",
		"many headers": "GET / HTTP/1.1\r\nHost: a.example\r\n" + strings.Repeat("X: y\r\n", 20000) + "\r\n",
		"a long path":  "GET /" + strings.Repeat("x", 80<<10) + " HTTP/1.1\r\nHost: a.example\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, got := range exchange(t, conn, request) {
				if got != http.StatusRequestHeaderFieldsTooLarge && got != http.StatusBadRequest {
					t.Error(got)
				}
			}
		})
	}
}

// follow feeds data in pieces, and says how many bytes are right.
func follow(f *framing, data []byte, piece int) (good int, err error) {
	for len(data) > 0 {
		n := min(piece, len(data))
		got, err := f.feed(data[:n])
		good += got
		if err != nil {
			return good, err
		}
		data = data[n:]
	}
	return good, nil
}

// FuzzFraming holds that net/http reads the same requests in what passes, however it is cut into pieces.
func FuzzFraming(f *testing.F) {
	for _, s := range shapes() {
		f.Add([]byte(s), 3)
	}
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\nb\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 1)
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 5)
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		whole := framing{}
		good, err := follow(&whole, data, len(data)+1)
		if piece = piece&0xff + 1; piece < 64 {
			cut := framing{}
			// In pieces the bytes of a bad line up to its end may have passed; nothing that was whole may differ.
			if n, cutErr := follow(&cut, data, piece); (cutErr == nil) != (err == nil) || err == nil && (n != good || cut.state != whole.state) {
				t.Fatalf("in pieces of %d: %d, %v, and whole: %d, %v", piece, n, cutErr, good, err)
			}
		}
		if err != nil || whole.state != frameStart {
			return
		}
		r := bufio.NewReader(bytes.NewReader(data))
		for {
			request, err := http.ReadRequest(r)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				return // net/http takes less
			}
			if len(request.TransferEncoding) > 0 && request.Header.Get("Content-Length") != "" {
				t.Fatal("two lengths")
			}
			if _, err := io.Copy(io.Discard, request.Body); err != nil {
				t.Fatalf("the body of a request that passed: %v", err)
			}
		}
	})
}
