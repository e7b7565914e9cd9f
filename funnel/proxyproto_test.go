package funnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/pires/go-proxyproto"
)

// aHeader is a header of now.
func aHeader() header {
	return header{
		visitor: netip.MustParseAddrPort("192.0.2.7:40000"), gateway: netip.MustParseAddrPort("203.0.113.5:443"),
		name: "nas.example", port: 443, kind: kindHTTPS, nonce: newNonce(time.Now()),
	}
}

// sealed is a header under nas's key.
func sealed(t testing.TB, h header) []byte {
	t.Helper()
	raw, err := h.seal(testKey("nas"))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestAHeaderComesBackAsItWas(t *testing.T) {
	v6, whole, pulse := aHeader(), aHeader(), header{pulse: true, nonce: newNonce(time.Now())}
	v6.visitor, v6.gateway = netip.MustParseAddrPort("[2001:db8::7]:40000"), netip.MustParseAddrPort("[2001:db8::5]:443")
	whole.name, whole.kind = "", kindTCP
	for name, h := range map[string]header{"IPv4": aHeader(), "IPv6": v6, "a whole port": whole, "a pulse": pulse} {
		raw := sealed(t, h)
		read, err := readHeader(iotest.OneByteReader(bytes.NewReader(append(slices.Clone(raw), "what follows"...))))
		if err != nil || !bytes.Equal(read, raw) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(read), len(raw), err)
			continue
		}
		if got, err := parseHeader(read); err != nil || got != h {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, h)
		}
		if !sealedBy(testKey("nas"), read) || sealedBy(testKey("tv"), read) || sealedBy(nil, read) {
			t.Errorf("%s: the MAC is not the key's", name)
		}
	}
}

// Another program that speaks the protocol reads the same of it: a capture in a tunnel can be looked at.
func TestAHeaderIsOneOfTheProtocol(t *testing.T) {
	raw := sealed(t, aHeader())
	want := "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11"
	if !strings.HasPrefix(string(raw), want) || int(binary.BigEndian.Uint16(raw[14:]))+16 != len(raw) ||
		!bytes.Equal(raw[16:28], []byte{192, 0, 2, 7, 203, 0, 113, 5, 40000 >> 8, 40000 & 0xff, 1, 443 & 0xff}) ||
		string(raw[28+3+nonceLength:][:14]) != "\x02\x00\x0bnas.example" {
		t.Errorf("%q", raw)
	}
}

func TestEveryByteOfAHeaderIsUnderTheMAC(t *testing.T) {
	raw := sealed(t, aHeader())
	for i := range raw {
		changed := slices.Clone(raw)
		changed[i] ^= 1
		if read, err := readHeader(bytes.NewReader(changed)); err == nil && sealedBy(testKey("nas"), read) {
			t.Errorf("byte %d can be another", i)
		}
	}
}

