package node

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// Config is this machine's configuration: the keys of meshdns.yaml. DefaultConfig has the defaults; the doc tags are
// the comments that writeConfig prints.
type Config struct {
	Node      string               `yaml:"node" doc:"this machine's name in the map; empty: the host name"`
	Map       string               `yaml:"map" doc:"file with the static map, relative to this file; empty: map.yaml beside it"`
	Zone      string               `yaml:"zone" doc:"the zone when there is no map"`
	DNS       dnsConfig            `yaml:"dns" doc:"names: who asks us, and whom we ask"`
	Tunnel    tunnelConfig         `yaml:"tunnel" doc:"WireGuard; a word alone is its mode"`
	Certs     certsConfig          `yaml:"certs" doc:"certificates"`
	Serve     []serveConfig        `yaml:"serve" doc:"what is served to the tailnet, and to the world, besides what meshdns serve and funnel say; read again when the file changes"`
	Servers   []string             `yaml:"servers" doc:"users of this machine, by name, who may serve things as well as root, with files and sockets that they themselves can open, and end what is theirs"`
	AccessLog accessLogConfig      `yaml:"access_log" doc:"visits of what is served"`
	Lock      []control.ControlKey `yaml:"lock" doc:"keys of the tailnet's owner: only nodes that one of them has signed are spoken to"`
	Metrics   string               `yaml:"metrics" doc:"ADDRESS:PORT for Prometheus; empty: on the control socket only"`
	Gateway   gatewayConfig        `yaml:"gateway" doc:"only on a gateway"`
	Sources   []sourceConfig       `yaml:"sources" doc:"further names and addresses; they lose to the map"`

	file    string              // that it was read from; empty if it has no name
	where   map[string]position // of the keys that were given, by path
	trusted bool                // read from a file that may name commands (S20)
}

// dnsConfig says who asks the resolver and whom it asks.
type dnsConfig struct {
	OS         string              `yaml:"os" doc:"how to point the system's DNS at us: auto, off, or a mode (direct, resolved, networkmanager, resolvconf, openresolv, resolvd, scutil, nrpt)"`
	Takeover   string              `yaml:"takeover" doc:"split: only the tailnet's names where the system can; all: every question"`
	Listen     []netip.AddrPort    `yaml:"listen" doc:"addresses to answer on besides the stub; port 53 unless given"`
	Stub       netip.AddrPort      `yaml:"stub" doc:"where this machine's programs ask"`
	Upstreams  []string            `yaml:"upstreams" doc:"servers for everything else: ADDRESS[:PORT], tls://ADDRESS[:PORT]#NAME, https://NAME/PATH; empty: those that the machine has"`
	Portal     string              `yaml:"portal" doc:"auto: while a new network's captive portal blocks our upstreams, ask the network's own DNS, and say so; off: never"`
	Routes     map[string][]string `yaml:"routes" doc:"servers by suffix; the longest suffix wins"`
	Rebind     rebindConfig        `yaml:"rebind" doc:"answers from outside that point inside"`
	Containers string              `yaml:"containers" doc:"what this machine's containers are answered, at an address that their copy of resolv.conf may name: all; forward: no names of the tailnet, as if they did not exist; off: there is no such address"`
	Service    netip.Addr          `yaml:"service" doc:"that address; empty: the highest free one of the map's first IPv4 range, on lo once there is a container engine"`
	Bridges    []string            `yaml:"bridges" doc:"further bridges whose containers may ask; those of Docker, Podman, CNI, nerdctl, Incus, LXD and LXC are known by their names"`
	Search     bool                `yaml:"search" doc:"whether short names are looked up in the zone"`
	Cache      ByteSize            `yaml:"cache" doc:"memory for cached answers"`
}

// rebindConfig says which answers from upstreams are refused. Tailnet, loopback and service addresses always are.
type rebindConfig struct {
	Private bool     `yaml:"private" doc:"refuse every private address, not only those of the tailnet"`
	Allow   []string `yaml:"allow" doc:"suffixes whose answers may hold any address"`
}

// tunnelConfig says how WireGuard runs.
type tunnelConfig struct {
	Mode      string `yaml:"mode" doc:"auto, kernel, tun, userspace or off"`
	Port      uint16 `yaml:"port" doc:"UDP port"`
	Preshared string `yaml:"preshared" doc:"file with WireGuard's preshared keys, mode 0600, relative to this file: a line is a node's name and the key that it has in common with this one, or * and a secret that all others make theirs of; read at the start; empty: none"`
	Proxy     string `yaml:"proxy" doc:"in mode userspace, a loopback address and port where programs reach the tailnet by SOCKS5 or HTTP CONNECT; off: none"`
}

