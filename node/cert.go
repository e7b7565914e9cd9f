package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/meshdns/meshdns/certs"
)

// certDir is where certificates, keys and accounts are kept.
func (n *Node) certDir() string { return filepath.Join(n.opt.Paths.State, "certs") }

// certificates are this node's, once it has come so far in its start: callers are served before.
type certificates struct{ made atomic.Pointer[certState] }

// certState is what can be done with certificates.
type certState struct {
	manager *certs.Manager // nil: there are none, for the reason
	reason  error
}

// errStarting is a call that comes before the node has come so far.
var errStarting = errors.New("the node is starting")

// state is what can be done by now.
func (c *certificates) state() certState {
	if s := c.made.Load(); s != nil {
		return *s
	}
	return certState{reason: hinted(ErrTimeout, errStarting, "try again")}
}

// startCerts reads the certificates that there are and has them renewed. That it cannot is no reason for the node not to
// run: names are answered without.
func (n *Node) startCerts(ctx context.Context) error {
	manager, err := n.newCertManager()
	if err != nil {
		n.certs.made.Store(&certState{reason: err})
		n.log.Error("there are no certificates", "err", err)
		return nil
	}
	if err := manager.Load(); err != nil {
		n.log.Error("not all certificates can be used", "err", err)
	}
	n.certs.made.Store(&certState{manager: manager})
	for _, d := range n.cfg.Certs.Deploy {
		if err := n.wantCert(ctx, manager, d.Name); err != nil {
			n.log.Error("a certificate that is to be deployed cannot be had", "name", d.Name, "err", err)
		}
	}
	n.services.run("certificates", manager.Run)
	return nil
}

// wantCert has a certificate issued that the configuration deploys: nobody has to ask for it by hand.
func (n *Node) wantCert(ctx context.Context, m *certs.Manager, name string) error {
	var given []string
	if name != "" {
		given = []string{name}
	}
	names, err := n.certNames(given, false)
	if err != nil {
		return err
	}
	return m.Manage(ctx, certs.Request{Names: names, Own: name == ""})
}

// ownCertNames are all names of this node, none while they are not known.
func (n *Node) ownCertNames() []string {
	names, err := n.certNames(nil, false)
	if err != nil {
		return nil
	}
	return names
}

// newCertManager makes the manager as the configuration says.
func (n *Node) newCertManager() (*certs.Manager, error) {
	cfg := certs.Config{Dir: n.certDir(), Key: n.cfg.Certs.Key, Logger: n.log, Own: n.ownCertNames, Targets: map[string][]certs.Target{}}
	writer, err := n.certWriter()
	if err != nil {
		return nil, fmt.Errorf("writing TXT records by %s: %w", n.cfg.Certs.Writer, err)
	}
	for _, ca := range n.cfg.Certs.CA {
		issuer, err := n.newIssuer(ca, writer)
		if err != nil {
			return nil, fmt.Errorf("using CA %s: %w", caName(ca), err)
		}
		cfg.CAs = append(cfg.CAs, certs.CA{Name: caName(ca), Issuer: issuer})
	}
	m, _ := n.tailnet.current()
	for _, d := range n.cfg.Certs.Deploy {
		name, err := n.certName(m, d.Name)
		if err != nil {
			n.log.Error("a certificate is not deployed", "name", d.Name, "err", err)
			continue
		}
		cfg.Targets[name] = append(cfg.Targets[name], d.target())
	}
	return certs.New(cfg)
}

// newIssuer makes the issuer for a CA of the configuration.
func (n *Node) newIssuer(ca string, writer certs.TXTSetter) (certs.Issuer, error) {
	if ca == caLocal {
		return enrolment{n}, nil
	}
	return n.newACME(ca, writer)
}

// certName is the full name that a certificate is asked for by: a name without a dot is one of the zone, and none is this node's.
func (n *Node) certName(m *Map, name string) (string, error) {
	if name == "" {
		self := n.findSelf(m)
		if self == "" {
			return "", hinted(ErrNotFound, errors.New("this machine is not in the map, so it has no name"), "set node: in the configuration, or name the certificate")
		}
		return certs.CleanName(m.FQDN(self))
	}
	if label := strings.TrimPrefix(name, "*."); !strings.Contains(label, ".") {
		name = m.FQDN(name)
	}
	clean, err := certs.CleanName(name)
	if err != nil {
		return "", hinted(ErrBadRequest, err, "")
	}
	return clean, nil
}

