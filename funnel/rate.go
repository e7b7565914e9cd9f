package funnel

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxRate    = 1_000_000
	maxClients = 65536 // whose use is known; about 6 MiB
)

// Rate is how much one client may: "10/s", "100/m", "1000/h", with how many at once ("10/s burst 50"; otherwise as many
// as in one second, minute or hour). The zero value is no limit.
type Rate struct {
	Count int           // in each Per
	Per   time.Duration // a second, a minute or an hour
	Burst int           // at once, after a rest; zero: Count
}

// rateUnits are what a Rate can be per.
var rateUnits = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}

// String is the text of the Rate; "" for no limit.
func (r Rate) String() string {
	for unit, per := range rateUnits {
		if r.Per != per || r.Count == 0 {
			continue
		}
		if r.Burst != 0 {
			return fmt.Sprintf("%d/%s burst %d", r.Count, unit, r.Burst)
		}
		return fmt.Sprintf("%d/%s", r.Count, unit)
	}
	return ""
}

// MarshalText writes the Rate as String does.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (r *Rate) UnmarshalText(text []byte) error {
	wrong := fmt.Errorf("rate %.40q is not like 10/s, 100/m, 1000/h or 10/s burst 50", text)
	if len(text) == 0 {
		*r = Rate{}
		return nil
	}
	if len(text) > maxWord {
		return wrong
	}
	words := strings.Fields(string(text))
	if len(words) != 1 && (len(words) != 3 || words[1] != "burst") {
		return wrong
	}
	count, unit, _ := strings.Cut(words[0], "/")
	n, err := strconv.Atoi(count)
	per, known := rateUnits[unit]
	if err != nil || !known {
		return wrong
	}
	read := Rate{Count: n, Per: per}
	if len(words) == 3 {
		if read.Burst, err = strconv.Atoi(words[2]); err != nil || read.Burst < 1 {
			return wrong
		}
	}
	if n < 1 || read.check() != nil {
		return wrong
	}
	*r = read
	return nil
}

func (r Rate) check() error {
	if r == (Rate{}) {
		return nil
	}
	if r.Count < 1 || r.Count > maxRate || r.Burst < 0 || r.Burst > maxRate {
		return fmt.Errorf("rate: numbers are from 1 to %d", maxRate)
	}
	if r.String() == "" {
		return errors.New("rate: is per second, minute or hour")
	}
	return nil
}

// limiter counts what clients do. A client that does nothing for a while has its burst again.
type limiter struct {
	rate  Rate
	each  time.Duration // that one thing takes from a client's time
	burst time.Duration // that a client may be ahead of its time

	mu    sync.Mutex
	ahead map[netip.Prefix]time.Time // until when a client has used its time up; who is not in it is at rest
	swept time.Time
}

func newLimiter(r Rate) *limiter {
	each := max(r.Per/time.Duration(max(r.Count, 1)), 1)
	return &limiter{
		rate:  r,
		each:  each,
		burst: each * time.Duration(cmp.Or(r.Burst, r.Count)),
		ahead: map[netip.Prefix]time.Time{},
	}
}

// take says whether a client may do one thing more, and otherwise when to come back.
func (l *limiter) take(client netip.Addr, now time.Time) (wait time.Duration, ok bool) {
	if l == nil {
		return 0, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := clientOf(client)
	if _, known := l.ahead[key]; !known && len(l.ahead) >= maxClients {
		if l.sweepLocked(now); len(l.ahead) >= maxClients {
			// So many are busy at once that no more can be told apart: the rest share one.
			key = netip.Prefix{}
		}
	}
	at := l.ahead[key]
	if at.Before(now) {
		at = now
	}
	at = at.Add(l.each)
	if wait = at.Sub(now) - l.burst; wait > 0 {
		return wait, false
	}
	l.ahead[key] = at
	return 0, true
}

// sweepLocked forgets the clients at rest, at most once a second, since it looks at all.
func (l *limiter) sweepLocked(now time.Time) {
	if now.Sub(l.swept) < time.Second {
		return
	}
	l.swept = now
	for key, at := range l.ahead {
		if !at.After(now) {
			delete(l.ahead, key)
		}
	}
}

// clientOf is what is taken for one client: an IPv4 address, or a /64 of IPv6.
func clientOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = prefixOfIPv6
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address: one client, too
	}
	return p
}

// seconds is a wait as Retry-After has it.
func seconds(d time.Duration) string {
	return strconv.Itoa(int(math.Ceil(max(d, time.Second).Seconds())))
}
