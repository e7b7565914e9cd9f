package node

import (
	"errors"
	"fmt"
	"net"
	pathlib "path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshdns/meshdns/funnel"
)

// kindHTTP is a kind of what the tailnet is served; the others can be shown to the world as well.
const kindHTTP = "http"

// maxServed bounds what one node serves: paths, and ports without paths.
const maxServed = 256

// Where something that is served was asked for.
const (
	fromCommand    = "background" // kept in the state directory
	fromForeground = "foreground" // lives with the command
	fromConfig     = "configuration"
)

// served is one thing that this node serves: a path of a name at a port, or all of a port.
type served struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`          // server name in full; empty only for tcp and udp
	Own    bool   `json:"own,omitempty"` // that is this node's, whatever it is by now
	Port   uint16 `json:"port"`          // the visitor's
	Public bool   `json:"public"`
	Path   string `json:"path,omitempty"` // of https and http
	Target string `json:"target"`

	ProxyProtocol int                 `json:"proxy_protocol,omitempty"`
	Headers       *funnel.HeaderRules `json:"headers,omitempty"`
	TLSName       string              `json:"tls_name,omitempty"` // that the target's certificate is for
	TLSPin        string              `json:"tls_pin,omitempty"`
	Insecure      bool                `json:"insecure,omitempty"` // an unverified target anywhere
	Access        *funnel.Access      `json:"access,omitempty"`
	Domain        bool                `json:"domain,omitempty"` // a name of the user's own zone
	Until         time.Time           `json:"until,omitzero"`
	Owner         uint32              `json:"owner,omitempty"` // the user who may open the target; 0: as this process may

	from string // fromCommand and so on
	at   string // the place in the configuration
}

// class is what a connection is for before its first byte is read (S13).
type class struct {
	public bool
	port   uint16
	name   string
	udp    bool
}

func (s served) class() class { return class{s.Public, s.Port, s.Name, s.Kind == kindUDP} }

// web reports whether it is HTTP, with paths.
func (s served) web() bool { return s.Kind == kindHTTPS || s.Kind == kindHTTP }

// secure reports whether TLS ends here, which takes a certificate.
func (s served) secure() bool { return s.Kind == kindHTTPS || s.Kind == kindTLS }

// same reports whether two are one place: what is asked for again replaces what was there.
func (s served) same(o served) bool { return s.class() == o.class() && s.Path == o.Path }

// url is the address for whoever comes.
func (s served) url() string {
	host := s.Name
	scheme, usual := s.Kind, uint16(0)
	switch s.Kind {
	case kindHTTPS:
		usual = 443
	case kindHTTP:
		usual = 80
	case kindTLS:
		scheme = "tls"
	}
	if host == "" {
		host = "*"
	}
	if s.Port != usual {
		host = net.JoinHostPort(host, strconv.Itoa(int(s.Port)))
	}
	if s.web() {
		return scheme + "://" + host + s.Path
	}
	return scheme + "://" + host
}

// fill gives what was left out its usual value, and says what makes no sense by itself.
func (s *served) fill() error {
	if s.Kind == "" {
		s.Kind = kindHTTPS
	}
	if s.Port == 0 {
		usual := map[string]uint16{kindHTTPS: 443, kindHTTP: 80}[s.Kind]
		if usual == 0 {
			return hinted(ErrBadRequest, fmt.Errorf("%s needs a port", s.Kind), "")
		}
		s.Port = usual
	}
	s.Name = foldName(s.Name)
	switch {
	case s.web() && s.Path != "" && s.Path[0] != '/':
		return hinted(ErrBadRequest, fmt.Errorf("the path %q is not one such as /photos", s.Path), "")
	case !s.web() && s.Path != "":
		return hinted(ErrBadRequest, fmt.Errorf("a path at a port of %s", s.Kind), "paths are for --https and --http")
	case s.Public && s.Kind == kindHTTP:
		return hinted(ErrBadRequest, errors.New("HTTP without TLS is not for the world"), "use --https; the gateway's port 80 leads there by itself")
	case !s.Public && s.Kind == kindUDP:
		return hinted(ErrBadRequest, errors.New("datagrams are not served to the tailnet"), "nodes reach a program's own port, as policy lets them")
	case s.Target == "":
		return hinted(ErrBadRequest, errors.New("nothing to serve"), "name a target, such as 3000 or /srv/www")
	}
	if s.web() {
		s.Path = pathlib.Clean("/" + s.Path)
	}
	return nil
}

// sortServed puts what is served into the order that it is told in.
func sortServed(list []served) {
	slices.SortStableFunc(list, func(a, b served) int {
		switch {
		case a.Name != b.Name:
			return strings.Compare(a.Name, b.Name)
		case a.Port != b.Port:
			return int(a.Port) - int(b.Port)
		case a.Public != b.Public:
			return map[bool]int{true: -1, false: 1}[a.Public]
		}
		return strings.Compare(a.Path, b.Path)
	})
}

// clash says why two things cannot both be served; nil: they can.
func clash(s, other served) error {
	if s.Public != other.Public || s.Port != other.Port || (s.Kind == kindUDP) != (other.Kind == kindUDP) {
		return nil
	}
	where := ""
	if other.from == fromConfig {
		where = " by the configuration (" + other.at + ")"
	}
	off := "meshdns serve off --" + other.Kind + " " + strconv.Itoa(int(other.Port))
	if other.Public {
		off = strings.Replace(off, "serve", "funnel", 1)
	}
	switch {
	case s.same(other):
		return hinted(nil, fmt.Errorf("%s is served already%s: %s", other.url(), where, other.Target), "end that first: "+off)
	case s.secure() != other.secure() || s.Kind != other.Kind && s.Name == other.Name:
		return hinted(nil, fmt.Errorf("port %d is served already%s as %s", s.Port, where, other.url()), "take another port, or end that first: "+off)
	case s.class() == other.class() && s.Owner != other.Owner:
		return hinted(nil, fmt.Errorf("%s is served already%s by another user", other.url(), where), "")
	case s.class() == other.class() && s.ProxyProtocol != other.ProxyProtocol:
		return hinted(nil, fmt.Errorf("%s is served already%s with another --proxy-protocol", other.url(), where), "give the same for all paths")
	case !s.secure() && s.Kind != kindHTTP && s.Name != other.Name:
		return hinted(nil, fmt.Errorf("port %d is served already%s as %s", s.Port, where, other.url()), "a port without TLS is for one target alone")
	}
	return nil
}

// entriesOf are the entries for the server: the paths of a name at a port belong together.
func entriesOf(list []served) []funnel.Entry {
	var entries []funnel.Entry
	index := map[class]int{}
	for _, s := range list {
		i, ok := index[s.class()]
		if !ok {
			i = len(entries)
			index[s.class()] = i
			entries = append(entries, funnel.Entry{Port: s.Port, Kind: s.Kind, Name: s.Name, Public: s.Public, ProxyProtocol: s.ProxyProtocol, Owner: s.Owner})
		}
		e := &entries[i]
		if !s.web() {
			e.Target = s.Target
			if s.Access != nil {
				e.Access = *s.Access
			}
			continue
		}
		m := funnel.Mount{Path: s.Path, Target: s.Target, TLSName: s.TLSName, TLSPin: s.TLSPin, Insecure: s.Insecure, Access: s.Access}
		if s.Headers != nil {
			m.Headers = *s.Headers
		}
		e.Mounts = append(e.Mounts, m)
	}
	nameShortly(entries)
	return entries
}

// nameShortly has plain HTTP answer to http://nas:8080/ too, which programs of the tailnet write with its search domain. The
// first of a name has it: one in a domain of the user's own may start alike.
func nameShortly(entries []funnel.Entry) {
	taken := map[class]bool{}
	for _, e := range entries {
		taken[class{public: e.Public, port: e.Port, name: e.Name}] = true
	}
	for i, e := range entries {
		label, _, _ := strings.Cut(e.Name, ".")
		short := class{public: e.Public, port: e.Port, name: label}
		if e.Kind != kindHTTP || label == "*" || taken[short] {
			continue
		}
		taken[short] = true
		entries[i].Aliases = []string{label}
	}
}
