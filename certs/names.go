package certs

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// maxNames is how many names one certificate may have: what the public CAs take.
const maxNames = 100

// hinted is an error that the user can mend.
type hinted struct {
	error
	hint string
}

// Hint says how.
func (e *hinted) Hint() string { return e.hint }

// Unwrap returns the error itself.
func (e *hinted) Unwrap() error { return e.error }

// CleanName is name as certificates and this package spell it: lower case, without a trailing dot, in A-labels.
// Only a wildcard's first label may be something else than letters, digits and hyphens.
func CleanName(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	base, wildcard := strings.CutPrefix(name, "*.")
	ascii, err := idna.Lookup.ToASCII(base)
	if err == nil {
		// What is no UTF-8 becomes a label that stands for nothing.
		_, err = idna.Lookup.ToASCII(ascii)
	}
	if err != nil {
		return "", fmt.Errorf("name %q: %w", name, err)
	}
	if err := vetName(ascii); err != nil {
		return "", fmt.Errorf("name %q: %w", name, err)
	}
	if wildcard {
		return "*." + ascii, nil
	}
	return ascii, nil
}

// vetName checks a name in lower-case A-labels (RFC 1123, section 2.1). It ends in file names as well.
func vetName(name string) error {
	if len(name) > 253-len("_acme-challenge.") {
		return errors.New("too long")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("not a host name")
		}
		if strings.ContainsFunc(label, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
			return errors.New("not a host name")
		}
	}
	return nil
}

// cleanNames are the names of one certificate, each once. The first one stays the first: it names the certificate.
func cleanNames(names []string) ([]string, error) {
	var clean []string
	for _, name := range names {
		if _, err := netip.ParseAddr(name); err == nil {
			return nil, &hinted{fmt.Errorf("%s is an address: certificates are for names here", name), "ask for the name of the machine that has it"}
		}
		c, err := CleanName(name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(clean, c) {
			clean = append(clean, c)
		}
	}
	switch {
	case len(clean) == 0:
		return nil, errors.New("a certificate needs a name")
	case len(clean) > maxNames:
		return nil, fmt.Errorf("%d names for one certificate, at most %d", len(clean), maxNames)
	}
	return clean, nil
}

// publicCAs are suffixes of the hosts at which the CAs that browsers trust offer ACME.
func publicCAs() []string {
	return []string{"api.letsencrypt.org", "acme.zerossl.com", "pki.goog", "api.buypass.com", "acme.ssl.com", "acme.sectigo.com", "acme.digicert.com", "one.digicert.com"}
}

// Directory is the ACME directory of a CA that is known by name.
func Directory(ca string) (address string, ok bool) {
	switch ca {
	case "letsencrypt":
		return "https://acme-v02.api.letsencrypt.org/directory", true
	case "letsencrypt-staging":
		return "https://acme-staging-v02.api.letsencrypt.org/directory", true
	case "zerossl":
		return "https://acme.zerossl.com/v2/DV90", true
	case "google":
		return "https://dv.acme-v02.api.pki.goog/directory", true
	case "google-staging":
		return "https://dv.acme-v02.test-api.pki.goog/directory", true
	}
	return "", false
}

// isPublicCA reports whether an ACME directory is that of a CA bound to the rules of browsers.
func isPublicCA(directory string) bool {
	u, err := url.Parse(directory)
	if err != nil {
		return false
	}
	host := strings.ToLower(u.Hostname())
	return slices.ContainsFunc(publicCAs(), func(ca string) bool {
		return host == ca || strings.HasSuffix(host, "."+ca) || strings.HasSuffix(host, "-"+ca)
	})
}

// neverPublic says why no public CA certifies name, or "".
func neverPublic(name string) string {
	name = strings.TrimPrefix(name, "*.")
	_, top, dotted := cutLast(name)
	if !dotted {
		return "it is a bare name"
	}
	if name == "ts.net" || strings.HasSuffix(name, ".ts.net") {
		return "ts.net belongs to Tailscale, and only names that Tailscale publishes there can be certified"
	}
	switch top {
	case "internal", "local", "lan", "home", "corp", "test", "invalid", "localhost", "onion", "alt", "arpa", "example", "intranet", "private", "mesh", "tailnet":
		return "." + top + " is no domain of the public DNS"
	}
	return ""
}

// cutLast cuts a name before its last label.
func cutLast(name string) (before, last string, ok bool) {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[:i], name[i+1:], true
	}
	return "", name, false
}

// vetPublic refuses names that the CA at directory cannot certify, before it is asked.
func vetPublic(directory string, names []string) error {
	if !isPublicCA(directory) {
		return nil
	}
	for _, name := range names {
		if why := neverPublic(name); why != "" {
			return &hinted{fmt.Errorf("no public CA certifies %s: %s", name, why),
				"use a zone below a domain of your own, or a CA of the tailnet (certs.ca: local)"}
		}
	}
	return nil
}
