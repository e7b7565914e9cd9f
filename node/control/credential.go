package control

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

// maxCredentials is how many a node may have.
const maxCredentials = 8

// The kinds of credentials.
const (
	acmeDNSCredential = "acme-dns"
	tsigCredential    = "tsig"
)

// credential lets a program on a node publish values in another protocol. It is good from that node's addresses alone (S18).
type credential struct {
	ID      string    `json:"id"` // of acme-dns, the user; of TSIG, the key's name
	Kind    string    `json:"kind"`
	Name    string    `json:"name,omitempty"`    // of acme-dns, the one that values are published for; in full
	Sub     string    `json:"sub,omitempty"`     // and what the client calls it
	Hash    []byte    `json:"hash,omitempty"`    // of acme-dns, SHA-256 of the password: 240 random bits need no slow hash
	Secret  []byte    `json:"secret,omitempty"`  // of TSIG, which cannot be checked with less; the file has mode 0600
	Account string    `json:"account,omitempty"` // of the program, at a CA; empty: not known
	Made    time.Time `json:"made"`
}

// Format prints nothing of the secrets.
func (c credential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(credential "+c.ID+")") }

// newCredential is what is told of a credential when it is made, and never again.
type newCredential struct {
	ID       string
	Kind     string
	Name     string // in full
	Sub      string // of acme-dns
	Password string // of acme-dns; of TSIG, its secret in base64
}

// Format prints nothing of the secrets.
func (c newCredential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(credential "+c.ID+")") }

// randomUUID names things to clients that expect names in that form (RFC 9562, section 5.4).
func randomUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // which never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// AddCredential makes a credential for a program on a node. tsig asks for a key of TSIG instead of a user of acme-dns, which is
// for one name: a full one, or empty for the node's. account is the program's at a CA; empty: not known.
func (r *Registry) AddCredential(ctx context.Context, node, name, account string, tsig bool) (newCredential, error) {
	if account != "" {
		if _, err := r.issuer(account); err != nil {
			return newCredential{}, err
		}
	}
	told := newCredential{ID: randomUUID(), Kind: acmeDNSCredential}
	one := credential{Account: account, Made: r.cfg.Now().UTC()}
	if tsig {
		var secret [32]byte
		_, _ = rand.Read(secret[:])
		told.ID, told.Kind = node+"-"+randomID()[:8], tsigCredential
		one.Secret, told.Password = secret[:], base64.StdEncoding.EncodeToString(secret[:])
	} else {
		var secret [30]byte
		_, _ = rand.Read(secret[:])
		told.Sub, told.Password = randomUUID(), base64.RawURLEncoding.EncodeToString(secret[:])
		one.Sub, one.Hash = told.Sub, hashOf(told.Password)
	}
	one.ID, one.Kind = told.ID, told.Kind
	err := r.changeCert(ctx, node, func(c *certRecord) error {
		if told.Name = foldName(name); told.Name == "" {
			told.Name = node + "." + r.meta.Zone
		}
		if err := mayPublish(r.ownersLocked(), node, challengePrefix+told.Name); err != nil {
			return err
		}
		if !tsig {
			one.Name = told.Name
		}
		if len(c.Credentials) >= maxCredentials {
			return refuse(http.StatusConflict, codeFull, "%s has %d credentials already", node, len(c.Credentials))
		}
		c.Credentials = append(c.Credentials, one)
		return nil
	})
	return told, err
}

func hashOf(password string) []byte {
	sum := sha256.Sum256([]byte(password))
	return sum[:]
}

// SetCredential records which account at a CA a credential's client has, or ends the credential.
func (r *Registry) SetCredential(ctx context.Context, node, id, account string, end bool) error {
	if !end {
		if _, err := r.issuer(account); err != nil {
			return err
		}
	}
	return r.changeCert(ctx, node, func(c *certRecord) error {
		i := slices.IndexFunc(c.Credentials, func(one credential) bool { return one.ID == id })
		if i < 0 {
			return refuse(http.StatusNotFound, codeUnknownNode, "%s has no credential %s", node, id)
		}
		if end {
			c.Credentials = slices.Delete(c.Credentials, i, i+1)
			c.Texts = slices.DeleteFunc(slices.Clone(c.Texts), func(t textLease) bool { return t.By == id })
			return nil
		}
		c.Credentials[i].Account = account
		return nil
	})
}

// credentialOf is the credential with an ID, if the call comes from the node that it was made for.
func (r *Registry) credentialOf(kind, id string, source netip.Addr) (node string, one credential, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, c := range r.certs {
		n := r.nodes[name]
		if n == nil || n.Pending || !slices.Contains(n.Node.Addresses, source) {
			continue
		}
		for _, one := range c.Credentials {
			if one.Kind == kind && subtle.ConstantTimeCompare([]byte(one.ID), []byte(id)) == 1 {
				return name, one, true
			}
		}
	}
	return "", credential{}, false
}

// nodeAt is the node with an address, for the log.
func (r *Registry) nodeAt(source netip.Addr) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, n := range r.nodes {
		if slices.Contains(n.Node.Addresses, source) {
			return name
		}
	}
	return ""
}
