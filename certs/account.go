package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/mholt/acmez/v3/acme"
)

// account is this node's account with a CA, as it is kept. Its key is worth a backup: CAA records name the account.
type account struct {
	Directory string `json:"directory"`
	URI       string `json:"uri,omitempty"` // empty: not registered
	Email     string `json:"email,omitempty"`
	Key       string `json:"key"` // PEM
}

// Format prints nothing of the key.
func (a account) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(account "+a.URI+")") }

const accountFile = "account.json"

// URI is the account's address with the CA; empty until there has been an order.
func (a *ACME) URI() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.account.Key == "" {
		if kept, err := a.readAccount(); err == nil {
			return kept.URI
		}
	}
	return a.account.URI
}

// readAccount reads the account from disk.
func (a *ACME) readAccount() (account, error) {
	var kept account
	err := readJSON(a.file(accountFile), &kept)
	if err == nil && kept.Directory != a.cfg.Directory {
		// The name now stands for another CA, which does not know the account.
		return account{}, fs.ErrNotExist
	}
	return kept, err
}

// register returns the account, which is made if there is none. One process makes it while others wait.
func (a *ACME) register(ctx context.Context, client *acme.Client) (acme.Account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.account.URI != "" {
		return a.account.forACME()
	}
	if err := a.mkdir(); err != nil {
		return acme.Account{}, err
	}
	unlock, err := lockPath(ctx, a.file("lock"))
	if err != nil {
		return acme.Account{}, err
	}
	defer unlock()
	kept, err := a.readAccount()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if kept, err = a.newAccount(); err != nil {
			return acme.Account{}, err
		}
	case err != nil:
		return acme.Account{}, fmt.Errorf("reading the account: %w", err)
	}
	if kept.URI == "" {
		if kept, err = a.ask(ctx, client, kept); err != nil {
			return acme.Account{}, err
		}
	}
	a.account = kept
	return kept.forACME()
}

// newAccount makes the key of an account and keeps it before the CA hears of it: one that was registered by a process that
// died is found again by its key.
func (a *ACME) newAccount() (account, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return account{}, fmt.Errorf("making the account's key: %w", err)
	}
	text, err := keyPEM(key)
	if err != nil {
		return account{}, err
	}
	kept := account{Directory: a.cfg.Directory, Email: a.cfg.Email, Key: string(text)}
	return kept, writeJSON(a.file(accountFile), kept)
}

// ask registers the account with the CA. Whoever configures a CA agrees to its terms.
func (a *ACME) ask(ctx context.Context, client *acme.Client, kept account) (account, error) {
	acct, err := kept.forACME()
	if err != nil {
		return kept, err
	}
	acct.TermsOfServiceAgreed = true
	if a.cfg.Email != "" {
		acct.Contact = []string{"mailto:" + a.cfg.Email}
	}
	if a.cfg.EAB[0] != "" {
		eab := acme.EAB{KeyID: a.cfg.EAB[0], MACKey: strings.TrimRight(a.cfg.EAB[1], "=")}
		if err := acct.SetExternalAccountBinding(ctx, client, eab); err != nil {
			return kept, fmt.Errorf("binding the account to %s: %w", eab.KeyID, err)
		}
	}
	acct, err = client.NewAccount(ctx, acct)
	if err != nil {
		return kept, err
	}
	kept.URI, kept.Email = acct.Location, a.cfg.Email
	a.log.Info("registered an account", "uri", kept.URI)
	return kept, writeJSON(a.file(accountFile), kept)
}

// forACME is the account as acmez takes it.
func (a account) forACME() (acme.Account, error) {
	key, err := decodeKey([]byte(a.Key))
	if err != nil {
		return acme.Account{}, fmt.Errorf("reading the account: %w", err)
	}
	return acme.Account{Status: acme.StatusValid, Location: a.URI, PrivateKey: key}, nil
}

// forget drops the account's address, so that it is registered again. The key stays: it is the same node.
func (a *ACME) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	kept, err := a.readAccount()
	if err != nil {
		a.log.Warn("reading the account", "err", err)
		return
	}
	a.account = account{}
	if kept.URI = ""; kept.Key != "" {
		if err := writeJSON(a.file(accountFile), kept); err != nil {
			a.log.Warn("forgetting the account", "err", err)
		}
	}
}
