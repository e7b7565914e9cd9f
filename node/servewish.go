package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshdns/meshdns/certs"
	"github.com/meshdns/meshdns/funnel"
)

// serveRequest asks for something to be served.
type serveRequest struct {
	Public bool   `json:"public"`
	Kind   string `json:"kind"`   // empty: https
	Port   uint16 `json:"port"`   // 0: the kind's usual one
	Name   string `json:"name"`   // service name; empty: this node's
	Domain string `json:"domain"` // a name of the user's own zone instead
	Path   string `json:"path"`
	Target string `json:"target"`

	ProxyProtocol int             `json:"proxy_protocol"`
	Allow         []string        `json:"allow"`
	Deny          []string        `json:"deny"`
	Rate          string          `json:"rate"`
	Access        json.RawMessage `json:"access,omitempty"` // the rest of the rules
	SetHeaders    []string        `json:"set_headers"`      // NAME: VALUE
	RemoveHeaders []string        `json:"remove_headers"`
	TLSName       string          `json:"tls_name"`
	TLSPin        string          `json:"tls_pin"`
	Insecure      bool            `json:"insecure"`

	Background bool          `json:"background"`
	For        time.Duration `json:"for"` // 0: until it is ended
}

// maxFor bounds how far ahead an end can be set.
const maxFor = 10 * 365 * 24 * time.Hour

// wish is what a request asks for, as far as it says that itself. Its name may have to be got first.
func (n *Node) wish(req serveRequest) (served, error) {
	s, err := req.served()
	if err != nil {
		return s, err
	}
	if s.Kind == kindTCP || s.Kind == kindUDP {
		if req.Name+req.Domain != "" {
			return s, hinted(ErrBadRequest, fmt.Errorf("a name at a port of %s, which knows none", s.Kind), "names are for --https, --http and --tls-terminated-tcp")
		}
		return s, s.fill()
	}
	m, _ := n.tailnet.current()
	s.Name, s.Domain, err = n.servedName(m, req.Name, req.Domain)
	s.Own = req.Name+req.Domain == ""
	if err != nil {
		return s, err
	}
	return s, s.fill()
}

// served is what a request asks for, but for the name.
func (req serveRequest) served() (served, error) {
	s := served{
		Public: req.Public, Kind: req.Kind, Port: req.Port, Path: req.Path, Target: req.Target, ProxyProtocol: req.ProxyProtocol,
		TLSName: req.TLSName, TLSPin: req.TLSPin, Insecure: req.Insecure,
	}
	if req.For < 0 || req.For > maxFor {
		return s, hinted(ErrBadRequest, fmt.Errorf("it cannot end after %s", req.For), "")
	}
	if req.For > 0 {
		s.Until = time.Now().Add(req.For).UTC().Truncate(time.Second)
	}
	var err error
	if s.Headers, err = headerRules(req.SetHeaders, req.RemoveHeaders); err != nil {
		return s, err
	}
	if s.Access, err = accessRules(req); err != nil {
		return s, err
	}
	return s, nil
}

