package funnel

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// The bounds of password hashes. One that is cheaper to try than these is no help once it is stolen; one that is dearer
// lets visitors use this machine up: four of them run at once.
const (
	maxHashing    = 4
	maxHashQueue  = 64              // that wait for one of the four
	hashWait      = 3 * time.Second // for one of the four
	minMemory     = 7168            // KiB; OWASP's smallest
	maxMemory     = 128 << 10       // KiB
	maxPasses     = 10
	maxThreads    = 16
	minCost       = 10
	maxCost       = 14
	maxPassword   = 1024
	bcryptLength  = 72 // bytes that bcrypt looks at
	knownTime     = 10 * time.Minute
	maxKnown      = 4096
	ownMemory     = 19456 // KiB, with two passes: OWASP's first choice
	ownPasses     = 2
	saltLength    = 16
	argonLength   = 32
	maxHashLength = 512
)

// HashPassword is the hash of a password for Basic.Users: argon2id, in the PHC format.
func HashPassword(password string) (string, error) {
	if password == "" || len(password) > maxPassword {
		return "", fmt.Errorf("a password has 1 to %d bytes", maxPassword)
	}
	salt := make([]byte, saltLength)
	_, _ = rand.Read(salt) // it never fails
	sum := argon2.IDKey([]byte(password), salt, ownPasses, ownMemory, 1, argonLength)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, ownMemory, ownPasses, b64.EncodeToString(salt), b64.EncodeToString(sum)), nil
}

// passwordHash is a hash that was read: argon2id's parts, or bcrypt's text.
type passwordHash struct {
	bcrypt          []byte
	memory, passes  uint32
	threads         uint8
	salt, argon2sum []byte
}

// parseHash reads a hash of argon2id or bcrypt, and refuses what is too cheap or too dear.
func parseHash(text string) (passwordHash, error) {
	if len(text) > maxHashLength {
		return passwordHash{}, errors.New("the hash is too long")
	}
	if strings.HasPrefix(text, "$2") {
		return parseBcrypt(text)
	}
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v=19" {
		return passwordHash{}, errors.New("is no hash of argon2id (version 19) or bcrypt")
	}
	h, err := parseArgon2Costs(parts[3])
	if err != nil {
		return passwordHash{}, err
	}
	b64 := base64.RawStdEncoding.Strict()
	var errSalt, errSum error
	h.salt, errSalt = b64.DecodeString(parts[4])
	h.argon2sum, errSum = b64.DecodeString(parts[5])
	if errSalt != nil || errSum != nil || len(h.salt) < 8 || len(h.salt) > 64 || len(h.argon2sum) < 16 || len(h.argon2sum) > 64 {
		return passwordHash{}, errors.New("salt or sum of the argon2id hash is not base64 of a usual length")
	}
	return h, nil
}

// parseArgon2Costs reads "m=19456,t=2,p=1".
func parseArgon2Costs(text string) (h passwordHash, err error) {
	costs := map[string]uint64{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(part, "=")
		n, err := strconv.ParseUint(value, 10, 32)
		if _, twice := costs[name]; err != nil || twice || !slices.Contains([]string{"m", "t", "p"}, name) {
			return h, errors.New("the costs of the argon2id hash are not like m=19456,t=2,p=1")
		}
		costs[name] = n
	}
	m, t, p := costs["m"], costs["t"], costs["p"]
	if m < minMemory || m > maxMemory || t < 1 || t > maxPasses || p < 1 || p > maxThreads {
		return h, fmt.Errorf("the costs of the argon2id hash are not within m=%d to %d, t=1 to %d, p=1 to %d", minMemory, maxMemory, maxPasses, maxThreads)
	}
	return passwordHash{memory: uint32(m), passes: uint32(t), threads: uint8(p)}, nil
}

func parseBcrypt(text string) (passwordHash, error) {
	cost, err := bcrypt.Cost([]byte(text))
	if err != nil || len(text) != 60 || !slices.Contains([]string{"$2a$", "$2b$", "$2y$"}, text[:4]) {
		return passwordHash{}, errors.New("is no hash of bcrypt")
	}
	if cost < minCost || cost > maxCost {
		return passwordHash{}, fmt.Errorf("the cost %d of the bcrypt hash is not within %d to %d (htpasswd -B -C %d)", cost, minCost, maxCost, minCost)
	}
	return passwordHash{bcrypt: []byte(text)}, nil
}

// matches computes the hash of a password and compares.
func (h passwordHash) matches(password string) bool {
	if h.bcrypt != nil {
		// What bcrypt does not look at must not count as right.
		return len(password) <= bcryptLength && bcrypt.CompareHashAndPassword(h.bcrypt, []byte(password)) == nil
	}
	sum := argon2.IDKey([]byte(password), h.salt, h.passes, h.memory, h.threads, uint32(len(h.argon2sum)))
	return subtle.ConstantTimeCompare(sum, h.argon2sum) == 1
}

