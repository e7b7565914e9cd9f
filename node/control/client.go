package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"crypto/tls"
)

// Client speaks to a gateway for a node. Its fields must not be changed once it is in use.
type Client struct {
	Dial    func(ctx context.Context, network, address string) (net.Conn, error) // through the tunnel
	Server  netip.AddrPort                                                       // the gateway's tailnet address, and Port
	Gateway ControlKey                                                           // pinned: nobody else is spoken to
	Key     PrivateKey                                                           // the node's control key
	Clock   func(gateway time.Time)                                              // is told what the gateway's clock says, with each answer; nil: nobody is

	mu     sync.Mutex
	stream *reports         // of the map's stream that is open; nil: none is
	told   []netip.AddrPort // the endpoints of the last report
	visits []visitKeys
	shows  bool          // something to the world, as the gateway knows
	pulse  time.Duration // tests: how often the stream is to show that this node lives; zero: pulseTime
}

// Join asks for a place in the tailnet. It is safe to be called again with the same keys, if its answer was lost.
func (c *Client) Join(ctx context.Context, req JoinRequest) (JoinAnswer, error) {
	var answer JoinAnswer
	err := c.call(ctx, pathJoin, req, &answer)
	return answer, err
}

// Report tells the gateway how the node is: by the map's stream where that is open, in which case it is not known whether it
// arrives; a stream that is opened again says which map the node has.
func (c *Client) Report(ctx context.Context, r Report) error {
	c.mu.Lock()
	open := c.stream
	c.told = r.Endpoints
	c.mu.Unlock()
	if open != nil {
		open.put(r)
		return nil
	}
	return c.call(ctx, pathReport, r, nil)
}

// Connect asks for another node's endpoints; that node is asked to send to this one's at the same time.
func (c *Client) Connect(ctx context.Context, node string) (Connect, error) {
	var answer Connect
	err := c.call(ctx, pathConnect, Connect{Node: node}, &answer)
	return answer, err
}

// Rotate says that the node's keys change. They do once the new WireGuard key has completed a handshake with the gateway.
func (c *Client) Rotate(ctx context.Context, by Rotation) error {
	return c.call(ctx, pathRotate, by, nil)
}

// Sign hands in the owner's signatures, by node. Every node may bring them, since a lock's key has made them.
func (c *Client) Sign(ctx context.Context, signatures map[string]Signature) error {
	var errs []error
	for names := range slices.Chunk(slices.Sorted(maps.Keys(signatures)), maxSignatures) {
		part := map[string]Signature{}
		for _, name := range names {
			part[name] = signatures[name]
		}
		errs = append(errs, c.call(ctx, pathSign, part, nil))
	}
	return errors.Join(errs...)
}

// transport makes connections to the gateway. Each call has one of its own: calls are rare, and a connection that is kept
// would be the one that a change of network has broken.
// on is told of the connection before anything is sent; nil: nothing is.
func (c *Client) transport(on func(*tls.Conn) error) (*http.Transport, error) {
	config, err := c.Key.TLS(c.Gateway.Is)
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxHeader,
		ResponseHeaderTimeout:  callTimeout,
		DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			// A gateway that is not there answers nothing, and TCP would ask it for minutes.
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			conn, err := c.Dial(ctx, network, c.Server.String())
			if err != nil {
				return nil, err
			}
			secure := tls.Client(conn, config)
			err = secure.HandshakeContext(ctx)
			if err == nil && on != nil {
				err = on(secure)
			}
			if err != nil {
				conn.Close()
				return nil, err
			}
			return secure, nil
		},
	}, nil
}

// call makes one call.
func (c *Client) call(ctx context.Context, path string, body, into any) error {
	return c.callBy(ctx, http.MethodPost, path, body, into)
}

// callBy is call with another method.
func (c *Client) callBy(ctx context.Context, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("writing a call: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.Server.String()+path, bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("writing a call: %w", err)
	}
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		return nil
	}
	d := json.NewDecoder(io.LimitReader(resp.Body, maxEvent))
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	return nil
}

// send sends a request, and makes an error of an answer that is a refusal.
func (c *Client) send(req *http.Request) (*http.Response, error) { return c.sendOn(req, nil) }

// sendOn is send, where on is told of the connection before anything is sent.
func (c *Client) sendOn(req *http.Request, on func(*tls.Conn) error) (*http.Response, error) {
	transport, err := c.transport(on)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("asking the gateway at %s: %w", c.Server, err)
	}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil && c.Clock != nil {
		c.Clock(at)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	refused := &RefusedError{Status: resp.StatusCode}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil || json.Unmarshal(data, refused) != nil || refused.Message == "" {
		refused.Message = fmt.Sprintf("the gateway answered %s", resp.Status)
	}
	refused.Message = printable(refused.Message)
	return nil, refused
}

