package funnel

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// The bounds of an Entry.
const (
	maxEntries    = 1000
	maxMounts     = 64
	maxMountPath  = 1 << 10
	maxHeaderSets = 64
	maxAliases    = 16
)

// Entry is one thing that a node serves. It is data: files and the control socket carry it as JSON.
type Entry struct {
	Port   uint16 `json:"port"`           // the visitor's
	Kind   string `json:"kind"`           // https, http, tcp, tls-terminated-tcp or udp
	Name   string `json:"name,omitempty"` // the server's in full and in lower case, or *. and one; tcp and udp have none
	Public bool   `json:"public"`         // to the world, by a gateway; otherwise to the tailnet

	Aliases []string `json:"aliases,omitempty"` // http: other hosts of its URLs, a short name or an address
	Mounts  []Mount  `json:"mounts,omitempty"`  // https and http
	Target  string   `json:"target,omitempty"`  // the other kinds: port, host:port or unix:PATH

	// ProxyProtocol is the version of the PROXY header that a target gets first, for all kinds. 0: none.
	ProxyProtocol int `json:"proxyProtocol,omitempty"`

	Access Access `json:"access,omitzero"` // of the whole entry

	// Owner is the user who made the entry, by number. Files, directories and Unix sockets are opened with this user's
	// rights (ServerConfig.As), not with those of the daemon.
	Owner uint32 `json:"owner,omitempty"`
}

// Mount is a part of a web site: a path and all that is below it.
type Mount struct {
	Path string `json:"path"` // clean: "/" or "/x/y"; the longest that fits counts

	// Target is what the visitor gets: port, host:port, http://…, https://…, https+insecure://…, unix:PATH,
	// an absolute path of a file or a directory, text:…, or redirect:[3xx:]URL.
	Target string `json:"target"`

	Headers HeaderRules `json:"headers,omitzero"`

	// Of https targets: the name in the target's certificate where the URL has another, and the certificate's key, as
	// sha256//BASE64 of its SubjectPublicKeyInfo, which counts instead of a chain.
	TLSName string `json:"tlsName,omitempty"`
	TLSPin  string `json:"tlsPin,omitempty"`

	// Insecure has https+insecure:// mean any host, not this machine alone.
	Insecure bool `json:"insecure,omitempty"`

	// Wait is for how long a target may think before its answer starts. Zero: two minutes.
	Wait time.Duration `json:"wait,omitempty"`

	NoListing bool `json:"noListing,omitempty"` // of directories without an index.html
	Dotfiles  bool `json:"dotfiles,omitempty"`  // files whose names start with a dot are there too

	Access *Access `json:"access,omitempty"` // besides the entry's
}

// HeaderRules change what passes between visitor and target. Removing comes first.
type HeaderRules struct {
	Set            map[string]string `json:"set,omitempty"` // of the request
	Remove         []string          `json:"remove,omitempty"`
	ResponseSet    map[string]string `json:"responseSet,omitempty"`
	ResponseRemove []string          `json:"responseRemove,omitempty"`
}

// The kinds of entries.
const (
	kindHTTPS = "https"
	kindHTTP  = "http"
	kindTCP   = "tcp"
	kindTLS   = "tls-terminated-tcp"
	kindUDP   = "udp"
)

// errValue is a value of an entry that cannot be, with its place and what can.
type errValue struct {
	place, value string
	why          string
}

func (e *errValue) Error() string {
	value := e.value
	if len(value) > 100 {
		value = value[:100] + "…"
	}
	return fmt.Sprintf("%s %q: %s", e.place, value, e.why)
}

// Check says what of the entry cannot be, all of it, by value and place.
func (e Entry) Check() error {
	var errs []error
	if e.Port == 0 {
		errs = append(errs, &errValue{"port", "0", "a port is between 1 and 65535"})
	}
	switch e.Kind {
	case kindHTTPS, kindHTTP:
		errs = append(errs, e.checkWeb()...)
	case kindTCP, kindTLS, kindUDP:
		errs = append(errs, e.checkStream()...)
	default:
		errs = append(errs, &errValue{"kind", e.Kind, "it is https, http, tcp, tls-terminated-tcp or udp"})
	}
	if e.ProxyProtocol < 0 || e.ProxyProtocol > 2 {
		errs = append(errs, &errValue{"proxyProtocol", fmt.Sprint(e.ProxyProtocol), "it is 1 or 2, or 0 for none"})
	}
	if err := errors.Join(e.Access.Check(), e.Access.fits(e.Kind, e.Name)); err != nil {
		errs = append(errs, fmt.Errorf("access: %w", err))
	}
	return errors.Join(errs...)
}

// checkWeb checks what https and http have.
func (e Entry) checkWeb() (errs []error) {
	errs = append(errs, checkName(e.Name))
	if e.Kind == kindHTTP && e.Public {
		errs = append(errs, &errValue{"kind", e.Kind, "to the world there is https alone"})
	}
	if e.Target != "" {
		errs = append(errs, &errValue{"target", e.Target, "a web site has targets in its mounts"})
	}
	if n := len(e.Mounts); n == 0 || n > maxMounts {
		errs = append(errs, &errValue{"mounts", fmt.Sprint(n), fmt.Sprintf("a web site has between 1 and %d", maxMounts)})
	}
	if n := len(e.Aliases); n > maxAliases || n > 0 && e.Kind != kindHTTP {
		errs = append(errs, &errValue{"aliases", fmt.Sprint(n), fmt.Sprintf("http has %d at most, and other kinds none", maxAliases)})
	}
	for _, a := range e.Aliases {
		if _, err := netip.ParseAddr(a); err != nil && checkName(a) != nil {
			errs = append(errs, &errValue{"aliases", a, "it is a name in lower case or an address"})
		}
	}
	seen := map[string]bool{}
	for i, m := range e.Mounts {
		err := m.check()
		if m.Access != nil {
			if unfit := m.Access.fits(e.Kind, e.Name); unfit != nil {
				err = errors.Join(err, fmt.Errorf("access: %w", unfit))
			}
		}
		if seen[m.Path] {
			err = errors.Join(err, &errValue{"path", m.Path, "it is there twice"})
		}
		seen[m.Path] = true
		if err != nil {
			errs = append(errs, fmt.Errorf("mounts[%d]: %w", i, err))
		}
	}
	return errs
}

