package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// initReply is what there is to do for a gateway that its own machine cannot do.
type initReply struct {
	Schema  string       `json:"schema"` // meshdns.gateway.init/v1
	Config  string       `json:"config"`
	Written bool         `json:"written"` // false: the file said it already
	Zone    string       `json:"zone"`
	Parent  string       `json:"parent"`  // the zone that the records go into; empty: the zone is for private use, and none are needed
	Records []initRecord `json:"records"` // with names relative to the parent
	Ports   []initPort   `json:"ports"`   // to open in a firewall
	Held    []initHeld   `json:"held"`
}

type initRecord struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Data string `json:"data"`
}

type initPort struct {
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"` // tcp, udp or tcp+udp
	Use      string `json:"use"`
}

// initHeld is a port that another program has.
type initHeld struct {
	Address string `json:"address"`
	Holder  string `json:"holder"`
}

// InitGateway makes this machine the gateway of a zone from its next start on: it adds that to the configuration, of
// which it changes nothing else, and makes the keys. No node may run meanwhile.
func (p Paths) InitGateway(zone string, public []string) (initReply, error) {
	unlock, err := lockState(p.State)
	if err != nil {
		return initReply{}, err
	}
	defer unlock()
	if m, err := loadMembership(p.State); err != nil || m != nil {
		if err == nil {
			err = hinted(nil, fmt.Errorf("this machine is %s already, and a node of one tailnet is no gateway of another", m.Node+"."+m.Map.Zone), "")
		}
		return initReply{}, err
	}
	wanted, err := wantedGateway(zone, public)
	if err != nil {
		return initReply{}, err
	}
	reply := initReply{Schema: "meshdns.gateway.init/v1", Config: p.Config, Zone: wanted.Zone}
	var cfg Config
	if cfg, reply.Written, err = addGateway(p.Config, wanted); err != nil {
		return initReply{}, err
	}
	if _, err := loadSecrets(p.State); err != nil {
		return initReply{}, err
	}
	if _, err := loadRanges(p.State); err != nil {
		return initReply{}, err
	}
	reply.Parent, reply.Records = delegation(wanted.Zone, wanted.Public)
	reply.Ports = []initPort{
		{publicPort, "tcp", "visitors, and nodes whose network blocks UDP"},
		{53, "tcp+udp", "DNS of the zone"},
		{cfg.Tunnel.Port, "udp", "WireGuard"},
		{cfg.Tunnel.Port + relayPort, "udp", "the relay between nodes without a direct path"},
	}
	reply.Held = heldPorts(cfg)
	return reply, nil
}

// wantedGateway is what the flags ask for, checked as a configuration is.
func wantedGateway(zone string, public []string) (gatewayConfig, error) {
	cfg := DefaultConfig()
	cfg.Gateway.Zone = zone
	cfg.Override("gateway.zone", "--zone")
	cfg.Override("gateway.public", "--public")
	for _, word := range public {
		a, err := netip.ParseAddr(strings.TrimSpace(word))
		if err != nil || a.Zone() != "" {
			return gatewayConfig{}, hinted(ErrBadRequest, fmt.Errorf("--public %s: not an address", word), "want the machine's public addresses, such as 203.0.113.5")
		}
		cfg.Gateway.Public = append(cfg.Gateway.Public, a.Unmap())
	}
	if zone == "" {
		return gatewayConfig{}, hinted(ErrBadRequest, errors.New("--zone is missing"), "a gateway serves a zone of yours, such as mesh.example.org")
	}
	if len(cfg.Gateway.Public) > maxServers {
		return gatewayConfig{}, hinted(ErrBadRequest, fmt.Errorf("--public: more than %d addresses", maxServers), "")
	}
	if err := cfg.Validate(); err != nil {
		return gatewayConfig{}, err
	}
	cfg.Gateway.Zone, _, _ = checkZone(zone)
	return cfg.Gateway, nil
}

