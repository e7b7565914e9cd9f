package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/miekg/dns"
)

// exchanger asks one server over connections that it keeps.
type exchanger interface {
	// exchange sends a query, a whole message, and returns the whole response. Its ID and question are those of the
	// query, but for the case of letters. It ends with ctx at the latest, and may be called at the same time.
	exchange(ctx context.Context, query []byte) ([]byte, error)
	// close ends all connections and waits until nothing is left running. Later calls of exchange fail.
	close()
}

// resolveFunc looks up the addresses of an upstream's host. It must not ask our own listeners, nor the operating
// system, which asks us.
type resolveFunc func(ctx context.Context, name string) ([]netip.Addr, error)

// newExchanger returns the exchanger for u: over HTTPS or TLS as it says, over TCP for plain upstreams. It opens
// nothing.
func (r *Resolver) newExchanger(u Upstream) exchanger {
	if u.kind == upstreamHTTPS {
		return newDoH(u, r.rootCAs, r.resolve)
	}
	return newStream(u, r.rootCAs, r.resolve)
}

// Errors of an exchange.
var (
	errNoQuestion = errors.New("query has no question")
	errNoResponse = errors.New("server sent something else than a response")
	errMismatch   = errors.New("server answered another question")
)

// questionEnd returns the offset behind the question of a message that has one, without pointers.
func questionEnd(msg []byte) (int, error) {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return 0, errNoQuestion
	}
	end := skipName(msg, headerSize)
	if end < 0 || end+4 > len(msg) || msg[end-1] != 0 {
		return 0, errNoQuestion
	}
	return end + 4, nil
}

// matchResponse returns the response msg to a query whose question is given as it was sent, and checks that it is
// one.
func matchResponse(question, msg []byte) ([]byte, error) {
	if len(msg) < headerSize || msg[2]&(flagQR>>8) == 0 {
		return nil, errNoResponse
	}
	end := headerSize + len(question)
	switch questions := binary.BigEndian.Uint16(msg[4:]); {
	case questions == 1 && len(msg) >= end && sameQuestion(question, msg[headerSize:end]):
		return msg, nil
	case questions == 0 && isBareError(msg):
		// So say old servers FORMERR or REFUSED. The reader gets the question that the error belongs to.
		out := append(msg[:headerSize:headerSize], question...)
		clear(out[4:headerSize])
		out[5] = 1
		return out, nil
	}
	return nil, errMismatch
}

// isBareError reports whether msg is an error and brings no records.
func isBareError(msg []byte) bool {
	rcode := msg[3] & rcodeMask
	return rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError && binary.BigEndian.Uint32(msg[6:]) == 0
}

// sameQuestion compares two questions of equal length, names without regard to case. Type and class are compared
// as they are: type 65 is not type 97.
func sameQuestion(a, b []byte) bool {
	name := len(a) - 4
	for i, c := range a[:name] {
		if c != b[i] && (c|0x20 != b[i]|0x20 || c|0x20-'a' >= 26) {
			return false
		}
	}
	return string(a[name:]) == string(b[name:])
}

// paddingBlock is what the length of an encrypted query is a multiple of (RFC 8467, 4.1).
const paddingBlock = 128

// padQuery appends EDNS padding (RFC 7830) to a query, so that its length tells less of the name. A query without
// OPT, with padding already, or with something behind its OPT record, such as a signature, stays as it is.
func padQuery(msg []byte) []byte {
	opt, err := questionEnd(msg)
	if err != nil || binary.BigEndian.Uint32(msg[6:]) != 0 || binary.BigEndian.Uint16(msg[10:]) != 1 {
		return msg
	}
	if len(msg) < opt+optSize || msg[opt] != 0 || binary.BigEndian.Uint16(msg[opt+1:]) != dns.TypeOPT {
		return msg
	}
	options := msg[opt+optSize:]
	size := int(binary.BigEndian.Uint16(msg[opt+9:]))
	if size != len(options) || !validOptions(options) || hasOption(options, dns.EDNS0PADDING) {
		return msg
	}
	pad := -(len(msg) + 4) & (paddingBlock - 1)
	if len(msg)+4+pad > dns.MaxMsgSize {
		return msg
	}
	binary.BigEndian.PutUint16(msg[opt+9:], uint16(size+4+pad))
	msg = binary.BigEndian.AppendUint16(msg, dns.EDNS0PADDING)
	msg = binary.BigEndian.AppendUint16(msg, uint16(pad))
	return append(msg, make([]byte, pad)...)
}

// hasOption reports whether valid options hold one with the code.
func hasOption(options []byte, code uint16) bool {
	for len(options) > 0 {
		if binary.BigEndian.Uint16(options) == code {
			return true
		}
		options = options[4+binary.BigEndian.Uint16(options[2:]):]
	}
	return false
}
