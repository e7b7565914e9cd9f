package node

import (
	"fmt"

	"github.com/goccy/go-yaml/token"
)

// blockSequence reads the items whose dashes stand in one column.
func (p *yamlParser) blockSequence(column int) (*item, error) {
	seq := &item{kind: sequenceItem, at: place(p.peek(0))}
	for {
		dash := p.peek(0)
		if dash == nil || dash.Position.Column != column || dash.Type != token.SequenceEntryType {
			return seq, p.endBlock(column)
		}
		p.next()
		value := &item{at: place(dash)}
		if t := p.peek(0); t != nil && (t.Position.Line == dash.Position.Line || t.Position.Column > column) {
			var err error
			if value, err = p.node(); err != nil {
				return nil, err
			}
		}
		seq.items = append(seq.items, value)
	}
}

// endBlock checks that what follows a block belongs to one further out: a token further in is one that nothing
// claimed. A sequence may stand in the column of the key that it belongs to, so an equal column can be right.
func (p *yamlParser) endBlock(column int) error {
	if t := p.peek(0); t != nil && t.Position.Column > column {
		return p.fail(t, unexpected(t))
	}
	return nil
}

// blockMapping reads the keys that stand in one column.
func (p *yamlParser) blockMapping(column int) (*item, error) {
	m := &item{kind: mappingItem, at: place(p.peek(0))}
	seen := map[string]position{}
	for {
		t := p.peek(0)
		switch {
		case t == nil, t.Position.Column < column, t.Type == token.DocumentHeaderType, t.Type == token.DocumentEndType:
			return m, nil
		case t.Position.Column > column || !p.atKey():
			// A dash in this column would be an item beside a key.
			return nil, p.fail(t, unexpected(t))
		}
		key, err := p.key(seen)
		if err != nil {
			return nil, err
		}
		value, err := p.blockValue(column, p.next())
		if err != nil {
			return nil, err
		}
		m.keys, m.items = append(m.keys, key), append(m.items, value)
	}
}

// blockValue reads what belongs to the key in column, after its colon.
func (p *yamlParser) blockValue(column int, colon *token.Token) (*item, error) {
	t := p.peek(0)
	empty := &item{at: place(colon)}
	switch {
	case t == nil, t.Type == token.DocumentHeaderType, t.Type == token.DocumentEndType:
		return empty, nil
	case t.Position.Line == colon.Position.Line:
		if t.Type == token.SequenceEntryType || p.atKey() {
			return nil, p.fail(t, "a mapping or list starts on the line after its key; quote the value if it is text")
		}
		return p.node()
	case t.Position.Column > column, t.Position.Column == column && t.Type == token.SequenceEntryType:
		return p.node()
	default:
		return empty, nil
	}
}

// key reads a key up to its colon. One that stood before is a problem, but reading goes on.
func (p *yamlParser) key(seen map[string]position) (*item, error) {
	key, err := p.scalar()
	if err != nil {
		return nil, err
	}
	first, twice := seen[key.text]
	if twice {
		key.twice = true
		p.problems = append(p.problems, key.at.problem("key", key.text, fmt.Sprintf("given twice, first in line %d", first.line)))
	}
	seen[key.text] = key.at
	key.kind = scalarItem // a key named null is a word like others
	return key, nil
}

// flowSequence reads [a, b].
func (p *yamlParser) flowSequence() (*item, error) {
	seq := &item{kind: sequenceItem, at: place(p.next())}
	for !p.peekIs(token.SequenceEndType) {
		value, err := p.flowValue()
		if err != nil {
			return nil, err
		}
		seq.items = append(seq.items, value)
		if err := p.comma(token.SequenceEndType); err != nil {
			return nil, err
		}
	}
	p.next()
	return seq, nil
}

// flowMapping reads {a: b, c: d}.
func (p *yamlParser) flowMapping() (*item, error) {
	m := &item{kind: mappingItem, at: place(p.next())}
	seen := map[string]position{}
	for !p.peekIs(token.MappingEndType) {
		if !p.atKey() {
			return nil, p.fail(p.peek(0), "a key and a colon are missing here")
		}
		key, err := p.key(seen)
		if err != nil {
			return nil, err
		}
		value := &item{at: place(p.next())}
		if !p.peekIs(token.CollectEntryType) && !p.peekIs(token.MappingEndType) {
			if value, err = p.flowValue(); err != nil {
				return nil, err
			}
		}
		m.keys, m.items = append(m.keys, key), append(m.items, value)
		if err := p.comma(token.MappingEndType); err != nil {
			return nil, err
		}
	}
	p.next()
	return m, nil
}

// flowValue reads a value inside brackets, where block collections cannot start.
func (p *yamlParser) flowValue() (*item, error) {
	t := p.peek(0)
	if t == nil {
		return nil, p.fail(nil, "a bracket is not closed")
	}
	if t.Type == token.SequenceEntryType || p.atKey() {
		return nil, p.fail(t, "unexpected inside brackets; quote the value if it is text")
	}
	return p.node()
}

// comma reads the comma between two values, or leaves the closing bracket to the caller.
func (p *yamlParser) comma(end token.Type) error {
	switch t := p.peek(0); {
	case t == nil:
		return p.fail(nil, "a bracket is not closed")
	case t.Type == token.CollectEntryType:
		p.next()
		return nil
	case t.Type == end:
		return nil
	default:
		return p.fail(t, "a comma or a closing bracket is missing here")
	}
}
