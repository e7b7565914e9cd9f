package node

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// entry is one record or directive of a zone file, perhaps over several lines in parentheses.
type entry struct {
	text string
	line int // of the block, from 0
}

// locatedRR is a record and the place where it starts.
type locatedRR struct {
	rr dns.RR
	at position
}

// zoneReader reads the records of a map. Each entry goes through miekg/dns's parser by itself: so every problem is
// found and not the first only, and the directives that read files or multiply records never reach it.
type zoneReader struct {
	block    recordBlock
	lines    []string // of the map's file
	origin   string   // with a final dot
	ttl      uint32
	owner    string // of the entry before
	records  []locatedRR
	problems Problems
}

// maxRecords bounds the records of one map.
const maxRecords = 200_000

// read parses the whole block.
func (z *zoneReader) read() {
	entries, open := splitEntries(z.block.text)
	if open != "" {
		z.problem(entries[len(entries)-1], "", open+" is not closed")
		return
	}
	for _, e := range entries {
		if len(z.records) >= maxRecords {
			z.problem(e, "", fmt.Sprintf("more than %d records", maxRecords))
			return
		}
		z.entry(e)
	}
}

// problem notes what is wrong with an entry; where token stands in it gives the column.
func (z *zoneReader) problem(e entry, token, msg string) {
	z.problems = append(z.problems, z.at(e, token).problem("record", token, msg))
}

// at is the place of token in entry e, or of e itself if token is not in it.
func (z *zoneReader) at(e entry, token string) position {
	if !z.block.block {
		return z.block.at // a quoted or folded block: its lines are not lines of the file
	}
	line, rest := e.line, e.text
	offset := max(strings.Index(rest, token), 0)
	if token == "" {
		offset = len(rest) - len(strings.TrimLeft(rest, " \t"))
	}
	before := rest[:offset]
	line += strings.Count(before, "\n")
	inLine := before[strings.LastIndexByte(before, '\n')+1:]
	at := position{line: z.block.at.line + line}
	at.column = z.indent(at.line, e.text, line-e.line) + len([]rune(inLine)) + 1
	return at
}

// indent is how far the file's line is indented before the block's text begins.
func (z *zoneReader) indent(line int, text string, nth int) int {
	if line < 1 || line > len(z.lines) {
		return 0
	}
	want := strings.Split(text, "\n")[nth]
	raw := strings.TrimRight(z.lines[line-1], "\r")
	if i := strings.Index(raw, want); i > 0 {
		return i
	}
	return 0
}

// entry reads one record or directive.
func (z *zoneReader) entry(e entry) {
	if strings.HasPrefix(e.text, "$") {
		z.directive(e)
		return
	}
	text := e.text
	if text[0] == ' ' || text[0] == '\t' {
		if z.owner == "" {
			z.problem(e, "", "no name before it to belong to")
			return
		}
		text = z.owner + text
	}
	ascii, bad := asciiWords(text)
	if bad != "" {
		z.problem(e, bad, "not a valid international name (IDNA2008); put text in quotes")
		return
	}
	z.owner, _, _ = strings.Cut(strings.ReplaceAll(ascii, "\t", " "), " ")
	rr, err := z.parse(ascii)
	if err != nil {
		token, msg := zoneError(err)
		z.problem(e, token, msg)
		return
	}
	if rr != nil {
		z.records = append(z.records, locatedRR{rr: rr, at: z.at(e, "")})
	}
}

// parse reads one record. A record without a TTL has the map's, as after $TTL (RFC 2308, 4), not that of the record
// before it.
func (z *zoneReader) parse(text string) (dns.RR, error) {
	zp := dns.NewZoneParser(strings.NewReader(text+"\n"), z.origin, "")
	zp.SetDefaultTTL(z.ttl)
	rr, _ := zp.Next()
	return rr, zp.Err()
}

