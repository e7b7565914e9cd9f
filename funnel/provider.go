package funnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	providerTime  = 15 * time.Second // for one question to a provider
	providerRest  = 10 * time.Second // after one that failed
	providerFresh = 24 * time.Hour   // until its description is fetched again; its keys are whenever a new one appears
	maxProvider   = 1 << 20          // bytes of an answer
	maxSources    = 1024
	maxClaims     = 1000
)

// oidcSource is a provider, and its description once it was fetched.
type oidcSource struct {
	issuer string
	asking chan struct{} // holds one while somebody asks

	mu    sync.Mutex
	found *oidc.Provider
	err   error
	next  time.Time // when to ask again
}

// source is the provider of an issuer: one for all guards that have it.
func (g *guards) source(issuer string) *oidcSource {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.sources[issuer]; s != nil {
		return s
	}
	if g.sources == nil || len(g.sources) >= maxSources {
		g.sources = map[string]*oidcSource{}
	}
	s := &oidcSource{issuer: issuer, asking: make(chan struct{}, 1)}
	g.sources[issuer] = s
	return s
}

// known is what is known of the provider, and whether to go by it without asking.
func (s *oidcSource) known() (found *oidc.Provider, err error, settled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.found, s.err, time.Now().Before(s.next)
}

// provider is the provider's description. One that did not answer is left alone for a while, and one that is known
// stays in use when it does not.
func (s *oidcSource) provider(ctx context.Context, g *guards) (*oidc.Provider, error) {
	found, err, settled := s.known()
	if settled && found != nil {
		return found, nil
	}
	if settled {
		return nil, err
	}
	select {
	case s.asking <- struct{}{}:
	default:
		if found != nil {
			return found, nil // somebody looks already whether it has changed
		}
		select {
		case s.asking <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer func() { <-s.asking }()
	if found, err, settled = s.known(); !settled {
		// Who asks may hang up; the others want the answer all the same.
		s.ask(context.WithoutCancel(ctx), g)
		found, err, _ = s.known()
	}
	if found != nil {
		return found, nil
	}
	return nil, err
}

// ask fetches the description.
func (s *oidcSource) ask(ctx context.Context, g *guards) {
	ctx, cancel := context.WithTimeout(ctx, providerTime)
	defer cancel()
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, g.client()), s.issuer)
	if err == nil {
		err = checkEndpoints(found, s.issuer)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.err, s.next = fmt.Errorf("asking %s: %w", s.issuer, err), time.Now().Add(providerRest)
		return
	}
	s.found, s.err, s.next = found, nil, time.Now().Add(providerFresh)
}

// checkEndpoints refuses a description that would send secrets in the clear.
func checkEndpoints(p *oidc.Provider, issuer string) error {
	for _, text := range []string{p.Endpoint().AuthURL, p.Endpoint().TokenURL} {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname()) || !strings.HasPrefix(issuer, "http://")) {
			return fmt.Errorf("its description has %.100q where an https URL should be", text)
		}
	}
	return nil
}

// client speaks with providers: bounded, and without following them anywhere else.
func (g *guards) client() *http.Client {
	c := http.Client{Transport: http.DefaultTransport}
	if g.Client != nil {
		c = *g.Client
	}
	if c.Transport == nil {
		c.Transport = http.DefaultTransport
	}
	c.Transport = boundedTransport{c.Transport}
	c.Timeout = providerTime
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// boundedTransport bounds answers: the library reads them whole.
type boundedTransport struct{ http.RoundTripper }

func (b boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{resp.Body, maxProvider}
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser

	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer has more than %d bytes", maxProvider)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func (g *guards) logger() *slog.Logger {
	if g.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return g.Log
}

// plain is an error of a provider's without what it said: codes and tokens may be in that (S21).
func plain(err error) error {
	var retrieve *oauth2.RetrieveError
	if errors.As(err, &retrieve) {
		status := 0
		if retrieve.Response != nil {
			status = retrieve.Response.StatusCode
		}
		return fmt.Errorf("redeeming the code: the provider answered %d %.40q", status, retrieve.ErrorCode)
	}
	var opErr *net.OpError
	if errors.As(err, &opErr) {
		return opErr
	}
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		return urlErr.Err
	}
	return err
}

// claims is what a provider tells about somebody.
type claims struct {
	Mail     string       `json:"email"`
	Verified looseBool    `json:"email_verified"`
	Groups   looseStrings `json:"groups"`
}

// login is who it is. A mail address that the provider has not verified can be anybody's.
func (c claims) login(subject string, unproved bool) login {
	l := login{Way: "oidc", ID: subject, Groups: c.Groups}
	if (bool(c.Verified) || unproved) && checkMail(c.Mail) == nil && !strings.HasPrefix(c.Mail, "@") {
		l.Mail = c.Mail
	}
	return l
}

// looseBool is true for true and "true": some providers write all claims as text.
type looseBool bool

// UnmarshalJSON reads one.
func (b *looseBool) UnmarshalJSON(text []byte) error {
	*b = string(text) == "true" || string(text) == `"true"`
	return nil
}

// looseStrings is a list, or its only value.
type looseStrings []string

// UnmarshalJSON reads one; whatever is no text is left out.
func (s *looseStrings) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil && one != "" {
		*s = looseStrings{one}
		return nil
	}
	var many []any
	if json.Unmarshal(text, &many) != nil {
		return nil // no groups
	}
	*s = nil
	for _, v := range many[:min(len(many), maxClaims)] {
		if word, ok := v.(string); ok {
			*s = append(*s, word)
		}
	}
	return nil
}
