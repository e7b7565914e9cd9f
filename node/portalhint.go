package node

import (
	"bytes"
	"encoding/hex"
	"net/url"
	"strings"
	"time"
)

// A network tells the address of its portal in DHCP and in router advertisements (RFC 8910), which only the program that
// asked for the lease hears. What these programs write down is read here: it comes from outside, so all of it is bounded,
// and what is odd is left out.

// maxLease is the size in bytes up to which a file of a DHCP client is read, from its end.
const maxLease = 1 << 16

// maxPortalURI is what DHCP can carry in one option.
const maxPortalURI = 255

// portalHint is what the network says of itself.
type portalHint struct {
	announced bool
	uri       string // where to sign in; empty: not said
}

// portalURI is what may be shown of an address that the network gave: an absolute one of the web, in printable ASCII.
func portalURI(s string) (string, bool) {
	s = strings.TrimRight(s, "\x00") // some servers end it like a C string
	if s == "" || len(s) > maxPortalURI {
		return "", false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' || strings.IndexByte("\"'`<>\\", c) >= 0 {
			return "", false
		}
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return "", false
	}
	return s, true
}

// hintOfURI is the hint that an option makes. "urn:ietf:params:capport:unrestricted" says that there is no portal
// (RFC 8910, 2); nor does what cannot be read say that there is one.
func hintOfURI(s string) portalHint {
	uri, ok := portalURI(s)
	return portalHint{announced: ok, uri: uri}
}

// parseNetworkd reads what systemd-networkd, 254 and later, says of a link in its file of NAME=VALUE lines.
func parseNetworkd(data []byte) portalHint {
	for line := range bytes.Lines(data) {
		value, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "CAPTIVE_PORTAL=")
		if !ok {
			continue
		}
		if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
			value = value[1 : n-1]
		}
		if h := hintOfURI(value); h.announced {
			return h
		}
	}
	return portalHint{}
}

// parseDhclient reads ISC dhclient's leases: the last one of the link counts, and only while it lasts. The option's name
// is that of newer and older versions, or its number where it has none.
func parseDhclient(data []byte, link string, now time.Time) portalHint {
	var last, lease dhclientLease
	for line := range bytes.Lines(data) {
		words := strings.Fields(strings.TrimSuffix(strings.TrimSpace(string(line)), ";"))
		switch {
		case len(words) == 0:
		case words[0] == "lease" || words[0] == "lease6":
			lease = dhclientLease{}
		case words[0] == "}":
			if lease.link == link {
				last = lease
			}
		default:
			lease.take(words)
		}
	}
	if !last.until.IsZero() && now.After(last.until) {
		return portalHint{}
	}
	return hintOfURI(last.uri)
}

// dhclientLease is what counts of a lease.
type dhclientLease struct {
	link, uri string
	until     time.Time // zero: it says nothing, or "never"
}

// take reads one line of a lease.
func (l *dhclientLease) take(words []string) {
	switch {
	case len(words) == 2 && words[0] == "interface":
		l.link = strings.Trim(words[1], `"`)
	case len(words) == 4 && words[0] == "expire": // expire 3 2026/11/25 14:00:00
		l.until, _ = time.Parse("2006/01/02 15:04:05", words[2]+" "+words[3])
	case len(words) == 3 && words[0] == "option":
		switch words[1] {
		case "v4-captive-portal", "default-url":
			l.uri = strings.Trim(words[2], `"`)
		case "unknown-114":
			l.uri = colonHex(words[2])
		}
	}
}

// colonHex reads octets as 68:74:74:70, or the text itself where dhclient found it printable and quoted it.
func colonHex(s string) string {
	if strings.HasPrefix(s, `"`) {
		return strings.Trim(s, `"`)
	}
	var out []byte
	for digits := range strings.SplitSeq(s, ":") {
		octet, err := hex.DecodeString(strings.Repeat("0", len(digits)%2) + digits)
		if err != nil || len(octet) != 1 || len(out) > maxPortalURI {
			return ""
		}
		out = append(out, octet[0])
	}
	return string(out)
}