// decodeItem takes a word alone for the mode: tunnel: off.
func (t *tunnelConfig) decodeItem(d *decoder, it *item, path string) {
	switch it.kind {
	case nullItem:
	case scalarItem:
		t.Mode = it.text
	default:
		type fields tunnelConfig // without this method
		d.into(it, path, (*fields)(t))
	}
}

// certsConfig says who signs certificates, and where they are copied to.
type certsConfig struct {
	CA           []string         `yaml:"ca" doc:"who signs: letsencrypt, letsencrypt-staging, zerossl, google, google-staging, local, or the https URL of an ACME directory; of several the next is asked where one cannot"`
	Email        string           `yaml:"email" doc:"where the CA may write to"`
	Root         string           `yaml:"root" doc:"file with the roots, PEM, that the HTTPS of an ACME directory given as a URL is believed by, relative to this file; empty: the system's"`
	Profile      string           `yaml:"profile" doc:"kind of certificate, as the CA calls it (shortlived, tlsserver); empty: its default"`
	Key          string           `yaml:"key" doc:"kind of new keys: p256, p384, rsa2048 or rsa4096"`
	Writer       string           `yaml:"writer" doc:"who writes the TXT records that a CA looks for: gateway, command, or a DNS provider: see the README"`
	SettingsFile string           `yaml:"settings_file" doc:"file with the DNS provider's settings, such as api_token: VALUE, relative to this file; $NAME is read from the environment"`
	Command      []string         `yaml:"command" doc:"program that writes them, which gets present or cleanup, the name and the value; without a shell; only if root owns this file"`
	Resolvers    []netip.AddrPort `yaml:"resolvers" doc:"servers that know the public DNS, for a writer other than the gateway; empty: the unencrypted ones of those asked for everything else"`
	Accounts     []accountConfig  `yaml:"accounts" doc:"accounts that a CA wants to know of (ZeroSSL, Google)"`
	Deploy       []deployConfig   `yaml:"deploy" doc:"where certificates are copied to, and what is done then"`
}

// accountConfig is an account with a CA that an ACME account is bound to (RFC 8555, 7.3.4).
type accountConfig struct {
	CA      string `yaml:"ca" doc:"the CA, as in certs.ca"`
	ID      string `yaml:"id" doc:"key id, as the CA gives it"`
	KeyFile string `yaml:"key_file" doc:"file with the MAC key that belongs to it, relative to this file"`
}

// deployConfig is one place where a certificate is copied to. Unit and Command need a file that only root can write.
type deployConfig struct {
	Name         string        `yaml:"name" doc:"the certificate: a name of the zone or a full one; empty: this node's own"`
	Cert         string        `yaml:"cert" doc:"file for the chain; with the key in it if it ends in .p12, .pfx (PKCS#12) or .combined.pem"`
	Key          string        `yaml:"key" doc:"file for the key; the same as cert: both in one"`
	Owner        string        `yaml:"owner" doc:"of the files; empty: as it was, or root"`
	Group        string        `yaml:"group" doc:"of the files; empty: as it was"`
	Mode         string        `yaml:"mode" doc:"of the files, in octal; empty: as it was, or 0600 with a key"`
	PasswordFile string        `yaml:"password_file" doc:"file with the password for PKCS#12; empty: none"`
	Unit         string        `yaml:"unit" doc:"systemd unit that is reloaded after a change"`
	Command      []string      `yaml:"command" doc:"program and arguments to run after a change instead, without a shell"`
	Timeout      time.Duration `yaml:"timeout" doc:"for the unit or program; 30s if empty"`
}

