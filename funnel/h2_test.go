package funnel

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames speaks HTTP/2 frame by frame, as no client does.
type frames struct {
	*h2.Framer

	t    *testing.T
	out  bytes.Buffer
	enc  *hpack.Encoder
	next uint32
}

func (w *world) frames(t *testing.T, addr, name string) *frames {
	t.Helper()
	conn, err := w.handshake(addr, &tls.Config{ServerName: name, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, h2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := &frames{Framer: h2.NewFramer(conn, conn), t: t, next: 1}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.enc = hpack.NewEncoder(&f.out)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// ask sends headers in this order, and a body if there is one. It returns the status, or 0 for a reset or an end.
func (f *frames) ask(body string, headers ...string) int {
	f.t.Helper()
	f.out.Reset()
	for i := 0; i < len(headers); i += 2 {
		if err := f.enc.WriteField(hpack.HeaderField{Name: headers[i], Value: headers[i+1]}); err != nil {
			f.t.Fatal(err)
		}
	}
	id := f.next
	f.next += 2
	err := f.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: f.out.Bytes(), EndHeaders: true, EndStream: body == ""})
	if err == nil && body != "" {
		err = f.WriteData(id, true, []byte(body))
	}
	if err != nil {
		f.t.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		var broken h2.StreamError
		switch {
		case errors.As(err, &broken):
			f.t.Fatal(err)
		case err != nil:
			return 0
		}
		switch frame := frame.(type) {
		case *h2.MetaHeadersFrame:
			if frame.StreamID == id {
				status, _ := strconv.Atoi(frame.PseudoValue("status"))
				return status
			}
		case *h2.RSTStreamFrame:
			if frame.StreamID == id {
				return 0
			}
		case *h2.GoAwayFrame:
			return 0
		}
	}
}

func TestHTTP2IsTakenByTheLetter(t *testing.T) {
	w := newWorld(t)
	var last atomic.Pointer[http.Request]
	to := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil { // it is whole
			last.Store(r)
		}
	})
	w.set(site("https", "a.example", 443, false, to), site("https", "b.example", 443, false, to))
	addr := w.tailnet(443)
	request := func(more ...string) []string {
		return append([]string{":method", "POST", ":scheme", "https", ":authority", "a.example", ":path", "/"}, more...)
	}
	if got := w.frames(t, addr, "a.example").ask("abc", request("content-length", "3")...); got != 200 || last.Load() == nil {
		t.Fatalf("a request as it should be: %d", got)
	}
	for name, test := range map[string]struct {
		body    string
		headers []string
	}{
		"another host beside":         {"", request("host", "b.example")},
		"two hosts beside":            {"", request("host", "a.example", "host", "b.example")},
		"another authority":           {"", []string{":method", "GET", ":scheme", "https", ":authority", "b.example", ":path", "/"}},
		"no authority, another host":  {"", []string{":method", "GET", ":scheme", "https", ":path", "/", "host", "b.example"}},
		"no authority":                {"", []string{":method", "GET", ":scheme", "https", ":path", "/"}},
		"an authority with a user":    {"", []string{":method", "GET", ":scheme", "https", ":authority", "x@a.example", ":path", "/"}},
		"a coding":                    {"0\r\n\r\n", request("transfer-encoding", "chunked")},
		"a connection":                {"", request("connection", "x-forwarded-for")},
		"an upgrade":                  {"", request("upgrade", "websocket")},
		"more than its length":        {"abc", request("content-length", "1")},
		"less than its length":        {"abc", request("content-length", "10")},
		"two lengths":                 {"abc", request("content-length", "3", "content-length", "10")},
		"a line end in a value":       {"", request("x", "a\r\nHost: b.example")},
		"a line end in a name":        {"", request("x: y\r\nz", "a")},
		"a colon in a name":           {"", request("x:y", "a")},
		"capitals in a name":          {"", request("Transfer-Encoding", "chunked")},
		"a line end in the path":      {"", []string{":method", "GET", ":scheme", "https", ":authority", "a.example", ":path", "/ HTTP/1.1\r\nHost: b.example\r\n\r\nGET /"}},
		"a space in the path":         {"", []string{":method", "GET", ":scheme", "https", ":authority", "a.example", ":path", "/ HTTP/1.1"}},
		"a line end in the method":    {"", []string{":method", "GET / HTTP/1.1\r\nX", ":scheme", "https", ":authority", "a.example", ":path", "/"}},
		"a line end in the authority": {"", []string{":method", "GET", ":scheme", "https", ":authority", "a.example\r\nX: y", ":path", "/"}},
		"a URL in the path":           {"", []string{":method", "GET", ":scheme", "https", ":authority", "a.example", ":path", "https://b.example/"}},
		"a path that is none":         {"", []string{":method", "GET", ":scheme", "https", ":authority", "a.example", ":path", "*"}},
		"dots in the path":            {"", []string{":method", "GET", ":scheme", "https", ":authority", "a.example", ":path", "/x/../y"}},
		"a tunnel":                    {"", []string{":method", "CONNECT", ":authority", "a.example"}},
		"a WebSocket in HTTP/2":       {"", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a.example", ":path", "/"}},
		"two paths":                   {"", request(":path", "/other")},
		"a late path":                 {"", []string{":method", "GET", ":scheme", "https", ":authority", "a.example", "x", "y", ":path", "/"}},
	} {
		t.Run(name, func(t *testing.T) {
			last.Store(nil)
			got := w.frames(t, addr, "a.example").ask(test.body, test.headers...)
			if got == 200 || last.Load() != nil {
				t.Errorf("%d, and the target has got it: %v", got, last.Load() != nil)
			}
		})
	}
}

func TestStreamsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.set(site("https", "a.example", 443, false, "text:a"))
	f := w.frames(t, w.tailnet(443), "a.example")
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		settings, ok := frame.(*h2.SettingsFrame)
		if !ok || settings.IsAck() {
			continue
		}
		if got, ok := settings.Value(h2.SettingMaxConcurrentStreams); !ok || got != maxStreams {
			t.Errorf("%d streams", got)
		}
		if got, ok := settings.Value(h2.SettingMaxHeaderListSize); !ok || got > 2*maxHead {
			t.Errorf("%d bytes of headers", got)
		}
		if got, ok := settings.Value(h2.SettingMaxFrameSize); ok && got != maxFrame {
			t.Errorf("%d bytes of a frame", got)
		}
		break
	}
	// One byte more ends the connection (RFC 9113, section 4.2).
	if err := f.WriteRawFrame(h2.FrameHeaders, h2.FlagHeadersEndHeaders, f.next, make([]byte, maxFrame+1)); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if away, ok := frame.(*h2.GoAwayFrame); ok {
			if away.ErrCode != h2.ErrCodeFrameSize {
				t.Error(away.ErrCode)
			}
			return
		}
	}
}
