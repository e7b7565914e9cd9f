package funnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// helloOf are the first bytes that a client of crypto/tls sends.
func helloOf(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, config).Handshake() // which nobody answers
	}()
	header := make([]byte, recordHeader)
	if _, err := io.ReadFull(server, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(header[3])<<8|int(header[4]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	return append(header, body...)
}

func configFor(name string, protocols ...string) *tls.Config {
	return &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols}
}

// split cuts a record into records of n bytes.
func split(record []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(record[recordHeader:], n) {
		out = append(out, recordHandshake, 3, 1, byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestAHelloIsRead(t *testing.T) {
	whole := helloOf(t, configFor("Photos.Foo-Bar.example.org", "h2", "http/1.1"))
	behind := append(slices.Clone(whole), "early data"...)
	for name, data := range map[string][]byte{
		"in one record": whole, "in two": split(whole, len(whole)/2), "in many": split(whole, 7), "byte by byte": split(whole, 1),
		"with more behind it": behind,
	} {
		for how, r := range map[string]io.Reader{"at once": bytes.NewReader(data), "slowly": iotest.OneByteReader(bytes.NewReader(data))} {
			h, read, err := readHello(r)
			if err != nil || h.ServerName != "photos.foo-bar.example.org" || !slices.Equal(h.Protocols, []string{"h2", "http/1.1"}) {
				t.Errorf("%s, %s: %+v, %v", name, how, h, err)
			}
			if want := bytes.TrimSuffix(data, []byte("early data")); !bytes.Equal(read, want) {
				t.Errorf("%s, %s: %d bytes were taken, want %d", name, how, len(read), len(want))
			}
		}
	}
	if h, _, err := readHello(bytes.NewReader(helloOf(t, configFor("192.0.2.1")))); err != nil || h.ServerName != "" || h.Protocols != nil {
		t.Errorf("without a name: %+v, %v", h, err)
	}
}

// record frames a handshake message.
func record(message []byte) []byte {
	return append([]byte{recordHandshake, 3, 1, byte(len(message) >> 8), byte(len(message))}, message...)
}

// craft is a record with a ClientHello that has these extensions.
func craft(extensions string) []byte {
	body := "\x03\x03" + strings.Repeat("r", 32) + "\x00" + "\x00\x02\x13\x01" + "\x01\x00"
	if extensions != "" {
		body += string([]byte{byte(len(extensions) >> 8), byte(len(extensions))}) + extensions
	}
	return record(append([]byte{clientHello, 0, byte(len(body) >> 8), byte(len(body))}, body...))
}

// sni is the extension of a server name.
func sni(name string) string {
	n := len(name)
	return "\x00\x00" + string([]byte{0, byte(n + 5), 0, byte(n + 3), 0, 0, byte(n)}) + name
}

func TestOddHellos(t *testing.T) {
	long := strings.Repeat("a", 64)
	for name, tt := range map[string]struct {
		data []byte
		host string
		ok   bool
	}{
		"no extensions":        {craft(""), "", true},
		"a name":               {craft(sni("a.example")), "a.example", true},
		"a dot at its end":     {craft(sni("a.example.")), "a.example", true},
		"an underscore":        {craft(sni("_a.example")), "_a.example", true},
		"an address":           {craft(sni("192.0.2.1")), "", true},
		"a path":               {craft(sni("../etc/passwd")), "", true},
		"a line break":         {craft(sni("a.example\nb")), "", true},
		"a zero":               {craft(sni("a\x00b.example")), "", true},
		"an empty label":       {craft(sni("a..example")), "", true},
		"a long label":         {craft(sni(long + ".example")), "", true},
		"an empty name":        {craft(sni("")), "", false},
		"two extensions":       {craft(sni("a.example") + sni("b.example")), "", false},
		"two names":            {craft("\x00\x00\x00\x0a\x00\x08\x00\x00\x01a\x00\x00\x01b"), "", false},
		"another type of name": {craft("\x00\x00\x00\x0a\x00\x08\x07\x00\x01a\x00\x00\x01b"), "b", true},
		"an empty list":        {craft("\x00\x00\x00\x02\x00\x00"), "", false},
		"bytes behind a list":  {craft("\x00\x00\x00\x07\x00\x04\x00\x00\x01a!"), "", false},
		"an empty protocol":    {craft("\x00\x10\x00\x03\x00\x01\x00"), "", false},
		"no protocols":         {craft("\x00\x10\x00\x02\x00\x00"), "", false},
		"cut short":            {craft("\x00\x00\x00\xff"), "", false},
		"HTTP":                 {[]byte("GET / HTTP/1.1\r\n\r\n"), "", false},
		"SSH":                  {[]byte("SSH-2.0-x\r\n"), "", false},
		"SSL 2":                {[]byte("\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10"), "", false},
		"another message":      {record([]byte{2, 0, 0, 1, 0}), "", false},
		"an empty record":      {[]byte{recordHandshake, 3, 1, 0, 0, 1}, "", false},
		"a huge record":        {append([]byte{recordHandshake, 3, 1, 0xff, 0xff}, make([]byte, 1<<16)...), "", false},
		"a huge message":       {record([]byte{clientHello, 1, 0, 0, 0}), "", false},
		"something behind it":  {record(append(craft("")[recordHeader:], 1)), "", false},
		"many empty messages":  {bytes.Repeat(record([]byte{clientHello}), 10000), "", false},
		"an end within":        {craft(sni("a.example"))[:30], "", false},
	} {
		h, read, err := readHello(bytes.NewReader(tt.data))
		if (err == nil) != tt.ok || h.ServerName != tt.host {
			t.Errorf("%s: %q, %v", name, h.ServerName, err)
		}
		if len(read) > maxHello+recordHeader || !bytes.HasPrefix(tt.data, read) {
			t.Errorf("%s: %d bytes were taken, which are not the first ones", name, len(read))
		}
	}
}

// extension is one of a ClientHello.
func extension(kind uint16, data string) string {
	return string([]byte{byte(kind >> 8), byte(kind), byte(len(data) >> 8), byte(len(data))}) + data
}

// What browsers send besides must be passed over: reserved values that servers have to ignore (RFC 8701), an encrypted
// ClientHello, of which the outer name is the one that counts here (RFC 9849), and key shares of several KiB, which come in
// many packets and records.
func TestHellosOfBrowsers(t *testing.T) {
	inner := "\x00\x00\x01\x00\x01\x07\x00\x20" + strings.Repeat("k", 32) + "\x00\x90" + strings.Repeat("e", 0x90)
	names := sni("outer.example")
	protocols := extension(extALPN, "\x00\x0c\x02h2\x08http/1.1")
	grease := extension(0x0a0a, "") + extension(0x3a3a, "\x00")
	shares := extension(51, strings.Repeat("s", 1216+1568+2000)) // X25519MLKEM768, ML-KEM-1024 and what may come
	for name, tt := range map[string]struct{ extensions, host, protocols string }{
		"GREASE around the name":        {grease + names + extension(0xfafa, "x") + protocols, "outer.example", "h2 http/1.1"},
		"GREASE among the protocols":    {names + extension(extALPN, "\x00\x06\x02\x8a\x8a\x02h2"), "outer.example", "\x8a\x8a h2"},
		"GREASE twice":                  {names + extension(0x0a0a, "") + extension(0x0a0a, ""), "", ""},
		"an encrypted hello":            {extension(0xfe0d, inner) + names + protocols, "outer.example", "h2 http/1.1"},
		"an encrypted hello, no name":   {extension(0xfe0d, inner) + protocols, "", "h2 http/1.1"},
		"post-quantum key shares":       {shares + names + protocols, "outer.example", "h2 http/1.1"},
		"shares and tickets behind it":  {names + protocols + shares + extension(41, strings.Repeat("t", 4000)), "outer.example", "h2 http/1.1"},
		"as long as a hello may be":     {names + protocols + extension(21, strings.Repeat("\x00", maxHello-120)), "outer.example", "h2 http/1.1"},
		"longer than a hello may be":    {names + protocols + extension(21, strings.Repeat("\x00", maxHello)), "", ""},
		"a name in capitals with a dot": {sni("OUTER.Example."), "outer.example", ""},
	} {
		whole := craft(tt.extensions)
		for how, data := range map[string][]byte{"one record": whole, "records of 100": split(whole, 100), "records of 1400": split(whole, 1400)} {
			h, read, err := readHello(iotest.HalfReader(bytes.NewReader(data)))
			if h.ServerName != tt.host || strings.Join(h.Protocols, " ") != tt.protocols || (err == nil) != (tt.host+tt.protocols != "") {
				t.Errorf("%s, %s: %q %q, %v", name, how, h.ServerName, h.Protocols, err)
			}
			if err == nil && !bytes.Equal(read, data) {
				t.Errorf("%s, %s: %d bytes of %d are kept for the node", name, how, len(read), len(data))
			}
		}
	}
}

// recorded is a connection with bytes in it, and nobody behind.
type recorded struct {
	io.Reader
}

func (recorded) Write(p []byte) (int, error)      { return len(p), nil }
func (recorded) Close() error                     { return nil }
func (recorded) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (recorded) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (recorded) SetDeadline(time.Time) error      { return nil }
func (recorded) SetReadDeadline(time.Time) error  { return nil }
func (recorded) SetWriteDeadline(time.Time) error { return nil }

// Where crypto/tls reads a ClientHello too, both have read the same: the node behind must not see another name than the one
// that the connection was routed by.
func FuzzHello(f *testing.F) {
	f.Add(helloOf(f, configFor("a.example", "h2")))
	f.Add(split(helloOf(f, configFor("b.example")), 50))
	f.Add(craft(sni("a.example.")))
	f.Add(craft("\x00\x10\x00\x05\x00\x03\x02h2"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, read, err := readHello(bytes.NewReader(data))
		if len(read) > 2*maxHello || !bytes.HasPrefix(data, read) {
			t.Fatalf("%d bytes were taken, which are not the first ones", len(read))
		}
		if err != nil {
			return
		}
		var theirs *tls.ClientHelloInfo
		config := &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			theirs = info
			return nil, errors.New("enough")
		}}
		_ = tls.Server(recorded{bytes.NewReader(read)}, config).HandshakeContext(context.Background()) // "enough", or less
		if theirs == nil {
			return
		}
		// crypto/tls refuses a name with a dot at its end, which browsers send none of.
		if isHost(theirs.ServerName) && foldHost(theirs.ServerName) != h.ServerName || !isHost(theirs.ServerName) && h.ServerName != "" ||
			!slices.Equal(theirs.SupportedProtos, h.Protocols) {
			t.Errorf("%q %q; crypto/tls: %q %q", h.ServerName, h.Protocols, theirs.ServerName, theirs.SupportedProtos)
		}
	})
}
