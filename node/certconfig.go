package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/meshdns/meshdns/certs"
)

// caLocal is the CA of the tailnet itself.
const caLocal = "local"

// certs checks who signs certificates and where they go; trusted says whether the file that it stands in may name commands.
func (v *validator) certs(c certsConfig, trusted bool) {
	if len(c.CA) == 0 {
		v.add("certs.ca", "", "missing")
	}
	for i, ca := range c.CA {
		path := "certs.ca"
		if len(c.CA) > 1 {
			path = fmt.Sprintf("certs.ca[%d]", i)
		}
		if !isCA(ca) {
			v.add(path, ca, "want letsencrypt, letsencrypt-staging, zerossl, google, google-staging, local or the https URL of an ACME directory")
		}
		if slices.Contains(c.CA[:i], ca) {
			v.add(path, ca, "named twice")
		}
	}
	// A mail address is one word with an @ in it; the rest is for the mail server to judge.
	if local, domain, ok := strings.Cut(c.Email, "@"); c.Email != "" && (!ok || local == "" || domain == "" || strings.ContainsAny(c.Email, " \t,<>")) {
		v.add("certs.email", c.Email, "not a mail address")
	}
	v.writer(c, trusted)
	v.oneOf("certs.key", c.Key, "p256", "p384", "rsa2048", "rsa4096")
	for i, a := range c.Accounts {
		path := fmt.Sprintf("certs.accounts[%d]", i)
		switch {
		case !slices.Contains(c.CA, a.CA):
			v.add(path+".ca", a.CA, "not a CA of certs.ca")
		case a.ID == "" || a.KeyFile == "":
			v.add(path, "", "wants id: and key_file:")
		}
	}
	for i, d := range c.Deploy {
		v.deploy(fmt.Sprintf("certs.deploy[%d]", i), d, trusted)
	}
}

// deploy checks one place where a certificate goes.
func (v *validator) deploy(path string, d deployConfig, trusted bool) {
	if err := d.target().Vet(); err != nil {
		v.add(path, "", err.Error())
	}
	if d.Name != "" {
		if _, err := certs.CleanName(d.Name); err != nil {
			v.add(path+".name", d.Name, "not a name that a certificate can have")
		}
	}
	if d.Timeout < 0 || d.Timeout > time.Hour {
		v.add(path+".timeout", d.Timeout.String(), "want up to 1h")
	}
	what, at := d.Unit, path+".unit"
	if len(d.Command) > 0 {
		what, at = d.Command[0], path+".command"
	}
	if what != "" && !trusted {
		v.add(at, what, "commands are run only from a file that root owns and nobody else can write").
			Advice = "chown root and chmod go-w the configuration"
	}
}

// target is the place as package certs takes it.
func (d deployConfig) target() certs.Target {
	return certs.Target{
		Cert: d.Cert, Key: d.Key, Owner: d.Owner, Group: d.Group, Mode: d.Mode, PasswordFile: d.PasswordFile,
		Unit: d.Unit, Command: d.Command, Timeout: d.Timeout,
	}
}

// isCA reports whether text names a CA.
func isCA(text string) bool {
	if _, ok := certs.Directory(text); ok || text == caLocal {
		return true
	}
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "https" && u.Host != ""
}

// caName is what a CA is called in messages and on disk.
func caName(ca string) string {
	if u, err := url.Parse(ca); err == nil && u.Host != "" {
		return u.Hostname()
	}
	return ca
}

// maxCertFile bounds the files of roots and keys.
const maxCertFile = 1 << 20

// newACME makes the issuer for an ACME CA.
func (n *Node) newACME(ca string, writer certs.TXTSetter) (*certs.ACME, error) {
	c := certs.ACMEConfig{
		Name:    caName(ca),
		Dir:     filepath.Join(n.certDir(), "acme", caName(ca)),
		TXT:     writer,
		Email:   n.cfg.Certs.Email,
		Profile: n.cfg.Certs.Profile,
		Agent:   "meshdns/" + n.opt.Version,
		Account: n.tellAccount,
		Logger:  n.log,
	}
	if ca != "letsencrypt-staging" && ca != "google-staging" {
		c.First = func(ctx context.Context, names []string) error { return n.awaitTurn(ctx, ca, names) }
	}
	address, known := certs.Directory(ca)
	if c.Directory = address; !known {
		c.Directory, c.First = ca, nil // whose limits are not known
		if root := n.cfg.Certs.Root; root != "" {
			data, err := readFile(root, maxCertFile)
			if err != nil {
				return nil, err
			}
			c.Roots = x509.NewCertPool()
			if !c.Roots.AppendCertsFromPEM(data) {
				return nil, fmt.Errorf("reading %s: %w", root, errors.New("no certificate in it"))
			}
		}
	}
	for _, a := range n.cfg.Certs.Accounts {
		if a.CA != ca {
			continue
		}
		key, err := readFile(a.KeyFile, maxCertFile)
		if err != nil {
			return nil, err
		}
		c.EAB = [2]string{a.ID, strings.TrimSpace(string(key))}
	}
	return certs.NewACME(c)
}
