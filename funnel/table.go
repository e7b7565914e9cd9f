package funnel

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// class is what a visitor came by. Whoever came by one never reaches what stands in another.
type class struct {
	public bool
	port   uint16
	name   string // of the server, as TLS or, without it, the URL has it; "" where there is none
	udp    bool
}

func (e Entry) class() class { return class{e.Public, e.Port, e.Name, e.Kind == kindUDP} }

// portClass is a class without its name.
type portClass struct {
	public bool
	port   uint16
	udp    bool
}

func (c class) portClass() portClass { return portClass{c.public, c.port, c.udp} }

// table is what is served: immutable.
type table struct {
	services map[class]*service
	aliases  map[class]class      // of http
	ports    map[portClass]string // kindHTTPS for all that starts with TLS
}

// service is an entry that is served.
type service struct {
	entry   Entry
	class   class
	tls     *tls.Config // for https and tls-terminated-tcp
	guard   *guard
	mounts  []*mount // the longest path first
	handler http.Handler
	target  target // of what is no web site
}

// errOver ends what is under way and may not go on.
var errOver = errors.New("it is not served any more")

// newTable checks entries one by one, and whether they can stand beside each other. What is as it was stays.
func (s *Server) newTable(entries []Entry, old *table) (*table, error) {
	if len(entries) > maxEntries {
		return nil, fmt.Errorf("%d entries: at most %d", len(entries), maxEntries)
	}
	t := &table{services: map[class]*service{}, aliases: map[class]class{}, ports: map[portClass]string{}}
	var errs []error
	for i, e := range entries {
		err := e.Check()
		if err == nil {
			err = t.place(e)
		}
		if err == nil {
			err = s.add(t, e, old)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("entries[%d]: %w", i, err))
		}
	}
	return t, errors.Join(errs...)
}

// place checks that an entry's place is free.
func (t *table) place(e Entry) error {
	c := e.class()
	kind := portKind(e.Kind)
	if other, ok := t.ports[c.portClass()]; ok && other != kind {
		return fmt.Errorf("port %d is one of %s already, and cannot be one of %s too", e.Port, other, e.Kind)
	}
	if t.services[c] != nil {
		return fmt.Errorf("port %d of %q is served already", e.Port, e.Name)
	}
	for _, alias := range e.Aliases {
		if addr, err := netip.ParseAddr(alias); err == nil {
			alias = addr.String() // an address of IPv6 can be written in many ways
		}
		a := class{public: e.Public, port: e.Port, name: alias}
		if _, ok := t.aliases[a]; ok || t.services[a] != nil {
			return fmt.Errorf("port %d of %q is served already", e.Port, alias)
		}
		t.aliases[a] = c
	}
	t.ports[c.portClass()] = kind
	return nil
}

// portKind is the kind of an entry, as far as it is known before a server's name is.
func portKind(kind string) string {
	if kind == kindTLS {
		return kindHTTPS
	}
	return kind
}

// add puts an entry into the table.
func (s *Server) add(t *table, e Entry, old *table) error {
	c := e.class()
	was := old.services[c]
	if was != nil && reflect.DeepEqual(was.entry, e) {
		t.services[c] = was
		return nil
	}
	one := &service{entry: e, class: c}
	if one.secured() {
		one.tls = s.tlsFor(c, e.Kind)
		if was != nil && was.entry.Kind == e.Kind {
			one.tls = was.tls // with its keys, by which sessions resume
		}
	}
	var err error
	if was != nil && was.entry.Kind == e.Kind && reflect.DeepEqual(was.entry.Access, e.Access) {
		one.guard = was.guard
	} else if one.guard, err = newGuard(e.Access, guardConfig{Name: e.Name, Port: e.Port, Kind: e.Kind, Shared: s.shared}); err != nil {
		return fmt.Errorf("access: %w", err)
	}
	if !one.web() {
		one.target, err = parseTarget(e.Target)
	} else {
		err = s.addMounts(one, was)
	}
	if err != nil {
		return err
	}
	one.handler = s.visits.wrap(one.label(), one.guard.wrap(http.HandlerFunc(one.route)))
	t.services[c] = one
	return nil
}

