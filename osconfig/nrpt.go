package osconfig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
)

// Where Windows keeps who is asked for which names, below HKEY_LOCAL_MACHINE. As soon as group policy has a rule the
// local ones do not count ([MS-GPNRPT]).
const (
	nrptLocal  = `SYSTEM\CurrentControlSet\Services\Dnscache\Parameters\DnsPolicyConfig`
	nrptPolicy = `SOFTWARE\Policies\Microsoft\Windows NT\DNSClient\DnsPolicyConfig`
	dnsPolicy  = `SOFTWARE\Policies\Microsoft\Windows NT\DNSClient`
	tcpip      = `SYSTEM\CurrentControlSet\Services\Tcpip\Parameters`
	tcpip6     = `SYSTEM\CurrentControlSet\Services\Tcpip6\Parameters`

	searchList = "SearchList" // of domains, with commas between them
)

const (
	// maxRuleDomains is how many domains Windows takes for one rule.
	maxRuleDomains = 50
	// maxRules bounds how many rules are made.
	maxRules = 100
	// rulePrefix starts the names of our rules' keys: a GUID that says meshdns, and a number.
	rulePrefix = "{6D657368-646E-7300-8000-"
)

// regKind is the type of a value in the registry.
type regKind string

const (
	regNone    regKind = "" // there is none
	regString  regKind = "REG_SZ"
	regExpand  regKind = "REG_EXPAND_SZ"
	regStrings regKind = "REG_MULTI_SZ"
	regNumber  regKind = "REG_DWORD"
)

// regValue is a value in the registry.
type regValue struct {
	Kind   regKind  `json:"kind"`
	Text   string   `json:"text,omitempty"`
	List   []string `json:"list,omitempty"`
	Number uint32   `json:"number,omitempty"`
}

func (v regValue) equal(other regValue) bool {
	return v.Kind == other.Kind && v.Text == other.Text && v.Number == other.Number && slices.Equal(v.List, other.List)
}

// registry is HKEY_LOCAL_MACHINE. A key that does not exist is fs.ErrNotExist.
type registry interface {
	keys(path string) ([]string, error)
	get(path, name string) (regValue, error)
	set(path, name string, v regValue) error // makes the key; a value of no kind removes it
	removeKey(path string) error
}

// windowsEdge is what Windows alone has.
type windowsEdge struct {
	registry registry
	links    func() ([]string, error)                     // the GUIDs of the links that are up, the preferred one first
	notify   func(ctx context.Context, policy bool) error // has the DNS client read the rules anew, and forget its cache
}

// nrpt has Windows ask us through rules of its Name Resolution Policy Table. They stay through a reboot.
type nrpt struct {
	disk     disk
	win      windowsEdge
	stateDir string
	machine  machine
	servers  []netip.Addr // that were applied
	troubles []string
}

func newNRPT(m machine, stateDir string) *nrpt {
	return &nrpt{disk: m.disk, win: m.windows(), machine: m, stateDir: stateDir}
}

// nrptNote is what a journal says of a change on Windows.
type nrptNote struct {
	MadeKey bool     `json:"made_key"` // there was no key for local rules
	Search  []string `json:"search"`   // the domains that are ours in the search list
	Before  regValue `json:"before"`   // the search list before
	Wrote   regValue `json:"wrote"`    // and ours
}

// nrptRule is one rule: the name of its key, and its values in the order in which they are written. Until it has its
// domains it says nothing.
type nrptRule struct {
	key    string
	values []namedValue
}

type namedValue struct {
	name  string
	value regValue
}

// nrptRules are the rules that c comes to.
func nrptRules(c Config) (rules []nrptRule, dropped int) {
	names := []string{"."}
	if !c.takesAll() {
		match, n := fitDomains(c.Match, maxRules*maxRuleDomains)
		names, dropped = nil, n
		for _, domain := range match {
			names = append(names, "."+domain) // with a dot before it: the domain and what is below
		}
	}
	var servers []string
	for _, s := range c.Servers {
		servers = append(servers, s.AddrPort.Addr().String())
	}
	for chunk := range slices.Chunk(names, maxRuleDomains) {
		rules = append(rules, nrptRule{
			key: fmt.Sprintf("%s%012X}", rulePrefix, len(rules)+1),
			values: []namedValue{
				{"Version", regValue{Kind: regNumber, Number: 2}},
				{"ConfigOptions", regValue{Kind: regNumber, Number: 0x8}}, // GenericDNSServers counts
				{"GenericDNSServers", regValue{Kind: regString, Text: strings.Join(servers, ";")}},
				{"Name", regValue{Kind: regStrings, List: slices.Clone(chunk)}},
			},
		})
	}
	return rules, dropped
}