// certNames are the full names of a certificate. None given are all of this node's: its own, its service names, and what is
// below it if the map answers there or if that is asked for.
func (n *Node) certNames(given []string, wildcard bool) ([]string, error) {
	m, _ := n.tailnet.current()
	var names []string
	for _, name := range given {
		full, err := n.certName(m, name)
		if err != nil {
			return nil, err
		}
		names = append(names, full)
	}
	if len(given) == 0 {
		own, err := n.certName(m, "")
		if err != nil {
			return nil, err
		}
		names = append(names, own)
		if node, ok := m.Node(n.findSelf(m)); ok {
			wildcard = wildcard || node.Wildcard
			for _, service := range node.Names {
				full, err := n.certName(m, service)
				if err != nil {
					return nil, err
				}
				names = append(names, full)
			}
		}
	}
	if wildcard {
		names = append(names, "*."+strings.TrimPrefix(names[0], "*."))
	}
	slices.Sort(names[1:])
	return slices.Compact(names), nil
}

// status are the certificates in short.
func (c *certificates) status() []certStatus {
	list := []certStatus{}
	manager := c.state().manager
	if manager == nil {
		return list
	}
	at := func(t time.Time) *time.Time {
		if t = t.UTC().Truncate(time.Second); t.IsZero() {
			return nil
		}
		return &t
	}
	for _, info := range manager.List() {
		list = append(list, certStatus{Name: info.Name, State: info.State, NotAfter: at(info.NotAfter), Renewal: at(info.Renewal)})
	}
	return list
}

// problems are the certificates that somebody has to do something about.
func (c *certificates) problems() []string {
	state := c.state()
	if errors.Is(state.reason, errStarting) {
		return nil
	}
	if state.manager == nil {
		return []string{"there are no certificates: " + state.reason.Error()}
	}
	var list []string
	for _, info := range state.manager.List() {
		if info.State == "expiring" || info.State == "expired" {
			line := fmt.Sprintf("the certificate of %s ends at %s", info.Name, info.NotAfter.Local().Format("2006-01-02 15:04 MST"))
			if info.Trouble != nil {
				line += ": " + info.Trouble.Error
			}
			list = append(list, line)
		}
		for _, t := range info.Targets {
			if t.State == "failed" {
				list = append(list, fmt.Sprintf("the certificate of %s is not deployed to %s: %s", info.Name, targetWord(t.Target), t.Error))
			}
		}
	}
	return list
}

// targetWord names a target in a sentence.
func targetWord(t certs.Target) string {
	switch {
	case t.Cert != "":
		return t.Cert
	case t.Key != "":
		return t.Key
	case t.Unit != "":
		return t.Unit
	case len(t.Command) > 0:
		return t.Command[0]
	}
	return "nowhere"
}

// collectCerts sends the metrics of certificates.
func (c *collector) collectCerts(m metricSink) {
	manager := c.node.certs.state().manager
	if manager == nil {
		return
	}
	for _, info := range manager.List() {
		name := label{"name", info.Name}
		if !info.NotAfter.IsZero() {
			m.gauge("meshdns_cert_not_after_seconds", "When a certificate ends, in Unix time.", seconds(info.NotAfter), name)
		}
		m.gauge("meshdns_cert_alarm", "1 if a certificate is missing, or so near its end that renewal must have gone wrong.", truth(info.State != "valid"), name)
		m.gauge("meshdns_cert_renewal_failed", "1 if the last attempt to get a certificate failed.", truth(info.Trouble != nil), name)
		failed := 0
		for _, t := range info.Targets {
			if t.State == "failed" {
				failed++
			}
		}
		m.gauge("meshdns_cert_deploy_failed", "Targets that do not have the certificate because of a failure.", float64(failed), name)
	}
}
