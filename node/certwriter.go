package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/meshdns/meshdns/certs"
)

// Who writes the TXT records that a CA looks for, besides the DNS providers by their names.
const (
	writerGateway = "gateway"
	writerCommand = "command"
)

// maxSettings bounds the file of a provider's settings.
const maxSettings = 64 << 10

// certWriter is who writes TXT records, as configured.
func (n *Node) certWriter() (certs.TXTSetter, error) {
	c := n.cfg.Certs
	lookup := certs.Lookup{Resolvers: n.publicResolvers}
	switch c.Writer {
	case writerGateway:
		return n.texts, nil
	case writerCommand:
		return certs.NewExec(c.Command, lookup)
	}
	settings, err := providerSettings(c.SettingsFile, os.Getenv)
	if err != nil {
		return nil, err
	}
	return certs.NewProvider(certs.ProviderConfig{Name: c.Writer, Settings: settings, Lookup: lookup})
}

// publicResolvers are asked for the DNS as the world sees it: never our own stub, whose zone is the private one.
func (n *Node) publicResolvers() []netip.AddrPort {
	if len(n.cfg.Certs.Resolvers) > 0 {
		return n.cfg.Certs.Resolvers
	}
	_, base := n.routing.describe()
	var list []netip.AddrPort
	for _, word := range base {
		at, err := netip.ParseAddrPort(word)
		if addr, plain := netip.ParseAddr(word); plain == nil {
			at, err = netip.AddrPortFrom(addr, portDNS), nil
		}
		if err == nil { // one that is encrypted has more to it
			list = append(list, at)
		}
	}
	return list
}

// providerSettings reads a file of "setting: value" lines. Since it holds secrets nobody else may read it. A value that is
// $NAME comes from the environment.
func providerSettings(file string, getenv func(string) string) (map[string]string, error) {
	if file == "" {
		return nil, nil
	}
	f, err := openPrivate(file, func(info os.FileInfo) error {
		if onlyOurs(info) {
			return nil
		}
		return errors.New("others can read it, and it holds secrets")
	})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readBounded(f, maxSettings)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	defer clear(data)
	settings := map[string]string{}
	d := decoder{}
	if d.document(data, &settings); len(d.problems) > 0 {
		p := d.problems[0] // without its value, which may be the secret
		return nil, fmt.Errorf("reading %s: line %d: %s", file, p.Line, p.Msg)
	}
	for name, value := range settings {
		variable, ok := strings.CutPrefix(value, "$")
		if !ok {
			continue
		}
		if settings[name] = getenv(variable); settings[name] == "" {
			return nil, hinted(nil, fmt.Errorf("reading %s: setting %s: the variable %s is not set", file, name, variable), "set it where meshdns up is started")
		}
	}
	return settings, nil
}

// writer checks who writes TXT records; trusted says whether the file that it stands in may name commands.
func (v *validator) writer(c certsConfig, trusted bool) {
	others := slices.Concat([]string{writerGateway, writerCommand}, certs.ProviderNames())
	if !slices.Contains(others, c.Writer) {
		v.add("certs.writer", c.Writer, "want "+strings.Join(others, ", "))
	}
	switch {
	case c.Writer == writerCommand && len(c.Command) == 0:
		v.add("certs.command", "", "missing: the program that writes TXT records")
	case c.Writer != writerCommand && len(c.Command) > 0:
		v.add("certs.command", c.Command[0], "used only with writer: command")
	case len(c.Command) > 0 && !trusted:
		v.add("certs.command", c.Command[0], "commands are run only from a file that root owns and nobody else can write").
			Advice = "chown root and chmod go-w the configuration"
	}
	if c.SettingsFile != "" && (c.Writer == writerCommand || c.Writer == writerGateway) {
		v.add("certs.settings_file", c.SettingsFile, "used only with a DNS provider as writer")
	}
}