func isOurRule(key string) bool { return strings.HasPrefix(strings.ToUpper(key), rulePrefix) }

// subkeys are the names of the keys below path; none if it does not exist.
func (n *nrpt) subkeys(path string) ([]string, error) {
	keys, err := n.win.registry.keys(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return keys, err
}

// value is a value in the registry; one of no kind if there is none.
func (n *nrpt) value(path, name string) (regValue, error) {
	v, err := n.win.registry.get(path, name)
	if errors.Is(err, fs.ErrNotExist) {
		return regValue{}, nil
	}
	if err != nil {
		return v, fmt.Errorf(`reading HKLM\%s\%s: %w`, path, name, err)
	}
	return v, nil
}

func (n *nrpt) set(path, name string, v regValue) error {
	n.disk.at("registry set", path+`\`+name)
	if err := n.win.registry.set(path, name, v); err != nil {
		return fmt.Errorf(`writing HKLM\%s\%s: %w`, path, name, err)
	}
	return nil
}

func (n *nrpt) removeKey(path string) error {
	n.disk.at("registry remove", path)
	if err := n.win.registry.removeKey(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf(`removing HKLM\%s: %w`, path, err)
	}
	return nil
}

// policyRules reports whether group policy has rules, other than ours.
func (n *nrpt) policyRules() (bool, error) {
	keys, err := n.subkeys(nrptPolicy)
	return slices.ContainsFunc(keys, func(key string) bool { return !isOurRule(key) }), err
}

func (n *nrpt) apply(ctx context.Context, c Config) error {
	if err := checkDomains(c); err != nil {
		return err
	}
	if refused := wrongServers(c); refused != nil {
		return refused
	}
	policy, err := n.policyRules()
	if err != nil {
		return err
	}
	note, err := n.note(c)
	if err != nil {
		return err
	}
	rules, dropped := nrptRules(c)
	if err := n.writeRules(nrptLocal, rules); err != nil {
		return err
	}
	var changed bool
	if policy {
		changed, err = true, n.writeRules(nrptPolicy, rules)
	} else {
		changed, err = n.forget(nrptPolicy, nil)
	}
	if err == nil {
		err = n.search(note.Wrote)
	}
	if err == nil {
		err = n.tell(ctx, changed)
	}
	if err != nil {
		return err
	}
	n.servers = c.addrs()
	return n.judge(dropped)
}

// search has the search list be want.
func (n *nrpt) search(want regValue) error {
	now, err := n.value(tcpip, searchList)
	if err == nil && !now.equal(want) {
		err = n.set(tcpip, searchList, want)
	}
	return err
}

// tell has the DNS client know.
func (n *nrpt) tell(ctx context.Context, policy bool) error {
	n.disk.at("notify", "")
	if err := n.win.notify(ctx, policy); err != nil {
		return fmt.Errorf("telling the DNS client of its new rules: %w", err)
	}
	return nil
}

// judge notes what somebody should know.
func (n *nrpt) judge(dropped int) error {
	n.troubles = nil
	if dropped > 0 {
		n.troubles = append(n.troubles, fmt.Sprintf("Windows is told of %d domains at most; %d are left out, and asked elsewhere",
			maxRules*maxRuleDomains, dropped))
	}
	policy, err := n.value(dnsPolicy, searchList)
	if err == nil && policy.Text != "" {
		n.troubles = append(n.troubles, "group policy sets the search list, so short names of the tailnet are not found: "+
			printable(fmt.Sprintf("%.200s", policy.Text)))
	}
	return err
}

// note has the journal say what is about to be made.
func (n *nrpt) note(c Config) (*nrptNote, error) {
	now, err := n.value(tcpip, searchList)
	if err != nil {
		return nil, err
	}
	_, err = n.win.registry.keys(nrptLocal)
	made := errors.Is(err, fs.ErrNotExist)
	if err != nil && !made {
		return nil, fmt.Errorf(`reading HKLM\%s: %w`, nrptLocal, err)
	}
	old, err := loadJournal(n.stateDir)
	if err != nil {
		return nil, err
	}
	note := &nrptNote{MadeKey: made, Search: c.Search, Before: now}
	if old != nil && old.NRPT != nil {
		note.MadeKey = made || old.NRPT.MadeKey
		note.Before = old.NRPT.remaining(now)
	}
	note.Wrote = note.Before
	if len(c.Search) > 0 {
		before, err := n.searched(note.Before)
		if err != nil {
			return nil, err
		}
		note.Wrote = regValue{Kind: regString, Text: strings.Join(joinSearch(c.Search, before, ""), ",")}
	}
	j := n.machine.newJournal(modeNRPT, nrptLocal, c)
	j.NRPT = note
	return note, n.disk.saveJournal(n.stateDir, j)
}

// remaining is the search list without us: what was there before, or, if somebody has written it since, that without
// our domains.
func (o *nrptNote) remaining(now regValue) regValue {
	if now.equal(o.Wrote) {
		return o.Before
	}
	if now.Kind != regString && now.Kind != regExpand {
		return now
	}
	list := splitList(now.Text)
	rest := slices.DeleteFunc(slices.Clone(list), func(domain string) bool {
		ours := func(s string) bool { return strings.EqualFold(s, domain) }
		return slices.ContainsFunc(o.Search, ours) && !slices.ContainsFunc(splitList(o.Before.Text), ours)
	})
	if len(rest) == len(list) {
		return now
	}
	return regValue{Kind: now.Kind, Text: strings.Join(rest, ",")}
}

// splitList splits what Windows puts commas, semicolons or spaces between.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ';' || r == ' ' || r == 0 })
}

// searched are the domains that Windows searches with a search list, or without one those of the machine and its links.
func (n *nrpt) searched(list regValue) ([]string, error) {
	var domains []string
	add := func(text string) {
		for _, word := range splitList(text) {
			if domain, ok := cleanDomain(word); ok && domain != "." && len(domains) < maxOptions {
				domains = appendDomain(domains, domain)
			}
		}
	}
	if add(list.Text); len(domains) > 0 {
		return domains, nil
	}
	links, err := n.win.links()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	for _, at := range append([]string{tcpip}, inInterfaces(tcpip, links)...) {
		for _, name := range []string{"Domain", "DhcpDomain"} {
			v, err := n.value(at, name)
			if err != nil {
				return nil, err
			}
			add(v.Text)
		}
	}
	return domains, nil
}

func inInterfaces(below string, links []string) []string {
	var paths []string
	for _, link := range links {
		paths = append(paths, below+`\Interfaces\`+link)
	}
	return paths
}

// writeRules has the rules of ours below root be these.
func (n *nrpt) writeRules(root string, rules []nrptRule) error {
	for _, rule := range rules {
		for _, v := range rule.values {
			now, err := n.value(root+`\`+rule.key, v.name)
			if err == nil && !now.equal(v.value) {
				err = n.set(root+`\`+rule.key, v.name, v.value)
			}
			if err != nil {
				return err
			}
		}
	}
	_, err := n.forget(root, rules)
	return err
}

// forget removes the rules of ours below root but for those in keep. A key of policies that is empty then goes too:
// while it is there, local rules do not count.
func (n *nrpt) forget(root string, keep []nrptRule) (changed bool, err error) {
	keys, err := n.subkeys(root)
	if err != nil {
		return false, fmt.Errorf(`reading HKLM\%s: %w`, root, err)
	}
	left := len(keys)
	for _, key := range keys {
		kept := slices.ContainsFunc(keep, func(r nrptRule) bool { return strings.EqualFold(r.key, key) })
		if kept || !isOurRule(key) {
			continue
		}
		if err := n.removeKey(root + `\` + key); err != nil {
			return changed, err
		}
		changed, left = true, left-1
	}
	if changed && left == 0 && root == nrptPolicy {
		return true, n.removeKey(root)
	}
	return changed, nil
}

// holds reads back.
func (n *nrpt) holds(_ context.Context, c Config) (bool, error) {
	policy, err := n.policyRules()
	if err != nil {
		return false, err
	}
	rules, _ := nrptRules(c)
	ok, err := n.has(nrptLocal, rules)
	if !ok || err != nil {
		return false, err
	}
	if !policy {
		rules = nil
	}
	if ok, err = n.has(nrptPolicy, rules); !ok || err != nil {
		return false, err
	}
	now, err := n.value(tcpip, searchList)
	list := splitList(now.Text)
	return len(list) >= len(c.Search) && slices.Equal(list[:len(c.Search)], c.Search), err
}

// has reports whether the rules of ours below root are these.
func (n *nrpt) has(root string, rules []nrptRule) (bool, error) {
	keys, err := n.subkeys(root)
	if err != nil {
		return false, err
	}
	ours := slices.DeleteFunc(keys, func(key string) bool { return !isOurRule(key) })
	if len(ours) != len(rules) {
		return false, nil
	}
	for _, rule := range rules {
		for _, v := range rule.values {
			now, err := n.value(root+`\`+rule.key, v.name)
			if err != nil || !now.equal(v.value) {
				return false, err
			}
		}
	}
	return true, nil
}

func (n *nrpt) restore(ctx context.Context) error {
	j, err := loadJournal(n.stateDir)
	if err != nil || j == nil || j.NRPT == nil {
		return err
	}
	if _, err := n.forget(nrptLocal, nil); err != nil {
		return err
	}
	policy, err := n.forget(nrptPolicy, nil)
	if err != nil {
		return err
	}
	if left, err := n.win.registry.keys(nrptLocal); j.NRPT.MadeKey && err == nil && len(left) == 0 {
		if err := n.removeKey(nrptLocal); err != nil {
			return err
		}
	}
	now, err := n.value(tcpip, searchList)
	if err == nil {
		err = n.search(j.NRPT.remaining(now))
	}
	if err != nil {
		return err
	}
	// Rules that are gone are asked no longer, at the latest when the client looks for itself.
	tellErr := n.tell(ctx, policy)
	n.servers, n.troubles = nil, nil
	return errors.Join(n.disk.dropJournal(n.stateDir), tellErr)
}

// problems are what somebody should know.
func (n *nrpt) problems() []string { return n.troubles }

// base is what the links have that are up: what was set by hand, or else what DHCP brought.
func (n *nrpt) base(context.Context) (Base, error) {
	links, err := n.win.links()
	if err != nil {
		return Base{}, fmt.Errorf("listing links: %w", err)
	}
	j, err := loadJournal(n.stateDir)
	if err != nil {
		return Base{}, err
	}
	ours := n.servers
	list, err := n.value(tcpip, searchList)
	if err != nil {
		return Base{}, err
	}
	if j != nil && j.NRPT != nil {
		ours, list = slices.Concat(ours, j.Servers), j.NRPT.remaining(list)
	}
	var b Base
	for _, at := range slices.Concat(inInterfaces(tcpip, links), inInterfaces(tcpip6, links)) {
		text, err := n.linkServers(at)
		if err != nil {
			return Base{}, err
		}
		for _, word := range splitList(text) {
			b.Servers = appendServer(b.Servers, word, ours)
		}
	}
	b.Search, err = n.searched(list)
	return b, err
}

func (n *nrpt) linkServers(at string) (string, error) {
	v, err := n.value(at, "NameServer")
	if err == nil && len(splitList(v.Text)) == 0 {
		v, err = n.value(at, "DhcpNameServer")
	}
	return v.Text, err
}

// siteLocalDNS are addresses that Windows lists where IPv6 has no server (draft-ietf-ipv6-dns-discovery); nobody has them.
func siteLocalDNS() netip.Prefix { return netip.MustParsePrefix("fec0:0:0:ffff::/126") }

func appendServer(list []Server, word string, ours []netip.Addr) []Server {
	addr, err := netip.ParseAddr(word)
	s := Server{AddrPort: netip.AddrPortFrom(addr, 53)}
	if err != nil || addr.IsUnspecified() || siteLocalDNS().Contains(addr) || slices.Contains(ours, addr) ||
		slices.Contains(list, s) || len(list) == maxServersRead {
		return list
	}
	return append(list, s)
}
