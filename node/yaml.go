package node

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/scanner"
	"github.com/goccy/go-yaml/token"
)

// Here is the part of YAML that people write by hand: block and flow mappings and sequences, every kind of scalar,
// one document. Anchors, aliases, merge keys, tags and complex keys are refused: they save little in such files, and
// aliases let a small file grow without bound. The scanner is the library's; its parser is not used because it
// recurses once a key and takes quadratic time in them (8 s for 50,000 nodes).

// kind says what an item is.
type kind uint8

const (
	nullItem kind = iota // nothing, or the word null
	scalarItem
	sequenceItem
	mappingItem
)

func (k kind) String() string {
	return [...]string{"nothing", "a value", "a list", "a mapping"}[k]
}

// item is a node of the document.
type item struct {
	kind   kind
	at     position
	text   string  // of a scalar, unquoted
	quoted bool    // a scalar in quotes or a block scalar: never null
	block  bool    // a literal block scalar: its text starts on the next line
	twice  bool    // a key that stood before in its mapping, which has been reported
	keys   []*item // of a mapping, each a scalar
	items  []*item // values of a mapping, items of a sequence
}

// maxNesting is how deep a document may nest. Ours need six levels.
const maxNesting = 32

// yamlParser reads one document from the scanner.
type yamlParser struct {
	scan     scanner.Scanner
	queue    []*token.Token
	depth    int
	last     position // of the token read last
	problems Problems
}

// errYAML ends parsing; the problem is in yamlParser.problems.
var errYAML = errors.New("not YAML")

// parseYAML reads a document. The item is nil if the document has a problem of syntax; keys that stand twice are
// reported and both kept.
func parseYAML(data []byte) (*item, Problems) {
	if p, ok := checkText(data); !ok {
		return nil, Problems{p}
	}
	p := &yamlParser{}
	p.scan.Init(strings.TrimPrefix(string(data), "\ufeff"))
	root, err := p.document()
	if err != nil {
		return nil, p.problems
	}
	return root, p.problems
}

// checkText finds bytes that no YAML file has.
func checkText(data []byte) (Problem, bool) {
	line := 1
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && n == 1:
			return Problem{Line: line, Msg: "not UTF-8"}, false
		case r == '\n':
			line++
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f:
			return Problem{Line: line, Msg: fmt.Sprintf("control character %U", r)}, false
		}
		data = data[n:]
	}
	return Problem{}, true
}

// peek is the n-th token from here, comments left out, or nil at the end.
func (p *yamlParser) peek(n int) *token.Token {
	for len(p.queue) <= n {
		tokens, err := p.scan.Scan()
		if errors.Is(err, io.EOF) {
			return nil
		}
		for _, t := range tokens {
			if t.Type != token.CommentType {
				p.queue = append(p.queue, t)
			}
		}
	}
	return p.queue[n]
}

func (p *yamlParser) next() *token.Token {
	t := p.peek(0)
	if t != nil {
		p.queue = p.queue[1:]
		p.last = place(t)
	}
	return t
}

// peekIs reports whether the next token is of type t.
func (p *yamlParser) peekIs(t token.Type) bool {
	next := p.peek(0)
	return next != nil && next.Type == t
}

func place(t *token.Token) position {
	return position{line: t.Position.Line, column: max(t.Position.Column, 0)}
}

// fail notes why the document cannot be read at token t; nil stands for its end.
func (p *yamlParser) fail(t *token.Token, msg string) error {
	if t == nil {
		p.problems = append(p.problems, p.last.problem("", "", "the file ends here: "+msg))
		return errYAML
	}
	p.problems = append(p.problems, place(t).problem("", "", msg))
	return errYAML
}

func (p *yamlParser) document() (*item, error) {
	if p.peekIs(token.DocumentHeaderType) {
		p.next()
	}
	root := &item{at: position{line: 1, column: 1}}
	if t := p.peek(0); t != nil && t.Type != token.DocumentEndType {
		var err error
		if root, err = p.node(); err != nil {
			return nil, err
		}
	}
	if p.peekIs(token.DocumentEndType) {
		p.next()
	}
	if t := p.peek(0); t != nil {
		if t.Type == token.DocumentHeaderType {
			return nil, p.fail(t, "a second document; one file is one document")
		}
		return nil, p.fail(t, unexpected(t))
	}
	return root, nil
}

// unexpected says why a token cannot stand where it does.
func unexpected(t *token.Token) string {
	switch t.Type {
	case token.InvalidType:
		return t.Error
	case token.AnchorType, token.AliasType, token.MergeKeyType:
		return "anchors and aliases are not read here; write the value out, or quote it"
	case token.TagType:
		return "tags are not read here; quote the value if it starts with !"
	case token.DirectiveType:
		return "directives are not read here; quote the value if it starts with %"
	case token.MappingKeyType:
		return "a key must be a plain word, without ?"
	case token.StringType, token.SingleQuoteType, token.DoubleQuoteType:
		return "unexpected text; look at the indentation, and for a missing colon or comma"
	default:
		return fmt.Sprintf("unexpected %q; look at the indentation", strings.TrimSpace(t.Value))
	}
}

// node reads whatever starts at the next token.
func (p *yamlParser) node() (*item, error) {
	t := p.peek(0)
	if t == nil {
		return nil, p.fail(nil, "a value is missing")
	}
	if p.depth++; p.depth > maxNesting {
		return nil, p.fail(t, fmt.Sprintf("nested deeper than %d levels", maxNesting))
	}
	defer func() { p.depth-- }()
	switch {
	case t.Type == token.SequenceEntryType:
		return p.blockSequence(t.Position.Column)
	case t.Type == token.SequenceStartType:
		return p.flowSequence()
	case t.Type == token.MappingStartType:
		return p.flowMapping()
	case p.atKey():
		return p.blockMapping(t.Position.Column)
	default:
		return p.scalar()
	}
}

// atKey reports whether the next token is the key of a mapping: a scalar with a colon on its line.
func (p *yamlParser) atKey() bool {
	t, colon := p.peek(0), p.peek(1)
	return t != nil && colon != nil && isScalar(t) && colon.Type == token.MappingValueType &&
		colon.Position.Line == t.Position.Line
}

func isScalar(t *token.Token) bool {
	switch t.Type {
	case token.StringType, token.SingleQuoteType, token.DoubleQuoteType, token.IntegerType, token.FloatType,
		token.BoolType, token.NullType, token.BinaryIntegerType, token.OctetIntegerType, token.HexIntegerType,
		token.InfinityType, token.NanType, token.ImplicitNullType:
		return true
	default:
		return false
	}
}

// scalar reads one value that is neither mapping nor sequence.
func (p *yamlParser) scalar() (*item, error) {
	t := p.next()
	it := &item{kind: scalarItem, at: place(t), text: t.Value}
	switch {
	case t.Type == token.LiteralType, t.Type == token.FoldedType:
		text := p.peek(0)
		if text == nil || text.Type != token.StringType {
			return nil, p.fail(text, "the block of text is empty; indent it further than its key")
		}
		it.text, it.quoted, it.block = p.next().Value, true, t.Type == token.LiteralType
	case t.Type == token.SingleQuoteType, t.Type == token.DoubleQuoteType:
		it.quoted = true
	case t.Type == token.NullType, t.Type == token.ImplicitNullType:
		it.kind = nullItem
	case !isScalar(t):
		return nil, p.fail(t, unexpected(t))
	}
	return it, nil
}
