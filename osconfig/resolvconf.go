package osconfig

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what is read of a resolv.conf. glibc has none for the file, but nothing that a resolver could use is longer.
const (
	maxConfBytes   = 64 << 10
	maxLineBytes   = 4 << 10
	maxServersRead = 16
	maxOptions     = 32
	maxSortlist    = 10 // MAXRESOLVSORT of glibc
	maxProblems    = 64
)

// Bounds of what is written.
const (
	maxServersWritten = 3   // MAXNS of <resolv.h>: further lines are read by nobody
	maxOptionsLine    = 200 // no resolver needs longer lines, and several are added up
	maxSearchBytes    = 255 // musl ignores a longer search list as a whole
)

// resolvConf is what a resolv.conf says, as resolv.conf(5) describes it.
type resolvConf struct {
	nameservers []netip.Addr // with the zone of link-local ones
	search      []string     // without the dot at the end; "." alone says that nothing is to be searched
	options     []string
	sortlist    []string
	problems    []lineProblem
}

// lineProblem says why something in a resolv.conf does not count.
type lineProblem struct {
	line int
	why  string
}

func (p lineProblem) String() string { return "line " + strconv.Itoa(p.line) + ": " + p.why }

// parseResolvConf reads a resolv.conf line by line. What is wrong with one line never costs another: a machine with one
// odd line still has its nameservers.
func parseResolvConf(data []byte) resolvConf {
	var c resolvConf
	cut := len(data) > maxConfBytes
	if cut {
		// The last line may be torn by the limit, so it does not count.
		data = data[:bytes.LastIndexByte(data[:maxConfBytes], '\n')+1]
	}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		c.parseLine(n, bytes.TrimRight(line, "\r\n"))
	}
	if cut {
		c.fault(n+1, "only the first %d bytes are read", maxConfBytes)
	}
	return c
}

func (c *resolvConf) fault(line int, format string, args ...any) {
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, lineProblem{line, fmt.Sprintf(format, args...)})
	}
}

func (c *resolvConf) parseLine(n int, line []byte) {
	if len(line) > maxLineBytes {
		c.fault(n, "longer than %d bytes", maxLineBytes)
		return
	}
	words := confWords(string(line))
	if len(words) == 0 {
		return
	}
	keyword, values := words[0], words[1:]
	if len(values) == 0 {
		c.fault(n, "%.40q says nothing", keyword)
		return
	}
	switch keyword {
	case "nameserver":
		c.addNameserver(n, values[0])
	case "domain":
		c.setSearch(n, values[:1])
	case "search":
		c.setSearch(n, values)
	case "options":
		c.addWords(n, &c.options, values, validOption, maxOptions)
	case "sortlist":
		c.addWords(n, &c.sortlist, values, validSortlist, maxSortlist)
	default:
		c.fault(n, "%.40q is no keyword", keyword)
	}
}

// confWords splits a line into its words and drops comments. glibc takes a comment at the end of some lines for a
// value; nobody who writes one means that.
func confWords(line string) []string {
	words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '\r' || r == '\v' || r == '\f' })
	comment := slices.IndexFunc(words, func(w string) bool { return w[0] == '#' || w[0] == ';' })
	if comment >= 0 {
		words = words[:comment]
	}
	return words
}

func (c *resolvConf) addNameserver(n int, value string) {
	// glibc ends the address at a comment character even without a space before it.
	if i := strings.IndexAny(value, "#;"); i >= 0 {
		value = value[:i]
	}
	addr, err := netip.ParseAddr(value)
	switch {
	case err != nil:
		c.fault(n, "%.60q is no address", value)
	case !validZone(addr.Zone()):
		c.fault(n, "%.60q names no interface", value)
	case len(c.nameservers) == maxServersRead:
		c.fault(n, "more than %d nameservers", maxServersRead)
	case !slices.Contains(c.nameservers, addr.Unmap()):
		c.nameservers = append(c.nameservers, addr.Unmap())
	}
}

// setSearch replaces the search list: of all search and domain lines the last one counts.
func (c *resolvConf) setSearch(n int, values []string) {
	var list []string
	for _, value := range values {
		domain, ok := cleanDomain(value)
		if !ok {
			c.fault(n, "%.60q is no domain", value)
			continue
		}
		list = appendDomain(list, domain)
	}
	if len(list) > 0 {
		c.search = list
	}
}

func (c *resolvConf) addWords(n int, list *[]string, values []string, valid func(string) bool, limit int) {
	for _, value := range values {
		switch {
		case !valid(value):
			c.fault(n, "%.60q is no value", value)
		case len(*list) == limit:
			c.fault(n, "more than %d values", limit)
			return
		case !slices.Contains(*list, value):
			*list = append(*list, value)
		}
	}
}

// cleanDomain checks a domain, and drops the dot at its end unless it is the root.
func cleanDomain(s string) (domain string, ok bool) {
	if s == "." {
		return s, true
	}
	s = strings.TrimSuffix(s, ".")
	if len(s) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || !only(label, "-_") {
			return "", false
		}
	}
	return s, true
}

// appendDomain adds a domain unless the list has it in whatever case.
func appendDomain(list []string, domain string) []string {
	if slices.ContainsFunc(list, func(have string) bool { return strings.EqualFold(have, domain) }) {
		return list
	}
	return append(list, domain)
}

func validOption(s string) bool   { return len(s) <= 63 && only(s, "-_:.") }
func validSortlist(s string) bool { return len(s) <= 63 && only(s, "./:") }
func validZone(s string) bool     { return len(s) <= 63 && only(s, "-_:.@") }