// directive reads $TTL and $ORIGIN. The others read files, or make a thousand records of one line.
func (z *zoneReader) directive(e entry) {
	words := strings.Fields(e.text)
	word, _, _ := strings.Cut(e.text, " ")
	switch name := strings.ToUpper(words[0]); {
	case name != "$TTL" && name != "$ORIGIN":
		z.problem(e, words[0], "not allowed here; only $TTL and $ORIGIN are")
	case len(words) < 2 || len(words) > 2 && !strings.HasPrefix(words[2], ";"):
		z.problem(e, strings.TrimSpace(word), "wants one value")
	case name == "$TTL":
		n, err := strconv.ParseUint(words[1], 10, 31)
		if err != nil {
			z.problem(e, words[1], "not a TTL in seconds")
			return
		}
		z.ttl = uint32(n)
	default:
		origin := strings.ToLower(words[1])
		if !dns.IsFqdn(origin) {
			origin += "." + z.origin
		}
		if _, ok := dns.IsDomainName(origin); !ok {
			z.problem(e, words[1], "not a domain name")
			return
		}
		z.origin = origin
	}
}

// splitEntries splits zone-file text at the line ends outside parentheses. Empty entries are left out. open names what
// the last entry, if any, does not close.
func splitEntries(text string) (entries []entry, open string) {
	start, startLine, line, depth := 0, 0, 0, 0
	quoted, comment := false, false
	flush := func(end int) {
		if s := strings.TrimRight(text[start:end], " \t\r\n"); strings.TrimLeft(s, " \t") != "" && strings.TrimLeft(s, " \t")[0] != ';' {
			entries = append(entries, entry{text: s, line: startLine})
		}
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\n':
			line++
			comment = false
			if quoted || depth > 0 && i < len(text)-1 {
				continue
			}
			if depth > 0 {
				break
			}
			flush(i)
			start, startLine = i+1, line
		case comment:
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == ';':
			comment = true
		case c == '(':
			depth++
		case c == ')':
			depth--
		}
	}
	flush(len(text))
	switch {
	case len(entries) == 0:
		return nil, ""
	case quoted:
		open = "a quote"
	case depth > 0:
		open = "a parenthesis"
	}
	return entries, open
}

// asciiWords turns the words outside quotes and comments that are not ASCII into A-labels. bad is the first that
// cannot be.
func asciiWords(text string) (out, bad string) {
	if isASCII(text) {
		return text, ""
	}
	var b strings.Builder
	for text != "" {
		end := strings.IndexAny(text, " \t\n\";()")
		if end < 0 {
			end = len(text)
		}
		if w := text[:end]; isASCII(w) {
			b.WriteString(w)
		} else {
			domain, msg := checkDomain(w)
			if msg != "" {
				return "", w
			}
			b.WriteString(domain)
			if strings.HasSuffix(w, ".") {
				b.WriteByte('.')
			}
		}
		text = text[end:]
		skip := separatorLen(text)
		b.WriteString(text[:skip])
		text = text[skip:]
	}
	return b.String(), ""
}

// separatorLen is how long the separator, quoted string or comment at the start of text is.
func separatorLen(text string) int {
	if text == "" {
		return 0
	}
	switch text[0] {
	case '"':
		for i := 1; i < len(text); i++ {
			switch text[i] {
			case '\\':
				i++
			case '"':
				return i + 1
			}
		}
		return len(text)
	case ';':
		if i := strings.IndexByte(text, '\n'); i >= 0 {
			return i
		}
		return len(text)
	default:
		return 1
	}
}

// zoneError takes miekg/dns's message apart; its place is dropped because it counts from the entry and points behind
// the word.
func zoneError(err error) (token, msg string) {
	var pe *dns.ParseError
	if !errors.As(err, &pe) {
		return "", err.Error()
	}
	m := regexp.MustCompile(`(?s)^dns: (.*): ("(?:[^"\\]|\\.)*") at line: \d+:\d+$`).FindStringSubmatch(pe.Error())
	if m == nil {
		return "", strings.TrimPrefix(pe.Error(), "dns: ")
	}
	token, uerr := strconv.Unquote(m[2])
	if uerr != nil || strings.TrimSpace(token) == "" {
		token = ""
	}
	if m[1] == "not a TTL" {
		return token, "neither a type of records nor a TTL" // where a type is wanted miekg/dns looks for a TTL last
	}
	if what, ok := strings.CutPrefix(m[1], "bad "); ok {
		return token, "not a valid " + strings.Join(slices.Compact(strings.Fields(what)), " ") // "bad A A"
	}
	return token, m[1]
}
