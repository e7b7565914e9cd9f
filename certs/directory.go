package certs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// directory is a CA's directory as it was fetched last. acmez fetches those of all CAs under one lock of the whole process, so
// that a CA which hangs would hold up what is asked of every other one: it gets them from here.
type directory struct {
	address string
	live    http.RoundTripper

	mu   sync.Mutex
	text []byte
	at   time.Time
}

const (
	directoryLife  = time.Hour // acmez keeps what it gets for 12 hours more
	directoryTries = 3
	directoryPause = 250 * time.Millisecond
)

// RoundTrip answers for the directory what is known of it, and asks the CA for everything else.
func (d *directory) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet || req.URL.String() != d.address {
		return d.live.RoundTrip(req)
	}
	text := d.known(2 * directoryLife) // who has fetched it may take a while
	if text == nil {
		return nil, errors.New("the CA's directory was not fetched before")
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: int64(len(text)), Body: io.NopCloser(bytes.NewReader(text)),
	}, nil
}

// known is the directory, if it was fetched within a time.
func (d *directory) known(within time.Duration) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.at) >= within {
		return nil
	}
	return d.text
}

// fetchDirectory makes sure that the CA's directory is known.
func (a *ACME) fetchDirectory(ctx context.Context) error {
	d := a.directory
	if d.known(directoryLife) != nil {
		return nil
	}
	var err error
	for try := range directoryTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(directoryPause):
			}
		}
		var text []byte
		var again bool
		if text, again, err = a.askDirectory(ctx); err == nil {
			d.mu.Lock()
			d.text, d.at = text, time.Now()
			d.mu.Unlock()
			return nil
		}
		if !again {
			break
		}
	}
	return fmt.Errorf("reading the CA's directory: %w", err)
}

// askDirectory asks the CA for its directory. again says that another try may succeed.
func (a *ACME) askDirectory(ctx context.Context) (text []byte, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.cfg.Directory, nil)
	if err != nil {
		return nil, false, err
	}
	req.Header.Set("User-Agent", a.cfg.Agent)
	resp, err := a.live.Do(req)
	if err != nil {
		return nil, true, err
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(resp.Body) // which is bounded
	if err != nil {
		return nil, true, err
	}
	if resp.StatusCode != http.StatusOK {
		again := resp.StatusCode >= http.StatusInternalServerError
		var said acme.Problem
		if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != "application/problem+json" || json.Unmarshal(text, &said) != nil {
			return nil, again, fmt.Errorf("it answered %s", resp.Status)
		}
		if said.Status == 0 {
			said.Status = resp.StatusCode
		}
		return nil, again, said
	}
	var dir acme.Directory
	if json.Unmarshal(text, &dir) != nil || dir.NewNonce == "" || dir.NewAccount == "" || dir.NewOrder == "" {
		return nil, false, errors.New("what it answered is no ACME directory")
	}
	return text, false, nil
}