func (b *Basic) check() error {
	if len(b.Users) == 0 || len(b.Users) > maxUsers {
		return fmt.Errorf("basic.users: there are %d, not 1 to %d", len(b.Users), maxUsers)
	}
	var errs []error
	if strings.ContainsFunc(b.Realm, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) || len(b.Realm) > maxWord {
		errs = append(errs, fmt.Errorf("basic.realm: %.40q: has quotes or signs beyond ASCII, or is too long", b.Realm))
	}
	for _, name := range slices.Sorted(maps.Keys(b.Users)) {
		if err := checkWord(name); err != nil {
			errs = append(errs, fmt.Errorf("basic.users: %q: %w", name, err))
			continue
		}
		if strings.Contains(name, ":") {
			errs = append(errs, fmt.Errorf("basic.users: %q: has a colon in it, at which browsers would end it", name))
		}
		if _, err := parseHash(b.Users[name]); err != nil {
			errs = append(errs, fmt.Errorf("basic.users: %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// passwords checks names and passwords for one guard.
type passwords struct {
	realm  string
	users  map[string]passwordHash
	dummy  passwordHash // computed for a name that is not there, so that it takes the same time
	shared *guards
}

func newPasswords(b *Basic, realm string, shared *guards) (*passwords, error) {
	p := &passwords{realm: realm, users: map[string]passwordHash{}, shared: shared}
	for _, name := range slices.Sorted(maps.Keys(b.Users)) {
		hash, err := parseHash(b.Users[name])
		if err != nil {
			return nil, fmt.Errorf("reading the hash of %s: %w", name, err)
		}
		p.users[name], p.dummy = hash, hash
	}
	return p, nil
}

// challenge is what browsers ask a name and a password for.
func (p *passwords) challenge() string {
	return fmt.Sprintf(`Basic realm="%s", charset="UTF-8"`, p.realm)
}

var (
	errWrongPassword = errors.New("no such name and password")
	errHashesBusy    = errors.New("too many passwords are being checked")
)

// check says whether a name and its password are right. Only what is not known to be right already is computed, and a
// client's tries are counted before.
func (p *passwords) check(ctx context.Context, client netip.Addr, name, password string) error {
	if len(name) > maxWord || password == "" || len(password) > maxPassword {
		return errWrongPassword
	}
	hash, exists := p.users[name]
	if !exists {
		hash = p.dummy
	}
	key := p.shared.knownKey(name, password, hash)
	if exists && p.shared.isKnown(key) {
		return nil
	}
	if wait, ok := p.shared.takeTry(client); !ok {
		return &errTooMany{wait}
	}
	done, err := p.shared.startHash(ctx)
	if err != nil {
		return err
	}
	defer done()
	// A browser sends its first requests all at once: the others need not be computed again.
	if exists && p.shared.isKnown(key) {
		return nil
	}
	if !hash.matches(password) || !exists {
		return errWrongPassword
	}
	p.shared.know(key)
	return nil
}

// knownKey is what a right password is remembered by: it is of no use outside of this process.
func (g *guards) knownKey(name, password string, hash passwordHash) [32]byte {
	mac := hmac.New(sha256.New, g.secrets().known)
	writeParts(mac, name, password, string(hash.bcrypt), string(hash.salt), string(hash.argon2sum))
	return [32]byte(mac.Sum(nil))
}

func (g *guards) isKnown(key [32]byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Now().Before(g.known[key])
}

func (g *guards) know(key [32]byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if len(g.known) >= maxKnown {
		maps.DeleteFunc(g.known, func(_ [32]byte, until time.Time) bool { return !now.Before(until) })
	}
	if g.known == nil || len(g.known) >= maxKnown {
		g.known = map[[32]byte]time.Time{} // they are computed once more
	}
	g.known[key] = now.Add(knownTime)
}

// startHash waits for one of the four places, not long, and not in a long queue.
func (g *guards) startHash(ctx context.Context) (done func(), err error) {
	s := g.secrets()
	select {
	case s.queue <- struct{}{}:
		defer func() { <-s.queue }()
	default:
		return nil, errHashesBusy
	}
	timer := time.NewTimer(hashWait)
	defer timer.Stop()
	select {
	case s.hashing <- struct{}{}:
		return func() { <-s.hashing }, nil
	case <-timer.C:
		return nil, errHashesBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// basicAuth is what a request says by Authorization: Basic, and whether it does at all.
func basicAuth(authorization string) (name, password string, ok bool) {
	r := http.Request{Header: http.Header{"Authorization": {authorization}}}
	return r.BasicAuth()
}
