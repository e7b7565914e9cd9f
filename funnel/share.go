package funnel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	tokenBytes = 32
	maxToken   = 64
	idLength   = 8
)

// NewShare makes a link that can be taken until a time, and its token, which is nowhere else. What it opens and for how
// long can be set in it afterwards.
func NewShare(until time.Time) (s Share, token string) {
	token = random(tokenBytes)
	hash := hashToken(token)
	return Share{ID: hash[:idLength], Hash: hash, Until: until}, token
}

// ShareLink is the address that takes a share of the entry, or of the mount at a path.
func (e Entry) ShareLink(mount, token string) string {
	return siteOf(e.Name, e.Port) + ownPath(mount) + "share/" + token
}

// siteOf is the address of a name's pages, as browsers write it.
func siteOf(name string, port uint16) string {
	if port == 443 {
		return "https://" + name
	}
	return fmt.Sprintf("https://%s:%d", name, port)
}

// hashToken is what is kept of a token. It is random and long, so that one round is enough.
func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

func checkShares(list []Share) error {
	if len(list) > maxShares {
		return fmt.Errorf("shares: there are %d, more than %d", len(list), maxShares)
	}
	var errs []error
	ids, hashes := map[string]bool{}, map[string]bool{}
	for i, s := range list {
		err := s.check()
		if ids[s.ID] || hashes[s.Hash] {
			err = errors.Join(err, errors.New("is there twice"))
		}
		ids[s.ID], hashes[s.Hash] = true, true
		if err != nil {
			errs = append(errs, fmt.Errorf("shares[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

func (s Share) check() error {
	hash, err := hex.DecodeString(s.Hash)
	switch {
	case s.ID == "" || len(s.ID) > 32 || strings.Trim(s.ID, "0123456789abcdefghijklmnopqrstuvwxyz") != "":
		return fmt.Errorf("id %.40q: is not 1 to 32 small letters and digits", s.ID)
	case err != nil || len(hash) != sha256.Size || s.Hash != strings.ToLower(s.Hash):
		return errors.New("hash: is no SHA-256 in hexadecimal")
	case s.Until.IsZero():
		return errors.New("until: a link has to end")
	case s.Lifetime < 0 || s.Lifetime > maxLifetime:
		return fmt.Errorf("lifetime: %s is not between 0 and %s", s.Lifetime, maxLifetime)
	}
	if s.Path != "" {
		if err := checkPath(s.Path); err != nil {
			return fmt.Errorf("path: %q: %w", s.Path, err)
		}
	}
	return nil
}

// lifetime is how long its taker stays in.
func (s Share) lifetime() time.Duration {
	if s.Lifetime > 0 {
		return s.Lifetime
	}
	return sessionTime
}

// opens says whether what a share opens has a path in it.
func (s Share) opens(path string) bool {
	return s.Path == "" || !ambiguous(path) && covers(s.Path, path)
}

// shareGuard lets in who has taken a link.
type shareGuard struct {
	cfg    guardConfig
	byHash map[string]Share
	byID   map[string]Share
	start  string // where who has taken a link goes that opens all
	sealer sealer
}

func newShareGuard(list []Share, cfg guardConfig) (*shareGuard, error) {
	s, err := newSealer(cfg.Shared.secrets().key, cfg, "share")
	if err != nil {
		return nil, err
	}
	g := &shareGuard{cfg: cfg, byHash: map[string]Share{}, byID: map[string]Share{}, sealer: s}
	g.start = strings.TrimSuffix(cfg.Mount, "/") + "/"
	for _, share := range list {
		g.byHash[share.Hash], g.byID[share.ID] = share, share
	}
	return g, nil
}

// owns says whether a cookie is one of this guard's.
func (g *shareGuard) owns(cookie string) bool { return strings.HasPrefix(cookie, g.sealer.cookie("")) }

// session is as whom a browser with these cookies has come in for a path. It ends with the share in the list.
func (g *shareGuard) session(cookies map[string]string, path string, now time.Time) (login, bool) {
	for name, value := range cookies {
		id, ours := strings.CutPrefix(name, g.sealer.cookie(""))
		share, exists := g.byID[id]
		var l login
		if !ours || !exists || !share.opens(path) || g.sealer.open("share "+share.Hash, value, &l) != nil {
			continue
		}
		if l.Way == "share" && now.Unix() < l.Until {
			return l, true
		}
	}
	return login{}, false
}

// serve answers a link. Only a POST takes it: programs that look into links, and browsers that fetch ahead, do not send
// one.
func (g *shareGuard) serve(w http.ResponseWriter, r *http.Request, token string, c Caller) {
	gone := notice{Status: http.StatusNotFound, Title: "This link does not work", Text: "It was taken already, has ended, or is not whole. Ask for another one."}
	share, exists := Share{}, false
	if len(token) <= maxToken {
		share, exists = g.byHash[hashToken(token)]
	}
	if !exists {
		if wait, ok := g.cfg.Shared.takeTry(c.Addr.Addr()); !ok {
			turnAway(w, r, &errTooMany{wait})
			return
		}
		gone.write(w, r)
		return
	}
	p, r := passageOf(r)
	goOn := share.Path
	if goOn == "" {
		goOn = g.start
	}
	if _, in := g.session(p.cookies, goOn, time.Now()); in {
		sendOn(w, r, goOn)
		return
	}
	switch {
	case !share.Spent.IsZero() || !time.Now().Before(share.Until) || g.cfg.Shared.wasSpent(share):
		gone.write(w, r)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		notice{
			Status: http.StatusOK, Title: "You were given a link", Button: "Open",
			Text: "It works once, for the browser that opens it.",
		}.write(w, r)
	case r.Method == http.MethodPost:
		g.take(w, r, share, goOn)
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		notice{Status: http.StatusMethodNotAllowed, Title: "Method not allowed", Text: "This method may not be used here."}.write(w, r)
	}
}

// take spends a link and lets its browser in.
func (g *shareGuard) take(w http.ResponseWriter, r *http.Request, share Share, goOn string) {
	now := time.Now()
	share.Spent = now
	switch err := g.cfg.Shared.spend(r.Context(), g.cfg.Name, share); {
	case errors.Is(err, errSpent):
		notice{Status: http.StatusNotFound, Title: "This link does not work", Text: "It was taken already."}.write(w, r)
		return
	case err != nil:
		turnAway(w, r, err)
		return
	}
	until := now.Add(share.lifetime())
	value, err := g.sealer.seal("share "+share.Hash, login{Way: "share", User: share.ID, Until: until.Unix()})
	if err != nil {
		turnAway(w, r, err)
		return
	}
	setCookie(w, g.sealer.cookie(share.ID), value, share.lifetime())
	sendOn(w, r, goOn)
}

// errSpent says that somebody was faster.
var errSpent = errors.New("the link was taken already")

// spend takes a link, once, over all guards that have it. What cannot be noted down is not taken.
func (g *guards) spend(ctx context.Context, name string, s Share) error {
	g.mu.Lock()
	if g.spent[s.Hash] {
		g.mu.Unlock()
		return errSpent
	}
	if g.spent == nil {
		g.spent = map[string]bool{}
	}
	g.spent[s.Hash] = true
	g.mu.Unlock()
	if g.Spend == nil {
		return nil
	}
	// Whoever hangs up meanwhile has taken it all the same.
	if err := g.Spend(context.WithoutCancel(ctx), name, s); err != nil {
		g.mu.Lock()
		delete(g.spent, s.Hash)
		g.mu.Unlock()
		g.logger().Warn("a share link could not be noted down as taken, so it was not", "id", s.ID, "err", err)
		return fmt.Errorf("noting down that share %s was taken: %w", s.ID, err)
	}
	return nil
}

func (g *guards) wasSpent(s Share) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.spent[s.Hash]
}