// only reports whether s is made of ASCII letters, digits and the characters in more alone. Nothing else reaches a
// system file: a newline in a domain would be a line of the attacker's choice.
func only(s, more string) bool {
	for _, r := range []byte(s) {
		letter := r|0x20 >= 'a' && r|0x20 <= 'z'
		digit := r >= '0' && r <= '9'
		if !letter && !digit && strings.IndexByte(more, r) < 0 {
			return false
		}
	}
	return true
}

// append writes the file that says c.
func (c resolvConf) append(b []byte) []byte {
	for _, addr := range c.nameservers {
		b = fmt.Appendf(b, "nameserver %s\n", addr)
	}
	if len(c.search) > 0 {
		b = fmt.Appendf(b, "search %s\n", strings.Join(c.search, " "))
	}
	for _, line := range wrapWords(c.options, maxOptionsLine) {
		b = fmt.Appendf(b, "options %s\n", line)
	}
	if len(c.sortlist) > 0 {
		b = fmt.Appendf(b, "sortlist %s\n", strings.Join(c.sortlist, " "))
	}
	return b
}

// wrapWords joins words to lines of at most limit bytes.
func wrapWords(words []string, limit int) []string {
	var lines []string
	for _, word := range words {
		last := len(lines) - 1
		if last >= 0 && len(lines[last])+1+len(word) <= limit {
			lines[last] += " " + word
			continue
		}
		lines = append(lines, word)
	}
	return lines
}

// The comments of our file.
const (
	ourFirstLine = "# meshdns answers this machine's DNS: names of its tailnet by itself, all others by asking the\n"
	ourLines     = "# nameservers that stood here before.\n# Put back what was here: meshdns dns restore\n"
	ourLastLine  = "# A program that writes this file is noticed: its nameservers are learnt and these lines written again.\n"
)

// ourConf is the file that has the machine ask servers: what else the file before said stays. The machine's own search
// domains keep their order, behind ours, since a short name that we serve is to be found without asking others.
func ourConf(c Config, before resolvConf, hostDomain string) []byte {
	ours := resolvConf{
		nameservers: c.written(),
		search:      joinSearch(c.Search, before.search, hostDomain),
		options:     before.options,
		sortlist:    before.sortlist,
	}
	text := []byte(ourFirstLine + ourLines)
	if len(before.nameservers) > 0 {
		var list []string
		for _, addr := range before.nameservers {
			list = append(list, addr.String())
		}
		text = fmt.Appendf(text, "%s%s\n", formerPrefix, strings.Join(list, " "))
	}
	text = append(text, ourLastLine...)
	return ours.append(text)
}

// joinSearch puts our search domains before those of the machine. A machine without a search list searches the domain
// of its own name (resolv.conf(5)), which a list takes away, so that goes into the list.
func joinSearch(ours, before []string, hostDomain string) []string {
	if len(ours) == 0 {
		return before
	}
	if len(before) == 0 && hostDomain != "" {
		before = []string{hostDomain}
	}
	var list []string
	for _, domain := range ours {
		list = appendDomain(list, domain)
	}
	bound := max(maxSearchBytes, len(strings.Join(before, " ")))
	for _, domain := range before {
		longer := appendDomain(list, domain)
		if domain == "." || len(strings.Join(longer, " ")) > bound {
			continue
		}
		list = longer
	}
	return list
}

// formerPrefix starts the comment in which ourConf names the nameservers before, for people who have to mend a machine
// by hand, and for withoutUs.
const formerPrefix = "# The nameservers before: "

// withoutUs is a resolv.conf that may name our servers, as it would be without them. If it names no others it is a file
// of ours whose journal was lost, and the comment in it is all that is left of the one before.
func withoutUs(data []byte, servers []netip.Addr) []byte {
	all := parseResolvConf(data).nameservers
	ours := func(a netip.Addr) bool { return slices.Contains(servers, a) }
	if !slices.ContainsFunc(all, ours) {
		return data
	}
	rest := withoutServers(data, servers)
	if len(parseResolvConf(rest).nameservers) > 0 {
		return rest
	}
	for line := range bytes.Lines(data) {
		former, ok := strings.CutPrefix(string(line), formerPrefix)
		for word := range strings.FieldsSeq(former) {
			if addr, err := netip.ParseAddr(word); ok && err == nil && !ours(addr) {
				rest = fmt.Appendf(rest, "nameserver %s\n", addr)
			}
		}
	}
	return rest
}

// withoutServers is a resolv.conf without the lines that name servers; the others stay byte for byte.
func withoutServers(data []byte, servers []netip.Addr) []byte {
	var out []byte
	for line := range bytes.Lines(data) {
		var c resolvConf
		c.parseLine(1, bytes.TrimRight(line, "\r\n"))
		if len(c.nameservers) == 1 && slices.Contains(servers, c.nameservers[0]) {
			continue
		}
		out = append(out, line...)
	}
	return out
}

// withoutTraces is a resolv.conf that another program made from ours, without our comments and search domains. One that
// it did not make so is left as it is.
func withoutTraces(data []byte, search []string) []byte {
	if !bytes.Contains(data, []byte(ourFirstLine)) {
		return data
	}
	comments := ourFirstLine + ourLines + ourLastLine
	var out []byte
	for line := range bytes.Lines(data) {
		text := string(line)
		if strings.HasPrefix(text, "#") && (strings.Contains(comments, text) || strings.HasPrefix(text, formerPrefix)) {
			continue
		}
		var c resolvConf
		c.parseLine(1, bytes.TrimRight(line, "\r\n"))
		rest := slices.DeleteFunc(slices.Clone(c.search), func(domain string) bool { return slices.Contains(search, domain) })
		switch {
		case len(rest) == len(c.search):
			out = append(out, line...)
		case len(rest) > 0:
			out = fmt.Appendf(out, "search %s\n", strings.Join(rest, " "))
		}
	}
	return out
}