// headerRules reads what is to be changed of a request's header.
func headerRules(set, remove []string) (*funnel.HeaderRules, error) {
	if len(set)+len(remove) == 0 {
		return nil, nil
	}
	rules := &funnel.HeaderRules{Set: map[string]string{}, Remove: remove}
	for _, line := range set {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" {
			return nil, hinted(ErrBadRequest, fmt.Errorf("the header %.100q is not NAME: VALUE", line), "")
		}
		rules.Set[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return rules, nil
}

// accessRules reads who may come.
func accessRules(req serveRequest) (*funnel.Access, error) {
	if len(req.Allow)+len(req.Deny)+len(req.Rate)+len(req.Access) == 0 {
		return nil, nil
	}
	access := &funnel.Access{}
	if len(req.Access) > 0 {
		if err := strictJSON(req.Access, access); err != nil {
			return nil, hinted(ErrBadRequest, fmt.Errorf("reading the rules on who may come: %w", err), "see the README for the keys")
		}
	}
	for _, list := range []struct {
		words []string
		into  *[]netip.Prefix
	}{{req.Allow, &access.Allow}, {req.Deny, &access.Deny}} {
		for _, word := range list.words {
			p, err := parsePrefix(word)
			if err != nil {
				return nil, hinted(ErrBadRequest, err, "")
			}
			*list.into = append(*list.into, p)
		}
	}
	if req.Rate != "" {
		if err := access.Rate.UnmarshalText([]byte(req.Rate)); err != nil {
			return nil, hinted(ErrBadRequest, err, "")
		}
	}
	return access, nil
}

// parsePrefix reads a range of addresses, or one address.
func parsePrefix(word string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(word); err == nil {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(word)
	if err != nil {
		return p, fmt.Errorf("%.100q is not a range of addresses such as 192.0.2.0/24", word)
	}
	return p.Masked(), nil
}

// errNoSelf says that this machine has no name that could be served.
var errNoSelf = errors.New("this machine is not in the map, so it has no name")

// servedName is the full name that is served: this node's, one of its services', or a domain of the user's own.
func (n *Node) servedName(m *Map, name, domain string) (full string, foreign bool, err error) {
	self, ok := m.Node(n.findSelf(m))
	if !ok {
		return "", false, hinted(ErrNotFound, errNoSelf, "set node: in the configuration, or join a tailnet: meshdns join")
	}
	switch {
	case domain != "" && name != "":
		return "", false, hinted(ErrBadRequest, errors.New("a name of the tailnet and a domain"), "")
	case domain != "":
		clean, err := certs.CleanName(domain)
		switch {
		case err != nil:
			return "", false, hinted(ErrBadRequest, err, "")
		case clean == m.Zone() || strings.HasSuffix(clean, "."+m.Zone()):
			return "", false, hinted(ErrBadRequest, fmt.Errorf("%s is a name of the tailnet", clean), "use --name")
		case !strings.Contains(clean, ".") || strings.HasPrefix(clean, "*."):
			return "", false, hinted(ErrBadRequest, fmt.Errorf("%s is no domain of yours", clean), "such as www.example.com")
		}
		return clean, true, nil
	case name == "":
		return m.FQDN(self.Name), false, nil
	}
	label := m.relative(name)
	if owner, ok := m.Node(label); ok && owner.Name != self.Name {
		return "", false, hinted(nil, fmt.Errorf("the name %s is taken: by node %s", label, owner.Name), "take another one")
	}
	if parent, ok := strings.CutSuffix(label, "."+self.Name); ok && self.Wildcard && !strings.Contains(parent, ".") {
		return m.FQDN(label), false, nil
	}
	clean, msg := checkLabel(label)
	if msg == "" {
		msg = refusedName(clean, false)
	}
	if msg != "" {
		return "", false, hinted(ErrBadRequest, fmt.Errorf("the name %q: %s", label, msg), "")
	}
	return m.FQDN(clean), false, nil
}

// hasName reports whether the map gives this node a full name.
func (n *Node) hasName(full string) bool {
	m, _ := n.tailnet.current()
	label := m.relative(full)
	self := n.findSelf(m)
	owner, ok := m.Node(label)
	parent, below := strings.CutSuffix(label, "."+self)
	me, _ := m.Node(self)
	return ok && owner.Name == self || below && me.Wildcard && parent != ""
}

// takeName gets a service name that nobody has.
func (n *Node) takeName(ctx context.Context, full string) error {
	if n.hasName(full) {
		return nil
	}
	m, _ := n.tailnet.current()
	label := m.relative(full)
	if !n.hasGateway() {
		return hinted(nil, fmt.Errorf("nobody has the name %s", label), fmt.Sprintf("give it to this node in %s: names: [%s]", m.Source(), label))
	}
	self, _ := m.Node(n.findSelf(m))
	if err := n.takeServiceNames(ctx, append(slices.Clone(self.Names), label)); err != nil {
		return fmt.Errorf("taking the name %s: %w", label, err)
	}
	return poll(ctx, func() bool { return n.hasName(full) })
}

// pollEach is how often something is looked at that happens elsewhere.
const pollEach = 20 * time.Millisecond

// poll waits until something has happened, or ctx ends.
func poll(ctx context.Context, happened func() bool) error {
	for !happened() {
		sleep(ctx, pollEach)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// strictJSON reads one value without unknown keys.
func strictJSON(data []byte, v any) error {
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one value")
	}
	return nil
}

// glanceTime bounds a look at a target of this machine.
const glanceTime = 2 * time.Second

// settleTarget makes of a port alone what is spoken there: TLS, if it answers that.
func settleTarget(ctx context.Context, s *served) {
	port, err := strconv.ParseUint(s.Target, 10, 16)
	if err != nil || !s.web() {
		return
	}
	at := net.JoinHostPort("127.0.0.1", strconv.FormatUint(port, 10))
	if speaksTLS(ctx, at) {
		s.Target = "https+insecure://" + at
	} else {
		s.Target = "http://" + at
	}
}

// speaksTLS reports whether a server answers a handshake, with a certificate or with an alert.
func speaksTLS(ctx context.Context, at string) bool {
	ctx, cancel := context.WithTimeout(ctx, glanceTime)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // it is asked whether it speaks TLS, not who it is
	conn, err := dialer.DialContext(ctx, "tcp", at)
	if err == nil {
		conn.Close()
		return true
	}
	var alert tls.AlertError
	var op *net.OpError
	return errors.As(err, &alert) || errors.As(err, &op) && op.Op == "remote error"
}

// lookAtTarget says why a target may not answer; empty: it seems to. What does not exist at all is an error.
func lookAtTarget(ctx context.Context, target string) (warning string, err error) {
	ctx, cancel := context.WithTimeout(ctx, glanceTime)
	defer cancel()
	network, at := targetAddress(target)
	switch network {
	case "":
		return "", nil
	case "file":
		if _, err := os.Stat(at); errors.Is(err, fs.ErrNotExist) {
			return "", hinted(ErrNotFound, fmt.Errorf("there is no %s", at), "name a file or directory that there is")
		}
		return "", nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, at)
	if err != nil {
		return fmt.Sprintf("nothing answers at the target %s: %v", target, errors.Unwrap(err)), nil
	}
	conn.Close()
	return "", nil
}

// targetAddress is where a target is: a socket's network and address, or file and a path. "": nowhere that could be looked at.
func targetAddress(target string) (network, at string) {
	if rest, ok := strings.CutPrefix(target, "unix:"); ok {
		return "unix", rest
	}
	if filepath.IsAbs(target) {
		return "file", target
	}
	if _, err := strconv.ParseUint(target, 10, 16); err == nil {
		return "tcp", net.JoinHostPort("localhost", target)
	}
	scheme, rest, isURL := strings.Cut(target, "://")
	if !isURL {
		scheme, rest = "", target
	}
	host, _, _ := strings.Cut(rest, "/")
	switch scheme {
	case "text", "redirect":
		return "", ""
	case "http", "https", "https+insecure":
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), map[bool]string{true: "80", false: "443"}[scheme == "http"])
		}
	}
	if _, _, err := net.SplitHostPort(host); err != nil || strings.HasPrefix(target, "text:") || strings.HasPrefix(target, "redirect:") {
		return "", ""
	}
	return "tcp", host
}