// maxPrintable bounds a refusal's text, in characters.
const maxPrintable = 400

// printable is text from outside as it may stand in a terminal.
func printable(s string) string {
	out := []rune{}
	for _, r := range s {
		if len(out) == maxPrintable {
			break
		}
		if !strconv.IsPrint(r) {
			r = '·'
		}
		out = append(out, r)
	}
	return string(out)
}

// Stream holds the map's stream open, and calls on with every event of it. have is the map that the node has, nil for
// none. It returns when the stream ends, which it always does with an error, be it ctx's.
func (c *Client) Stream(ctx context.Context, have *Map, on func(Event) error) error {
	query := url.Values{}
	if have != nil {
		query.Set("epoch", strconv.FormatUint(have.Epoch, 10))
		query.Set("version", strconv.FormatUint(have.Version, 10))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(cmpOr(c.pulse, pulseTime))
	defer tick.Stop()
	open := &reports{ctx: ctx, next: make(chan Report, 1), pulse: tick.C, shows: c.showing}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.Server.String()+pathMap+"?"+query.Encode(), open)
	if err != nil {
		return fmt.Errorf("writing a call: %w", err)
	}
	// A gateway that says nothing for longer is not reached any more. At first that is the time of a call, which net/http would
	// count from the end of the request.
	silence := time.AfterFunc(callTimeout, cancel)
	defer silence.Stop()
	defer c.endVisits()
	resp, err := c.sendOn(req, c.visitBy)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	silence.Reset(callTimeout) // the first event follows at once
	c.reportBy(open, have)
	defer c.reportBy(nil, nil)
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		silence.Reset(3 * pingInterval)
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("reading the map's stream: %w", err)
		}
		if !e.Now.IsZero() && c.Clock != nil {
			c.Clock(e.Now)
		}
		e.Funnels = readable(e.Funnels)
		if err := on(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the map's stream: %w", err)
	}
	return errStreamEnded
}

// reportBy has reports go by a stream. What was said by the one before may not have arrived.
func (c *Client) reportBy(stream *reports, have *Map) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stream = stream
	if stream != nil && have != nil && len(c.told) > 0 {
		stream.put(Report{Epoch: have.Epoch, Version: have.Version, Endpoints: c.told})
	}
}

// reports are what a node says by the map's stream: its request's body, a line each. A connection and a handshake for each would
// cost a gateway more than telling its nodes of a change.
type reports struct {
	ctx  context.Context // ends them
	next chan Report
	rest []byte // of a line that is being read

	// While the node shows something to the world, an empty line says from time to time that it lives. An older gateway, which would
	// not know that, has never said that it shows anything.
	pulse <-chan time.Time
	shows func() bool

	mu sync.Mutex
}

// put has a report be sent, instead of one that still waits.
func (b *reports) put(r Report) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.next:
	default:
	}
	b.next <- r
}

func (b *reports) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		select {
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		case r := <-b.next:
			line, err := json.Marshal(r)
			if err != nil {
				return 0, fmt.Errorf("writing a report: %w", err)
			}
			b.rest = append(line, '\n')
		case <-b.pulse:
			if b.shows() {
				b.rest = []byte{'\n'}
			}
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// errStreamEnded says that the gateway has closed the map's stream.
var errStreamEnded = errors.New("the gateway has ended the map's stream")

// Newer takes an event of the stream, and returns the map that follows from it, which is have if nothing does. It never
// goes back: a map of an older epoch or version, or of another zone or other ranges, is refused (S4).
func (e Event) Newer(have *Map) (*Map, error) {
	switch {
	case e.Map != nil:
		return e.Map, e.Map.follows(have)
	case e.Delta != nil && have == nil:
		return nil, errors.New("a change of a map that was never told")
	case e.Delta != nil:
		return have.Apply(e.Delta)
	case !e.Trust.IsZero() && have != nil:
		next := *have
		next.TrustUntil = e.Trust
		return &next, nil
	}
	return have, nil
}

// follows says why a map cannot come after another one.
func (m *Map) follows(have *Map) error {
	if have == nil {
		return nil
	}
	if m.Zone != have.Zone || !slices.Equal(m.Ranges, have.Ranges) {
		return fmt.Errorf("the gateway's map is of zone %s with %v, and this node has joined %s with %v", m.Zone, m.Ranges, have.Zone, have.Ranges)
	}
	if m.Epoch < have.Epoch || m.Epoch == have.Epoch && m.Version < have.Version {
		return fmt.Errorf("the gateway's map %d.%d is older than the one that is known, %d.%d", m.Epoch, m.Version, have.Epoch, have.Version)
	}
	return nil
}
