package node

import (
	"errors"
	"net/netip"
	"strings"
)

// A wg-quick file has no names, so people write them as comments. A section's name is the first of:
//
//	# Name = nas        anywhere in the section, or directly above its header; also "Name: nas"
//	[Peer] # nas        behind the header
//	# nas               directly above the header; also "### Client nas", "### begin nas ###", "# Client: nas (id)"
//	# nas               in the section, before its first setting
//
// Comments that hold an equals sign are settings that somebody switched off, not names.

// wgSection is one section of a wg-quick file.
type wgSection struct {
	peer  bool
	name  string // by "Name ="
	title string // by a comment at the header or above
	first string // by a comment before the first setting
	addrs []string
	begun bool // a setting was read
}

// wgParser reads a wg-quick file. It keeps names and addresses and nothing else: such files hold private keys (S21).
type wgParser struct {
	sections []wgSection
	above    []string // the comments right above the line
}

// parseWGQuick reads a wg-quick file: the interface itself and the peers, as far as comments name them. A peer's
// addresses are the single addresses among its AllowedIPs.
func parseWGQuick(data []byte) ([]rawMachine, error) {
	if strings.IndexByte(string(data), 0) >= 0 {
		return nil, errors.New("not a wg-quick file")
	}
	var p wgParser
	for line := range strings.Lines(string(data)) {
		p.line(strings.TrimSpace(line))
	}
	if len(p.sections) == 0 {
		return nil, errors.New("not a wg-quick file: neither [Interface] nor [Peer]")
	}
	if len(p.sections) > maxMachines {
		return nil, errTooMany
	}
	var out []rawMachine
	for _, s := range p.sections {
		if name := firstOf(s.name, s.title, s.first); name != "" {
			out = append(out, rawMachine{name: name, addrs: s.addrs})
		}
	}
	return out, nil
}

func firstOf(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

func (p *wgParser) line(line string) {
	text, comment, _ := strings.Cut(line, "#")
	text = strings.TrimSpace(text)
	switch {
	case line == "":
		p.above = nil
	case text == "":
		p.comment(comment)
	case strings.EqualFold(text, "[Peer]"), strings.EqualFold(text, "[Interface]"):
		p.header(strings.EqualFold(text, "[Peer]"), comment)
	case len(p.sections) > 0:
		p.setting(text)
	}
}

func (p *wgParser) header(peer bool, comment string) {
	s := wgSection{peer: peer, title: commentName(comment)}
	for _, c := range p.above {
		if name := explicitName(c); name != "" {
			s.name = name
		}
	}
	if n := len(p.above); n > 0 && s.title == "" {
		s.title = commentName(p.above[n-1])
	}
	// What is above this header was not the name of the section before.
	if n := len(p.sections); n > 0 && len(p.above) > 0 && !p.sections[n-1].begun {
		p.sections[n-1].first = ""
	}
	p.sections, p.above = append(p.sections, s), nil
}

// comment notes a comment line, which may belong to the section it is in or to the one that follows.
func (p *wgParser) comment(c string) {
	p.above = append(p.above, c)
	if len(p.sections) == 0 {
		return
	}
	s := &p.sections[len(p.sections)-1]
	if s.first == "" && !s.begun {
		s.first = commentName(c)
	}
}

// setting reads "Key = value". The comments before it are in the section, so a name among them is the section's.
func (p *wgParser) setting(text string) {
	s := &p.sections[len(p.sections)-1]
	for _, c := range p.above {
		if name := explicitName(c); name != "" && s.name == "" {
			s.name = name
		}
	}
	s.begun, p.above = true, nil
	key, value, _ := strings.Cut(text, "=")
	switch key = strings.TrimSpace(key); {
	case s.peer && strings.EqualFold(key, "AllowedIPs"), !s.peer && strings.EqualFold(key, "Address"):
		for word := range strings.SplitSeq(value, ",") {
			word = strings.TrimSpace(word)
			if !s.peer || isSingle(word) {
				s.addrs = append(s.addrs, word)
			}
		}
	}
}

// isSingle reports whether an AllowedIPs entry is one address.
func isSingle(s string) bool {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.IsSingleIP()
	}
	_, err := netip.ParseAddr(s)
	return err == nil
}

// explicitName is what "Name = nas" or "Name: nas" names.
func explicitName(comment string) string {
	comment = strings.Trim(comment, "# \t")
	i := strings.IndexAny(comment, "=:")
	if i < 0 || !strings.EqualFold(strings.TrimSpace(comment[:i]), "name") {
		return ""
	}
	return strings.TrimSpace(comment[i+1:])
}

// commentName is what a comment names, if it is a name.
func commentName(comment string) string {
	if name := explicitName(comment); name != "" {
		return name
	}
	comment = strings.Trim(comment, "# \t")
	if strings.Contains(comment, "=") || len(comment) > maxLabel {
		return ""
	}
	word, rest, _ := strings.Cut(comment, " ")
	switch strings.ToLower(strings.TrimSuffix(word, ":")) {
	case "client", "peer", "begin", "friendly_name":
		comment = strings.TrimSpace(rest)
	case "end":
		return "" // of the section before
	}
	comment, _, _ = strings.Cut(comment, " (") // an id behind the name
	return strings.TrimSpace(comment)
}