// addMounts makes what the mounts of a service stand for. One that is as it was keeps its connections to the target.
func (s *Server) addMounts(one, was *service) error {
	e := one.entry
	for i, m := range e.Mounts {
		if before := was.mount(m, e); before != nil {
			one.mounts = append(one.mounts, before)
			continue
		}
		made, err := s.newMount(e, m)
		if err != nil {
			return fmt.Errorf("mounts[%d]: %w", i, err)
		}
		one.mounts = append(one.mounts, made)
	}
	slices.SortFunc(one.mounts, func(a, b *mount) int { return len(b.Path) - len(a.Path) })
	return nil
}

// mount is the mount that is just like m in an entry like e, or nil.
func (s *service) mount(m Mount, e Entry) *mount {
	if s == nil || s.entry.Kind != e.Kind || s.entry.Owner != e.Owner || s.entry.ProxyProtocol != e.ProxyProtocol {
		return nil
	}
	for _, one := range s.mounts {
		if reflect.DeepEqual(one.Mount, m) {
			return one
		}
	}
	return nil
}

// tlsFor is how visitors of a name shake hands. Sessions resume where they began: each name has keys of its own for
// tickets, and a ticket holds the name too, since a wildcard has many.
func (s *Server) tlsFor(c class, kind string) *tls.Config {
	cfg := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: s.cfg.GetCertificate,
		// Of TLS 1.2 what is authenticated and has forward secrecy; TLS 1.3 has nothing else.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
	if cfg.GetCertificate == nil {
		cfg.GetCertificate = noCertificate
	}
	if kind == kindHTTPS {
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	keys := &tls.Config{}
	mark := func(state tls.ConnectionState) string {
		return fmt.Sprintf("meshdns %t %d %s", c.public, c.port, foldHost(state.ServerName))
	}
	cfg.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		session.Extra = append(session.Extra, []byte(mark(state)))
		return keys.EncryptTicket(state, session)
	}
	cfg.UnwrapSession = func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		session, err := keys.DecryptTicket(ticket, state)
		if err != nil || session == nil || len(session.Extra) == 0 || string(session.Extra[len(session.Extra)-1]) != mark(state) {
			return nil, err
		}
		return session, nil
	}
	return cfg
}

// find is the service of a class: by its name, or by a wildcard for one label more.
func (t *table) find(c class) *service {
	if one := t.services[c]; one != nil {
		return one
	}
	if to, ok := t.aliases[c]; ok {
		return t.services[to]
	}
	if _, parent, ok := strings.Cut(c.name, "."); ok {
		c.name = "*." + parent
		return t.services[c]
	}
	return nil
}

// keeps says whether a connection may stay open.
func (t *table) keeps(l *link, c class) bool {
	if l.kind == kindHTTP {
		return t.ports[c.portClass()] == kindHTTP
	}
	one := t.find(c)
	if one == nil || one.entry.Kind != l.kind {
		return false
	}
	return one.web() || reflect.DeepEqual(one.entry.Access, Access{}) || one.guard.allows(l.caller)
}

// retire closes what the services of the next table do not use any more.
func (t *table) retire(next *table) {
	used := map[*mount]bool{}
	for _, one := range next.services {
		for _, m := range one.mounts {
			used[m] = true
		}
	}
	for _, one := range t.services {
		for _, m := range one.mounts {
			if !used[m] && m.close != nil {
				m.close()
			}
		}
	}
}

func (s *service) web() bool { return isWeb(s.entry.Kind) }

func (s *service) secured() bool { return portKind(s.entry.Kind) == kindHTTPS }

// label is how the access log calls the entry.
func (s *service) label() string {
	if s.entry.Name == "" {
		return fmt.Sprintf("%s:%d", s.entry.Kind, s.entry.Port)
	}
	return fmt.Sprintf("%s:%d", s.entry.Name, s.entry.Port)
}

// keeps says whether a request that is being answered would be let in now.
func (s *service) keeps(f *flight) bool {
	was := f.mount.Load()
	if was == nil {
		return true // it asks just now
	}
	i := slices.IndexFunc(s.mounts, func(m *mount) bool { return m.Path == was.Path })
	if i < 0 {
		return false
	}
	now := s.mounts[i]
	if f.guard == s.guard && now.guard == was.guard {
		return true
	}
	if f.request == nil { // nobody had to show anything
		return s.guard.allows(f.link.caller) && !s.entry.Access.logsIn() &&
			(now.guard == nil || now.guard.allows(f.link.caller) && !now.Access.logsIn())
	}
	_, r := passageOf(f.request.Clone(withCaller(f.request.Context(), f.link.caller)))
	return s.guard.keeps(r, f.guard) && (now.guard == nil || now.guard.keeps(r, was.guard))
}
