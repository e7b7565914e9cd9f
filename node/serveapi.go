package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// The paths of the calls for what is served.
const (
	pathServed   = "/v1/serve"
	pathServeRun = "/v1/serve/run"
	pathServeOff = "/v1/serve/off"
)

// errStale says that what a change was for is not what there is.
var errStale = errors.New("changed meanwhile")

// serveOff ends something that is served in the background.
type serveOff struct {
	Public bool   `json:"public"`
	All    bool   `json:"all"`  // of serve or funnel; nothing else then counts
	Kind   string `json:"kind"` // empty: https
	Port   uint16 `json:"port"`
	Name   string `json:"name"`
	Domain string `json:"domain"`
	Path   string `json:"path"` // empty: all paths
}

// serveOffReply says what was ended.
type serveOffReply struct {
	Schema string   `json:"schema"` // meshdns.serve.off/v1
	Ended  []string `json:"ended"`  // addresses
}

// serveEndpoints are the calls of the control API for what is served. Who may ask learns names; what stands behind them, and every
// change, is the operator's, and that of who may serve for what is theirs (S20).
func (n *Node) serveEndpoints() []endpoint {
	return []endpoint{
		{pattern: "GET " + pathServed, serve: n.serveServed},
		{pattern: "POST " + pathServed, operator: true, serve: n.serveReplace},
		{pattern: "POST " + pathServeOff, operator: true, serves: true, serve: n.serveOff},
		{pattern: "POST " + pathServeShare, operator: true, serves: true, serve: n.serveShare},
		{pattern: "POST " + pathServeRun, operator: true, serves: true, stream: http.HandlerFunc(n.serveServe)},
	}
}

// serveReplace puts a whole list in the place of what is kept in the background, as status --json shows it. With If-Match it does so only
// if that is still what the caller has read.
func (n *Node) serveReplace(r *http.Request, _ caller) (any, error) {
	var text servedText
	if err := decode(r, &text); err != nil {
		return nil, err
	}
	if !n.serving.ready.Load() {
		return nil, hinted(ErrTimeout, errStarting, "try again")
	}
	for i := range text.Entries {
		if err := n.mayServe(text.Entries[i]); err != nil {
			return nil, err
		}
	}
	tag := strings.Trim(r.Header.Get("If-Match"), `"`)
	err := n.changeKept(tag, func([]served) ([]served, error) { return text.Entries, n.againstOthers(text.Entries) }, nil)
	if err != nil {
		return nil, err
	}
	n.applyServed()
	return n.servedStatus(caller{operator: true}), nil
}

// againstOthers says which of a list clashes with what is served otherwise.
func (n *Node) againstOthers(list []served) error {
	for _, other := range n.serving.currentLocked() {
		for _, s := range list {
			if other.from == fromCommand {
				continue
			}
			if err := clash(s, other); err != nil {
				return err
			}
		}
	}
	return nil
}

// serveOff ends what is kept in the background.
func (n *Node) serveOff(r *http.Request, who caller) (any, error) {
	var in serveOff
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if !n.serving.ready.Load() {
		return nil, hinted(ErrTimeout, errStarting, "try again")
	}
	meant, err := n.isOver(in)
	if err != nil {
		return nil, err
	}
	over := func(s served) bool { return meant(s) && (s.from == fromConfig || who.mayTouch(s)) }
	reply := serveOffReply{Schema: "meshdns.serve.off/v1", Ended: []string{}}
	for _, s := range n.serving.current() {
		switch {
		case !over(s):
		case s.from == fromCommand:
			reply.Ended = append(reply.Ended, n.urlOf(s))
		case in.All:
		case s.from == fromConfig:
			return nil, hinted(nil, fmt.Errorf("%s is served by the configuration (%s)", n.urlOf(s), s.at), "take it out there")
		default:
			return nil, hinted(nil, fmt.Errorf("%s is served by a command in the foreground", n.urlOf(s)), "end that command: Ctrl-C")
		}
	}
	if len(reply.Ended) == 0 && !in.All {
		return nil, hinted(ErrNotFound, errors.New("nothing is served there"), "see: meshdns serve status")
	}
	err = n.changeKept("", func(kept []served) ([]served, error) { return slices.DeleteFunc(kept, over), nil }, nil)
	if err != nil {
		return nil, err
	}
	n.applyServed()
	return reply, nil
}

// isOver tells which are meant.
func (n *Node) isOver(in serveOff) (func(served) bool, error) {
	if in.All {
		return func(s served) bool { return s.Public == in.Public }, nil
	}
	want := served{Public: in.Public, Kind: in.Kind, Port: in.Port, Path: in.Path, Target: "-"}
	if want.Kind != kindTCP && want.Kind != kindUDP {
		m, _ := n.tailnet.current()
		var err error
		if want.Name, _, err = n.servedName(m, in.Name, in.Domain); err != nil {
			return nil, err
		}
	}
	if err := want.fill(); err != nil {
		return nil, err
	}
	return func(s served) bool {
		return s.class() == want.class() && s.Kind == want.Kind && (in.Path == "" || s.Path == want.Path)
	}, nil
}

// ServeRequest is a request to serve something.
func (c Client) ServeRequest() serveRequest { return serveRequest{} }

// ServeOff is a request to end something.
func (c Client) ServeOff() serveOff { return serveOff{} }

// Serve has something served, and tells how it goes: a step or a warning in text, that it is up or a visit as JSON, the end in text. It
// returns at the end, or in the background once it is up.
func (c Client) Serve(ctx context.Context, req serveRequest, told func(kind, text string, data json.RawMessage)) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	var failed error
	err = c.do(ctx, http.MethodPost, pathServeRun, bytes.NewReader(body), func(reply io.Reader) error {
		d := json.NewDecoder(reply)
		ended := false
		for {
			var line struct {
				Step, Warning, End string
				Up, Visit          json.RawMessage
				Error              *problem
			}
			switch err := d.Decode(&line); {
			case errors.Is(err, io.EOF) && ended:
				return nil
			case err != nil:
				return err
			case line.Error != nil:
				failed = line.Error.err()
				return nil
			case line.Step != "":
				told("step", line.Step, nil)
			case line.Warning != "":
				told("warning", line.Warning, nil)
			case line.Visit != nil:
				told("visit", "", line.Visit)
			case line.Up != nil:
				ended = req.Background
				told("up", "", line.Up)
			case line.End != "":
				ended = true
				told("end", line.End, nil)
			}
		}
	})
	if err == nil {
		err = failed
	}
	return err
}

// Served tells what is served.
func (c Client) Served(ctx context.Context) (serveReply, error) {
	return get[serveReply](ctx, c, pathServed, nil)
}

// EndServed ends what is served in the background, and returns the addresses.
func (c Client) EndServed(ctx context.Context, off serveOff) ([]string, error) {
	reply, err := post[serveOffReply](ctx, c, pathServeOff, off)
	return reply.Ended, err
}
