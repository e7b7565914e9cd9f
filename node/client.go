package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

// maxReply bounds what a client reads of an answer; a map of 100,000 nodes stays below.
const maxReply = 64 << 20

// Client asks a running node over its control socket. Its errors are ErrNoDaemon where none runs, or one of the
// package's other errors as the node gave it.
type Client struct {
	Socket string // empty: that of the node that runs, the user's own before the system's
}

// Status asks how the node is.
func (c Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, pathStatus, nil)
}

// DNSStatus asks how the node's resolver and its takeover of the machine's DNS are.
func (c Client) DNSStatus(ctx context.Context) (DNSStatus, error) {
	return get[DNSStatus](ctx, c, pathDNSStatus, nil)
}

// Query has the node put a question to its own stub. An answer that says that there is no such name is no error.
func (c Client) Query(ctx context.Context, name, qtype string) (QueryResult, error) {
	return get[QueryResult](ctx, c, pathQuery, url.Values{"name": {name}, "type": {qtype}})
}

// Explain asks what would answer a question and why.
func (c Client) Explain(ctx context.Context, name, qtype string) (ExplainResult, error) {
	return get[ExplainResult](ctx, c, pathExplain, url.Values{"name": {name}, "type": {qtype}})
}

// Flush drops name from the cache, or everything if it is empty. It returns how many entries that were.
func (c Client) Flush(ctx context.Context, name string) (int, error) {
	reply, err := post[flushReply](ctx, c, pathFlush, flushRequest{Name: name})
	return reply.Dropped, err
}

// Plan asks what taking over the machine's DNS would do.
func (c Client) Plan(ctx context.Context) (PlanResult, error) {
	return get[PlanResult](ctx, c, pathPlan, nil)
}

// Apply has the node take over the machine's DNS. Unless confirm is zero the node undoes that after confirm, in whole
// seconds, if nobody calls Confirm.
func (c Client) Apply(ctx context.Context, confirm time.Duration) (Takeover, error) {
	return post[Takeover](ctx, c, pathApply, applyRequest{ConfirmSeconds: int(confirm / time.Second)})
}

// Confirm keeps what an Apply with a time limit did. ErrNotFound: nothing waits for that.
func (c Client) Confirm(ctx context.Context) (Takeover, error) {
	return post[Takeover](ctx, c, pathConfirm, emptyRequest{})
}

// Restore has the node give the machine's DNS back and leave it alone until the next Apply.
func (c Client) Restore(ctx context.Context) (Takeover, error) {
	return post[Takeover](ctx, c, pathRestore, emptyRequest{})
}

// Down has the node end, and returns when it has put everything back.
func (c Client) Down(ctx context.Context) error {
	_, err := post[struct{}](ctx, c, pathDown, emptyRequest{})
	return err
}

// Config asks for the node's effective configuration, as YAML.
func (c Client) Config(ctx context.Context) (string, error) {
	reply, err := get[configReply](ctx, c, pathConfig, nil)
	return reply.YAML, err
}

// Metrics asks for the node's metrics in Prometheus's text form.
func (c Client) Metrics(ctx context.Context) ([]byte, error) {
	var b bytes.Buffer
	err := c.do(ctx, http.MethodGet, pathMetrics, nil, func(body io.Reader) error {
		_, err := b.ReadFrom(body)
		return err
	})
	return b.Bytes(), err
}

// get asks for a T.
func get[T any](ctx context.Context, c Client, path string, query url.Values) (T, error) {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return decodeReply[T](ctx, c, http.MethodGet, path, nil)
}

// post asks for a change, which is answered with a T.
func post[T any](ctx context.Context, c Client, path string, in any) (T, error) {
	body, err := json.Marshal(in)
	if err != nil {
		var none T
		return none, fmt.Errorf("encoding the request: %w", err)
	}
	return decodeReply[T](ctx, c, http.MethodPost, path, bytes.NewReader(body))
}

func decodeReply[T any](ctx context.Context, c Client, method, path string, body io.Reader) (T, error) {
	var out T
	err := c.do(ctx, method, path, body, func(reply io.Reader) error {
		return json.NewDecoder(reply).Decode(&out)
	})
	return out, err
}

// do makes one request on a connection of its own and hands a good answer's body to read.
func (c Client) do(ctx context.Context, method, path string, body io.Reader, read func(io.Reader) error) error {
	if c.Socket == "" {
		c.Socket = findSocket(os.Getenv, os.Geteuid() == 0)
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: dialTimeout}
			return d.DialContext(ctx, "unix", c.Socket)
		},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+controlHost+path, body)
	if err != nil {
		return fmt.Errorf("making the request: %w", err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	limited := &boundedReader{r: resp.Body, left: maxReply}
	if resp.StatusCode != http.StatusOK {
		return remoteError(resp.StatusCode, limited)
	}
	if err := read(limited); err != nil {
		return c.explain(fmt.Errorf("reading the answer: %w", err))
	}
	return nil
}

// boundedReader reads up to a bound; what is longer is an error and not cut, since half an answer is none.
type boundedReader struct {
	r    io.Reader
	left int
}

// Read reads up to the bound.
func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p[:min(len(p), b.left+1)])
	if n > b.left {
		return b.left, fmt.Errorf("longer than %d bytes", maxReply)
	}
	b.left -= n
	return n, err
}

// explain says what an error of the connection means.
func (c Client) explain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the URL says nothing: it is made up
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrNotExist), isRefused(err):
		return hinted(ErrNoDaemon, fmt.Errorf("asking the daemon: none answers at %s", c.Socket),
			"start it with: meshdns up")
	case isReset(err):
		// It was killed: its socket took the connection and is gone.
		return hinted(ErrNoDaemon, fmt.Errorf("asking the daemon: it ended before it answered at %s", c.Socket),
			"start it with: meshdns up")
	case errors.Is(err, fs.ErrPermission):
		return hinted(ErrNotPermitted, fmt.Errorf("asking the daemon: %w", err),
			"run the same command with sudo")
	case isTimeout(err):
		return hinted(ErrTimeout, fmt.Errorf("asking the daemon: no answer at %s in time", c.Socket),
			"try again; if it stays so, end the daemon and start it again")
	}
	return fmt.Errorf("asking the daemon: %w", err)
}

// remoteError is the error that the node answered with.
func remoteError(status int, body io.Reader) error {
	var p problem
	if err := json.NewDecoder(body).Decode(&p); err != nil || p.Error == "" {
		return fmt.Errorf("asking the daemon: it answered %d %s", status, http.StatusText(status))
	}
	return p.err()
}

// err is the error that p tells of.
func (p problem) err() error {
	var known error
	for _, k := range errorKinds() {
		if k.name == p.Kind {
			known = k.err
		}
	}
	return hinted(known, errors.New(p.Error), p.Hint)
}