// gatewayConfig makes this machine a gateway for a zone.
type gatewayConfig struct {
	Zone     string       `yaml:"zone" doc:"the zone that it serves; empty: no gateway"`
	Public   []netip.Addr `yaml:"public" doc:"public addresses that it advertises"`
	Listen   []netip.Addr `yaml:"listen" doc:"addresses that it listens on; empty: the addresses of the default route's link"`
	Ports    portsConfig  `yaml:"ports" doc:"where it listens instead of the usual ports, which take root on most systems"`
	Policy   string       `yaml:"policy" doc:"file with the tailnet's policy: (who may reach whom, and who may show what to the world), as in a map; relative to this file; read again on SIGHUP"`
	Fallback string       `yaml:"fallback" doc:"tcp://HOST:PORT where unknown names on 443 go, instead of the alert"`
	Pinned   bool         `yaml:"pinned" doc:"the zone's addresses and CAA stay with your own DNS provider, and only _acme-challenge names are delegated here: meshdns gateway check lists the records"`
	Issuers  []string     `yaml:"issuers" doc:"further CAs whose accounts may be named in CAA records: HOST=NAME, the host of its accounts' addresses and its name in CAA records"`
	Limits   limitsConfig `yaml:"limits" doc:"what is passed on of the world's visits; what is above a limit is refused"`
	Pace     uint16       `yaml:"pace" doc:"how many first certificates all nodes together may order in a week; 40 if 0"`
}

// portsConfig are a gateway's public TCP ports, and that of its name server.
type portsConfig struct {
	HTTPS uint16 `yaml:"https" doc:"for visitors, and nodes without UDP; 443 if 0; another one is part of every address"`
	HTTP  uint16 `yaml:"http" doc:"leads visitors to it; 80 if 0"`
	DNS   uint16 `yaml:"dns" doc:"of the zone's name server; 53 if 0; the world asks at 53, which then has to be passed on to it"`
}

// sourceConfig is one further source of names and addresses. Exactly one of File, Command and Interface is set.
type sourceConfig struct {
	Type      string        `yaml:"type" doc:"tailscale, netbird, headscale, wg-quick or wireguard"`
	File      string        `yaml:"file" doc:"file to read, relative to this file"`
	Command   []string      `yaml:"command" doc:"program and arguments to run, without a shell, as nobody; only if root owns this file"`
	Interface string        `yaml:"interface" doc:"WireGuard interface, whose wg-quick file is read (type wireguard)"`
	Interval  time.Duration `yaml:"interval" doc:"how often; 30s if empty, at least 1s"`
}

// DefaultConfig is what holds where meshdns.yaml says nothing.
func DefaultConfig() Config {
	return Config{
		Zone: defaultZone,
		DNS: dnsConfig{
			OS:         "auto",
			Takeover:   "split",
			Portal:     "auto",
			Containers: containersAll,
			Stub:       netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 77}), 53),
			Search:     true,
			Cache:      8 << 20,
		},
		Tunnel:    tunnelConfig{Mode: "auto", Port: 41642, Proxy: "127.0.0.1:1055"},
		AccessLog: accessLogConfig{Format: "json"},
		Certs:     certsConfig{Writer: writerGateway, CA: []string{"letsencrypt"}, Key: "p256"},
	}
}

// maxConfig is the size in bytes up to which a configuration is read.
const maxConfig = 1 << 20

// LoadConfig reads meshdns.yaml over the defaults. Its error is a Problems with every key that is unknown and every
// value of the wrong type; what values mean is for Validate, once ApplyEnv and flags have had their say. A file that
// names commands must be opened with LoadConfigFile. Empty input is a valid configuration.
func LoadConfig(r io.Reader) (Config, error) {
	c, problems, err := readConfig(r)
	if err == nil {
		err = problems.err()
	}
	if err != nil {
		return Config{}, err
	}
	return c, nil
}

// readConfig reads as much of a configuration as can be read, and says what cannot.
func readConfig(r io.Reader) (Config, Problems, error) {
	c := DefaultConfig()
	data, err := readBounded(r, maxConfig)
	if err != nil {
		return c, nil, fmt.Errorf("reading the configuration: %w", err)
	}
	d := decoder{where: map[string]position{}}
	d.document(data, &c)
	c.file, c.where = readerName(r), d.where
	return c, d.problems.named(c.file), nil
}

// Override notes that a flag gave the value of a key, so that messages and Settings name the flag.
func (c *Config) Override(path, flag string) {
	if c.where == nil {
		c.where = map[string]position{}
	}
	maps.DeleteFunc(c.where, func(p string, _ position) bool {
		return strings.HasPrefix(p, path+"[") || strings.HasPrefix(p, path+".")
	})
	c.where[path] = position{file: flag}
}

// readerName is the name of the file behind r, if there is one.
func readerName(r io.Reader) string {
	if f, ok := r.(interface{ Name() string }); ok {
		return f.Name()
	}
	return ""
}

// readBounded reads r to its end, but no more than limit bytes.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("longer than %d bytes", limit)
	}
	return data, nil
}
