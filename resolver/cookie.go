package resolver

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/miekg/dns"
)

// Cookies (RFC 7873) tell a client that has shown where it is from one that others pretend to be. Server cookies are
// made as RFC 9018 says, so that several gateways with one secret take each other's.
const (
	clientCookieSize = 8
	serverCookieSize = 16
	minServerCookie  = 8 // of other servers' making (RFC 7873, 4)
	maxServerCookie  = 32
	// cookieOption is the length of the option that answers carry.
	cookieOption = 4 + clientCookieSize + serverCookieSize

	cookieVersion = 1
	// The ages of a server cookie, in seconds (RFC 9018, 4.3).
	cookieOld    = 1800 // it is replaced from then on
	cookieDead   = 3600
	cookieFuture = 300 // what clocks of gateways may differ
	// secretLife is how long a drawn secret is used, in seconds. The one before is taken for as long as a cookie lives.
	secretLife = 24 * 3600
)

// cookieState says what a query's cookie is worth.
type cookieState uint8

const (
	cookieNone   cookieState = iota
	cookieBad                // of a length that there is not: FORMERR (RFC 7873, 5.2.2)
	cookieClient             // a client cookie; the server cookie is missing, false or too old
	cookieValid              // the client is where its address says
)

// cookie is that of one query, and then that of its answer.
type cookie struct {
	state  cookieState
	client [clientCookieSize]byte
	server [serverCookieSize]byte
}

// read takes the first COOKIE from the options of a query, which are whole. It reports whether it came with a server
// cookie that could be ours. Further ones are ignored (RFC 7873, 5.2).
func (c *cookie) read(options []byte) (ours bool) {
	c.state = cookieNone
	for len(options) >= 4 {
		n := int(binary.BigEndian.Uint16(options[2:]))
		data := options[4 : 4+n]
		if binary.BigEndian.Uint16(options) != dns.EDNS0COOKIE {
			options = options[4+n:]
			continue
		}
		server := n - clientCookieSize
		if server != 0 && (server < minServerCookie || server > maxServerCookie) {
			c.state = cookieBad
			return false
		}
		c.state = cookieClient
		copy(c.client[:], data)
		return server == serverCookieSize && copy(c.server[:], data[clientCookieSize:]) > 0
	}
	return false
}

// append appends the option that answers carry.
func (c *cookie) append(msg []byte) []byte {
	msg = binary.BigEndian.AppendUint16(msg, dns.EDNS0COOKIE)
	msg = binary.BigEndian.AppendUint16(msg, clientCookieSize+serverCookieSize)
	msg = append(msg, c.client[:]...)
	return append(msg, c.server[:]...)
}

// hash is what a server cookie ends in. Version, reserved octets and timestamp are taken as they stand in it.
func (c *cookie) hash(secret *[16]byte, from netip.Addr) (sum [8]byte) {
	var in [clientCookieSize + 8 + 16]byte
	n := copy(in[:], c.client[:])
	n += copy(in[n:], c.server[:8])
	if from.Is4() {
		a := from.As4()
		n += copy(in[n:], a[:])
	} else {
		a := from.As16()
		n += copy(in[n:], a[:])
	}
	binary.LittleEndian.PutUint64(sum[:], sipHash(secret, in[:n]))
	return sum
}

// cookieJar makes server cookies and knows its own.
type cookieJar struct {
	drawn bool // the secret is drawn here, and replaced now and then
	keys  atomic.Pointer[cookieKeys]
	mu    sync.Mutex // of the replacement
}

// cookieKeys are the secret in use and the one before.
type cookieKeys struct {
	now, before [16]byte
	since       uint32 // in Unix seconds
}

// newCookieJar makes one; a zero secret is drawn.
func newCookieJar(secret [16]byte, now uint32) *cookieJar {
	j := &cookieJar{drawn: secret == [16]byte{}}
	if j.drawn {
		secret = randomSecret()
	}
	j.keys.Store(&cookieKeys{now: secret, before: secret, since: now})
	return j
}

func randomSecret() (secret [16]byte) {
	_, _ = rand.Read(secret[:]) // never fails (crypto/rand)
	return secret
}

// current returns the secrets, with a new one if it is time.
func (j *cookieJar) current(now uint32) *cookieKeys {
	k := j.keys.Load()
	if !j.drawn || now-k.since < secretLife {
		return k
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if k = j.keys.Load(); now-k.since >= secretLife {
		k = &cookieKeys{now: randomSecret(), before: k.now, since: now}
		j.keys.Store(k)
	}
	return k
}

// judge reads the cookie in the options of a query from an address, and makes c the cookie of the answer: the same one,
// or a new one if that is false, old or missing. Times are in Unix seconds and wrap (RFC 1982).
func (j *cookieJar) judge(c *cookie, options []byte, from netip.Addr, now uint32) {
	ours := c.read(options)
	if c.state != cookieClient {
		return
	}
	k := j.current(now)
	if ours && c.server[0] == cookieVersion {
		age := int32(now - binary.BigEndian.Uint32(c.server[4:]))
		if age <= cookieDead && age >= -cookieFuture {
			switch {
			case c.madeWith(&k.now, from):
				c.state = cookieValid
				if age <= cookieOld {
					return
				}
			case j.drawn && c.madeWith(&k.before, from):
				c.state = cookieValid
			}
		}
	}
	c.server = [serverCookieSize]byte{cookieVersion}
	binary.BigEndian.PutUint32(c.server[4:], now)
	sum := c.hash(&k.now, from)
	copy(c.server[8:], sum[:])
}

func (c *cookie) madeWith(secret *[16]byte, from netip.Addr) bool {
	sum := c.hash(secret, from)
	return subtle.ConstantTimeCompare(sum[:], c.server[8:]) == 1
}