func TestHeadersThatAreNone(t *testing.T) {
	good := sealed(t, aHeader())
	// with is a header with these values, under nas's key.
	with := func(command proxyproto.ProtocolVersionAndCommand, tlvs ...proxyproto.TLV) []byte {
		p := proxyproto.HeaderProxyFromAddrs(2, tcpAddr(aHeader().visitor), tcpAddr(aHeader().gateway))
		p.Command = command
		if err := p.SetTLVs(tlvs); err != nil {
			t.Fatal(err)
		}
		raw, err := p.Format()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	tlv := func(kind proxyproto.PP2Type, value string) proxyproto.TLV {
		return proxyproto.TLV{Type: kind, Value: []byte(value)}
	}
	n := newNonce(time.Now())
	at, mac := tlv(tlvNonce, string(n[:])), tlv(tlvMAC, strings.Repeat("m", 32))
	port, kind := tlv(tlvPort, "\x01\xbb"), tlv(tlvKind, "https")
	if _, err := parseHeader(with(proxyproto.PROXY, at, port, kind, tlv(0xef, "newer"), mac)); err != nil {
		t.Fatal("with something that is not known: ", err)
	}
	for name, raw := range map[string][]byte{
		"nothing":               nil,
		"cut in the fixed part": good[:10],
		"cut behind it":         good[:40],
		"TLS":                   helloOf(t, configFor("nas.example")),
		"HTTP":                  []byte("GET / HTTP/1.1\r\nHost: nas.example\r\n\r\n"),
		"version 1":             []byte("PROXY TCP4 192.0.2.7 203.0.113.5 40000 443\r\n"),
		"a length of 64 KiB":    append(slices.Clone(good[:14]), bytes.Repeat([]byte{0xff}, 1<<16)...),
		"another family":        append(append(slices.Clone(good[:13]), 0x31), good[14:]...),
		"another command":       append(append(slices.Clone(good[:12]), 0x22), good[13:]...),
		"no values":             with(proxyproto.PROXY),
		"no MAC":                with(proxyproto.PROXY, at, port, kind),
		"a short MAC":           with(proxyproto.PROXY, at, port, kind, tlv(tlvMAC, "short")),
		"the MAC first":         with(proxyproto.PROXY, mac, at, port, kind),
		"two MACs":              with(proxyproto.PROXY, at, port, kind, mac, mac),
		"no nonce":              with(proxyproto.PROXY, port, kind, mac),
		"a short nonce":         with(proxyproto.PROXY, tlv(tlvNonce, "short"), port, kind, mac),
		"a long nonce":          with(proxyproto.PROXY, tlv(tlvNonce, string(n[:])+"x"), port, kind, mac),
		"two ports":             with(proxyproto.PROXY, at, port, port, kind, mac),
		"a port of three bytes": with(proxyproto.PROXY, at, tlv(tlvPort, "443"), kind, mac),
		"no kind":               with(proxyproto.PROXY, at, port, mac),
		"an empty kind":         with(proxyproto.PROXY, at, port, tlv(tlvKind, ""), mac),
		"a long kind":           with(proxyproto.PROXY, at, port, tlv(tlvKind, strings.Repeat("k", 33)), mac),
		"a name with a break":   with(proxyproto.PROXY, at, port, kind, tlv(tlvName, "a\r\nb"), mac),
		"a name in capitals":    with(proxyproto.PROXY, at, port, kind, tlv(tlvName, "NAS.example"), mac),
		"a value past the end":  append(slices.Clone(good[:len(good)-34]), 0xff, 0xff),
		"addresses in a pulse":  with(proxyproto.LOCAL, at, mac),
	} {
		read, err := readHeader(bytes.NewReader(raw))
		if err == nil {
			_, err = parseHeader(read)
		}
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := aHeader().seal([]byte("short")); err == nil {
		t.Error("a key of five bytes is taken")
	}
}

// What is read is within bounds, and what is taken for a header says the same when it is written again.
func FuzzProxyHeader(f *testing.F) {
	f.Add(sealed(f, aHeader()))
	f.Add(sealed(f, header{pulse: true, nonce: newNonce(time.Now())}))
	f.Add([]byte("PROXY TCP4 192.0.2.7 203.0.113.5 40000 443\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := readHeader(bytes.NewReader(data))
		if err != nil {
			return
		}
		if len(raw) > maxHeader || !bytes.HasPrefix(data, raw) {
			t.Fatalf("%d bytes were taken, which are not the first ones", len(raw))
		}
		h, err := parseHeader(raw)
		if err != nil {
			return
		}
		if len(h.name) > maxHost || h.name != "" && !isHost(h.name) || len(h.kind) > maxKind {
			t.Errorf("%+v", h)
		}
		if h.visitor.Addr().Is6() != h.gateway.Addr().Is6() {
			return // one is IPv4 in IPv6: no gateway writes that
		}
		again, err := h.seal(testKey("nas"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseHeader(again); err != nil || got != h {
			t.Errorf("%+v, %v; want %+v", got, err, h)
		}
	})
}