// addGateway adds a section to a configuration's end, or makes the file. What it cannot add to, it leaves as it is.
func addGateway(path string, wanted gatewayConfig) (Config, bool, error) {
	section := gatewaySection(wanted)
	old, err := LoadConfigFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = DefaultConfig(), nil
	}
	if err != nil {
		return Config{}, false, err
	}
	if has := old.Gateway; has.Zone != "" || len(has.Public) > 0 {
		if sameZone, _, _ := checkZone(has.Zone); sameZone == wanted.Zone && slices.Equal(has.Public, wanted.Public) {
			return old, false, nil
		}
		return Config{}, false, hinted(nil, fmt.Errorf("%s has a gateway already: zone %s", path, has.Zone),
			"nothing was changed; write into its gateway section:"+oneLine(section))
	}
	if path, err = resolveFile(path); err != nil {
		return Config{}, false, err
	}
	before, perm, err := readForChange(path)
	if err != nil {
		return Config{}, false, err
	}
	text := section
	if before != "" {
		text = strings.TrimRight(before, "\n") + "\n\n" + section
	}
	next, err := LoadConfig(strings.NewReader(text))
	if err != nil || next.Gateway.Zone != wanted.Zone || !slices.Equal(next.Gateway.Public, wanted.Public) || !sameBesides(old, next) {
		return Config{}, false, hinted(nil, fmt.Errorf("%s is not written so that a section could be added at its end", path),
			"nothing was changed; add yourself:"+oneLine(section))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return Config{}, false, fmt.Errorf("writing %s: %w", path, err)
	}
	return next, true, writeFile(path, []byte(text), perm)
}

// gatewaySection is the part of the file.
func gatewaySection(c gatewayConfig) string {
	words := make([]string, len(c.Public))
	for i, a := range c.Public {
		words[i] = fmt.Sprintf("%q", a) // the colons of IPv6 mean something else in YAML
	}
	return fmt.Sprintf("gateway:\n  zone: %s\n  public: [%s]\n", c.Zone, strings.Join(words, ", "))
}

// oneLine is a section as it fits into a hint.
func oneLine(section string) string {
	lines := strings.Split(strings.TrimSpace(section), "\n")
	return fmt.Sprintf(" %s {%s, %s}", lines[0], strings.TrimSpace(lines[1]), strings.TrimSpace(lines[2]))
}

// resolveFile is the file behind a path that may be a symbolic link: replacing the link would leave what it points to as it was.
func resolveFile(path string) (string, error) {
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path, nil
	}
	return target, err
}

// readForChange is a file's text and mode; one that does not exist is empty.
func readForChange(path string) (string, fs.FileMode, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0o644, nil
	}
	if err != nil {
		return "", 0, err
	}
	data, err := readFile(path, maxConfig)
	return string(data), info.Mode().Perm(), err
}

// sameBesides reports whether two configurations say the same but for the gateway. File names are compared as written.
func sameBesides(a, b Config) bool {
	skip := func(s Setting) bool {
		return strings.HasPrefix(s.Path, "gateway.") || s.Path == "map" || s.Path == "sources"
	}
	x, y := slices.DeleteFunc(a.Settings(""), skip), slices.DeleteFunc(b.Settings(""), skip)
	return len(a.Sources) == len(b.Sources) && (a.Map == "") == (b.Map == "") &&
		slices.EqualFunc(x, y, func(s, t Setting) bool { return s.Path == t.Path && s.Value == t.Value })
}

// delegation are the records in the parent zone that lead the world's resolvers to a gateway: NS and glue (RFC 1034,
// section 4.2.1). The parent is taken for the name that its owner registered; names are relative to it.
func delegation(zone string, public []netip.Addr) (parent string, records []initRecord) {
	records = []initRecord{}
	if isPrivateZone(zone) {
		return "", records
	}
	parent, err := publicsuffix.EffectiveTLDPlusOne(zone)
	if err != nil || parent == zone { // then the records are the registry's: the registrar takes them
		_, parent, _ = strings.Cut(zone, ".")
	}
	if parent == "" {
		return "", records
	}
	label := strings.TrimSuffix(zone, "."+parent)
	var glue []initRecord
	for i, a := range public {
		records = append(records, initRecord{label, "NS", serverName(i) + "." + zone + "."})
		glue = append(glue, initRecord{serverName(i) + "." + label, addressType(a), a.String()})
	}
	return parent, append(records, glue...)
}

// heldPorts are the public ports that another program has where the gateway would listen.
func heldPorts(cfg Config) []initHeld {
	held := []initHeld{}
	listen, err := (&Node{cfg: cfg}).gatewayAddresses()
	if err != nil {
		return held // the start says so, and what to set
	}
	for _, port := range []uint16{53, publicPort} {
		for _, at := range ports(listen, port) {
			if holder := portHolder(at); holder != "" {
				held = append(held, initHeld{at.String(), holder})
			}
		}
	}
	return held
}
