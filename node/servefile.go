package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"
)

// servedFile is what is served in the background, below the state directory. It may hold credentials of a login's provider.
const servedFile = "serve.json"

// maxServedFile bounds it: maxServed entries with all that they may have.
const maxServedFile = 4 << 20

const servedSchema = "meshdns.serve/v1"

// servedText is that file.
type servedText struct {
	Schema  string               `json:"schema"` // meshdns.serve/v1
	Entries []served             `json:"entries"`
	Spent   map[string]time.Time `json:"spent,omitempty"` // share links that were taken, wherever they are from, by hash
}

// encode is the file's content.
func (t servedText) encode() ([]byte, error) {
	t.Schema, t.Entries = servedSchema, notNil(t.Entries)
	data, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding what is served: %w", err)
	}
	return append(data, '\n'), nil
}

// tag is what is served, in short: whoever changes what he has read says by that what he has read.
func (t servedText) tag() string {
	t.Spent = nil // by visitors, and not by him
	data, err := t.encode()
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// parseServed reads what is served in the background.
func parseServed(data []byte) (servedText, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields() // a rule that is not understood is not to be left out
	var text servedText
	if err := d.Decode(&text); err != nil {
		return text, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return text, errors.New("more than one value")
	}
	if text.Schema != servedSchema {
		return text, fmt.Errorf("the schema is %.100q, not %s", text.Schema, servedSchema)
	}
	return text, checkServed(text.Entries)
}

// checkServed fills in what was left out of a list that is to be served together, and says why it cannot be.
func checkServed(list []served) error {
	if len(list) > maxServed {
		return hinted(ErrBadRequest, fmt.Errorf("more than %d entries", maxServed), "")
	}
	for i := range list {
		if err := list[i].fill(); err != nil {
			return fmt.Errorf("entry %d: %w", i+1, err)
		}
		for _, other := range list[:i] {
			if err := clash(list[i], other); err != nil {
				return fmt.Errorf("entry %d: %w", i+1, err)
			}
		}
	}
	for _, e := range entriesOf(list) {
		if err := e.Check(); err != nil {
			return hinted(ErrBadRequest, err, hintOf(err))
		}
	}
	return nil
}

// loadServed reads the file; without one nothing is served.
func loadServed(state string) (servedText, error) {
	path := filepath.Join(state, servedFile)
	data, err := readFile(path, maxServedFile)
	if errors.Is(err, fs.ErrNotExist) {
		return servedText{}, nil
	}
	if err != nil {
		return servedText{}, err
	}
	text, err := parseServed(data)
	if err != nil {
		return servedText{}, hinted(nil, fmt.Errorf("reading %s: %w", path, err), "mend the file, or move it away and serve anew; then: meshdns down and up")
	}
	return text, nil
}

// saveServed replaces the file.
func saveServed(state string, text servedText) error {
	data, err := text.encode()
	if err != nil {
		return err
	}
	if len(data) > maxServedFile {
		return hinted(ErrBadRequest, fmt.Errorf("what is served takes more than %d bytes", maxServedFile), "")
	}
	return writeFile(filepath.Join(state, servedFile), data, 0o600)
}
