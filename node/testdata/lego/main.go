// Lego gets a certificate with lego's own client and providers, which its command line takes from the environment as well. The
// whole command line would bring the providers of a hundred companies along.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"

	"github.com/go-acme/lego/v4/certcrypto"
	"github.com/go-acme/lego/v4/certificate"
	"github.com/go-acme/lego/v4/challenge"
	"github.com/go-acme/lego/v4/challenge/dns01"
	"github.com/go-acme/lego/v4/lego"
	"github.com/go-acme/lego/v4/providers/dns/acmedns"
	"github.com/go-acme/lego/v4/providers/dns/rfc2136"
	"github.com/go-acme/lego/v4/registration"
)

type user struct {
	key crypto.PrivateKey
	at  *registration.Resource
}

func (u *user) GetEmail() string                        { return "" }
func (u *user) GetRegistration() *registration.Resource { return u.at }
func (u *user) GetPrivateKey() crypto.PrivateKey        { return u.key }

// main takes the CA's directory, the provider, a DNS server and names, and prints the account's address and the chain.
func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(directory, name, resolver string, names []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	who := &user{key: key}
	config := lego.NewConfig(who)
	config.CADirURL, config.Certificate.KeyType = directory, certcrypto.EC256
	client, err := lego.NewClient(config)
	if err != nil {
		return err
	}
	var provider challenge.Provider
	if name == "acme-dns" {
		provider, err = acmedns.NewDNSProvider()
	} else {
		provider, err = rfc2136.NewDNSProvider()
	}
	if err != nil {
		return err
	}
	err = client.Challenge.SetDNS01Provider(provider, dns01.AddRecursiveNameservers([]string{resolver}),
		dns01.DisableAuthoritativeNssPropagationRequirement(), dns01.RecursiveNSsPropagationRequirement())
	if err != nil {
		return err
	}
	if who.at, err = client.Registration.Register(registration.RegisterOptions{TermsOfServiceAgreed: true}); err != nil {
		return err
	}
	got, err := client.Certificate.Obtain(certificate.ObtainRequest{Domains: names, Bundle: true})
	if err != nil {
		return err
	}
	fmt.Println(who.at.URI)
	_, err = os.Stdout.Write(got.Certificate)
	return err
}