// checkStream checks what tcp, tls-terminated-tcp and udp have.
func (e Entry) checkStream() (errs []error) {
	switch {
	case e.Kind == kindTLS:
		errs = append(errs, checkName(e.Name))
	case e.Name != "":
		errs = append(errs, &errValue{"name", e.Name, "only what ends TLS or speaks HTTP knows names"})
	}
	if len(e.Mounts)+len(e.Aliases) != 0 {
		errs = append(errs, &errValue{"mounts", fmt.Sprint(len(e.Mounts)), "only https and http have mounts and aliases"})
	}
	t, err := parseTarget(e.Target)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("target: %w", err))
	case !t.isStream():
		errs = append(errs, &errValue{"target", e.Target, "it is a port, host:port or unix:PATH here"})
	case e.Kind == kindUDP && t.network == "unix":
		errs = append(errs, &errValue{"target", e.Target, "it is a port or host:port here"})
	}
	return errs
}

// check says what of a mount cannot be.
func (m Mount) check() error {
	var errs []error
	switch {
	case !strings.HasPrefix(m.Path, "/") || path.Clean(m.Path) != m.Path || strings.ContainsAny(m.Path, "\\?#%;\x00"):
		errs = append(errs, &errValue{"path", m.Path, "it starts with / and has no empty parts, dots or escapes"})
	case len(m.Path) > maxMountPath:
		errs = append(errs, &errValue{"path", m.Path, fmt.Sprintf("it has more than %d bytes", maxMountPath)})
	}
	t, err := parseTarget(m.Target)
	if err != nil {
		errs = append(errs, fmt.Errorf("target: %w", err))
	} else if err := m.checkTLS(t); err != nil {
		errs = append(errs, err)
	}
	if m.Wait < 0 {
		errs = append(errs, &errValue{"wait", m.Wait.String(), "it is not below zero"})
	}
	if err := m.Headers.check(); err != nil {
		errs = append(errs, fmt.Errorf("headers: %w", err))
	}
	if m.Access != nil {
		if err := m.Access.Check(); err != nil {
			errs = append(errs, fmt.Errorf("access: %w", err))
		}
	}
	return errors.Join(errs...)
}

// checkTLS holds who may be spoken to without knowing who it is: this machine, what is pinned, and what is forced.
func (m Mount) checkTLS(t target) error {
	if !t.tls && (m.TLSName != "" || m.TLSPin != "" || m.Insecure) {
		return &errValue{"target", m.Target, "tlsName, tlsPin and insecure are for https targets"}
	}
	if m.TLSPin != "" {
		if _, err := parsePin(m.TLSPin); err != nil {
			return err
		}
	}
	if m.TLSName != "" && checkName(m.TLSName) != nil {
		return &errValue{"tlsName", m.TLSName, "it is a name in lower case"}
	}
	if t.insecure && !t.local() && m.TLSPin == "" && !m.Insecure {
		return &errValue{"target", m.Target, "another machine's certificate has to be checked: give tlsPin, or insecure to do without"}
	}
	return nil
}

// check says which header rules cannot be: what frames messages is the connection's, and what tells who came is ours.
func (h HeaderRules) check() error {
	if len(h.Set)+len(h.Remove)+len(h.ResponseSet)+len(h.ResponseRemove) > maxHeaderSets {
		return fmt.Errorf("more than %d rules", maxHeaderSets)
	}
	var errs []error
	for _, set := range []map[string]string{h.Set, h.ResponseSet} {
		for name, value := range set {
			errs = append(errs, checkHeaderName(name))
			if !httpguts.ValidHeaderFieldValue(value) {
				errs = append(errs, &errValue{"value of " + name, value, "it has characters that no header has"})
			}
		}
	}
	for _, name := range slices.Concat(h.Remove, h.ResponseRemove) {
		errs = append(errs, checkHeaderName(name))
	}
	for name := range h.Set {
		if isOurs(name) {
			errs = append(errs, &errValue{"header", name, "it says who came, and that is not for a rule to say"})
		}
	}
	return errors.Join(errs...)
}

func checkHeaderName(name string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return &errValue{"header", name, "it is no name of a header"}
	}
	if isFraming(http.CanonicalHeaderKey(name)) {
		return &errValue{"header", name, "it belongs to the connection"}
	}
	return nil
}

// checkName says whether a name is one of a host, in full or not, in lower case; the first label may be *.
func checkName(name string) error {
	rest := strings.TrimPrefix(name, "*.")
	if !isHost(rest) || rest != foldHost(rest) {
		return &errValue{"name", name, "it is a host's name in lower case, such as nas.foo-bar.example.org"}
	}
	return nil
}
