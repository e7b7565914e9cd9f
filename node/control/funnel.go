package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

// Funnel is something that a node shows to the world, and what its gateway says of that.
type Funnel struct {
	Name string `json:"name,omitempty"` // server name in full, lower case, without a final dot; of tcp and udp empty
	Port uint16 `json:"port"`           // the visitor's
	Kind string `json:"kind"`           // https, tls-terminated-tcp, tcp or udp

	// What follows is the gateway's.
	Open bool             `json:"open,omitempty"` // visitors get through
	Code string           `json:"code,omitempty"` // why not, for programs
	Why  string           `json:"why,omitempty"`  // why not, for people
	Mend string           `json:"mend,omitempty"` // what the user can do
	At   []netip.AddrPort `json:"at,omitempty"`   // where visitors come in
	// Steps are what came of a try from outside, in their order; the last one that is there may have failed.
	Steps []funnelStep `json:"steps,omitempty"`
}

// funnelStep is one step of a visitor's way.
type funnelStep struct {
	What string `json:"what"` // name, connection, tls, certificate
	At   string `json:"at,omitempty"`
	Err  string `json:"err,omitempty"` // empty: it went well
}

// Same reports whether two funnels are the same wish, whatever the gateway says of them.
func (f Funnel) Same(g Funnel) bool { return f.Name == g.Name && f.Port == g.Port && f.Kind == g.Kind }

func (f Funnel) String() string {
	if f.Name == "" {
		return fmt.Sprintf("%d/%s", f.Port, f.Kind)
	}
	return fmt.Sprintf("%s:%d/%s", f.Name, f.Port, f.Kind)
}

// Refused is the funnel with the reason why it is not open.
func (f Funnel) Refused(code, mend, format string, args ...any) Funnel {
	return Funnel{Name: f.Name, Port: f.Port, Kind: f.Kind, Code: code, Why: fmt.Sprintf(format, args...), Mend: mend}
}

// Step notes what came of a step of a try. It reports whether that went well.
func (f *Funnel) Step(what, at string, err error) bool {
	step := funnelStep{What: what, At: at}
	if err != nil {
		step.Err = printable(err.Error())
	}
	f.Steps = append(f.Steps, step)
	return err == nil
}

// The bounds of what a node shows.
const (
	maxFunnels      = 256
	maxServiceNames = 64
	// pulseTime is how often a node that shows something says that it lives, and silenceTime for how long nothing may come of it.
	pulseTime   = 15 * time.Second
	silenceTime = 3 * pulseTime
	// tryTime bounds a try from outside, so that its outcome reaches who has asked for it.
	tryTime = callTimeout - 2*time.Second
)

// The paths of the calls.
const (
	pathFunnels = "/v1/funnels"
	pathTry     = "/v1/funnels/try"
	pathNames   = "/v1/names"
)

// visitLabel is the label of keys for visits (RFC 8446, section 7.5; RFC 5705).
const visitLabel = "EXPORTER-meshdns-visit"

// visitKey is what both ends of a connection, and nobody else, can make a MAC with (S14).
func visitKey(conn *tls.Conn) ([]byte, error) {
	state := conn.ConnectionState()
	key, err := state.ExportKeyingMaterial(visitLabel, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("making a key for visits: %w", err)
	}
	return key, nil
}

// funnelRoutes are the calls of nodes that show something to the world.
func (s *Server) funnelRoutes(mux *http.ServeMux) {
	mux.HandleFunc("PUT "+pathFunnels, s.asNode(s.putFunnels))
	mux.HandleFunc("POST "+pathTry, s.asNode(s.tryFunnel))
	mux.HandleFunc("PUT "+pathNames, s.asNode(s.putNames))
}

// putFunnels takes all that a node shows, instead of what it said before. It holds for as long as the node's stream is open; without
// one it is refused, since nobody would notice the node's end.
func (s *Server) putFunnels(ctx context.Context, node string, body io.Reader) (any, error) {
	var list []Funnel
	if err := decode(body, &list); err != nil {
		return nil, err
	}
	switch {
	case s.cfg.Register == nil:
		return nil, refuse(http.StatusNotImplemented, codeNoFunnels, "this gateway shows nothing to the world")
	case len(list) > maxFunnels:
		return nil, refuse(http.StatusBadRequest, codeFull, "more than %d funnels", maxFunnels)
	}
	for i, f := range list {
		list[i] = Funnel{Name: foldName(f.Name), Port: f.Port, Kind: f.Kind} // nothing else is the node's to say
		if slices.ContainsFunc(list[:i], list[i].Same) {
			return nil, refuse(http.StatusBadRequest, codeBad, "%.300s twice", printable(list[i].String()))
		}
	}
	if _, ok := s.VisitKey(node); !ok {
		return nil, refuse(http.StatusServiceUnavailable, codeBusy, "%s has no stream open", node)
	}
	told, err := s.cfg.Register(ctx, node, list)
	if err == nil {
		s.watch(node, len(list) > 0)
	}
	return told, err
}

// watch has a node's stream end when nothing comes by it any more: a node that is gone must not be shown for long. One that shows
// nothing may be silent.
func (s *Server) watch(node string, shows bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[node]; st != nil {
		st.hearing.Lock()
		st.shows = shows
		st.hearing.Unlock()
		st.listen(s.silence)
	}
}

// listen has the node be heard until a while from now, if it shows something.
func (st *stream) listen(silence time.Duration) {
	st.hearing.Lock()
	defer st.hearing.Unlock()
	until := time.Time{}
	if st.shows {
		until = time.Now().Add(silence)
	}
	if !st.over {
		_ = st.out.control.SetReadDeadline(until) // which fails when its connection is gone
	}
}

// finish has the node be heard no more.
func (st *stream) finish() {
	st.hearing.Lock()
	defer st.hearing.Unlock()
	st.over = true
	_ = st.out.control.SetReadDeadline(time.Unix(1, 0)) // as above
}

// tryFunnel goes the way of a visitor to one of the node's own funnels.
func (s *Server) tryFunnel(ctx context.Context, node string, body io.Reader) (any, error) {
	var f Funnel
	if err := decode(body, &f); err != nil {
		return nil, err
	}
	if s.cfg.Try == nil {
		return nil, refuse(http.StatusNotImplemented, codeNoFunnels, "this gateway shows nothing to the world")
	}
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	return s.cfg.Try(ctx, node, Funnel{Name: foldName(f.Name), Port: f.Port, Kind: f.Kind})
}

// putNames gives a node service names, instead of those that it had.
func (s *Server) putNames(ctx context.Context, node string, body io.Reader) (any, error) {
	var names []string
	if err := decode(body, &names); err != nil {
		return nil, err
	}
	err := s.cfg.Registry.SetNames(ctx, node, names)
	return struct{}{}, err
}

// VisitKey is the key by which a node knows what its gateway says of a visitor. It is made of the connection of the node's
// stream, and there is none without.
func (s *Server) VisitKey(node string) (key []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[node]
	if st == nil || st.visit == nil {
		return nil, false
	}
	return st.visit, true
}

// TellFunnels says on a node's stream what has become of its funnels.
func (s *Server) TellFunnels(node string, list []Funnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[node]
	if st == nil {
		return // it asks when it is back
	}
	select {
	case <-st.funnels: // which says less
	default:
	}
	select {
	case st.funnels <- list:
	default:
	}
}

// SetFunnels tells the gateway all that this node shows to the world, and returns what it says of each. It holds while the map's
// stream is open and a moment longer: when that is opened again, it has to be told again.
func (c *Client) SetFunnels(ctx context.Context, list []Funnel) ([]Funnel, error) {
	if list == nil {
		list = []Funnel{}
	}
	var answer []Funnel
	err := c.callBy(ctx, http.MethodPut, pathFunnels, list, &answer)
	if err == nil {
		c.mu.Lock()
		c.shows = len(list) > 0
		c.mu.Unlock()
	}
	return readable(answer), err
}

// readable are funnels whose words may stand in a terminal.
func readable(list []Funnel) []Funnel {
	for i := range list {
		f := &list[i]
		f.Name, f.Kind, f.Code, f.Why, f.Mend = printable(f.Name), printable(f.Kind), printable(f.Code), printable(f.Why), printable(f.Mend)
		for k := range f.Steps {
			s := &f.Steps[k]
			s.What, s.At, s.Err = printable(s.What), printable(s.At), printable(s.Err)
		}
	}
	return list
}

// showing reports whether the gateway shows something of this node's.
func (c *Client) showing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shows
}

// TryFunnel has the gateway go a visitor's way to one of this node's funnels. The answer's Steps say how far it came.
func (c *Client) TryFunnel(ctx context.Context, f Funnel) (Funnel, error) {
	var answer Funnel
	err := c.call(ctx, pathTry, f, &answer)
	return readable([]Funnel{answer})[0], err
}

// SetNames gives this node service names, instead of those that it had.
func (c *Client) SetNames(ctx context.Context, names []string) error {
	return c.callBy(ctx, http.MethodPut, pathNames, notNil(names), nil)
}

// visitKeys are those of the map's streams of now and of just before: a visitor may be on the way with the older one.
type visitKeys struct {
	key   []byte
	ended time.Time // of its stream; zero: it is open
}

// oldVisit is how long the key of a stream that has ended counts.
const oldVisit = 15 * time.Second

// VisitKeys are the keys by which this node knows what the gateway says of visitors, the newest first.
func (c *Client) VisitKeys() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list [][]byte
	for _, k := range slices.Backward(c.visits) {
		if k.ended.IsZero() || time.Since(k.ended) < oldVisit {
			list = append(list, k.key)
		}
	}
	return list
}

// visitBy takes the key of a stream's connection into use, before the gateway can use it.
func (c *Client) visitBy(conn *tls.Conn) error {
	key, err := visitKey(conn)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.visits = slices.DeleteFunc(c.visits, func(k visitKeys) bool { return !k.ended.IsZero() && now.Sub(k.ended) >= oldVisit })
	c.endVisitsLocked(now)
	c.visits = append(c.visits, visitKeys{key: key})
	return nil
}

func (c *Client) endVisits() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endVisitsLocked(time.Now())
}

func (c *Client) endVisitsLocked(now time.Time) {
	for i := range c.visits {
		if c.visits[i].ended.IsZero() {
			c.visits[i].ended = now
		}
	}
}

// String and the like keep loggers from printing the key (S21).
func (k visitKeys) String() string { return "(a key)" }

func (k visitKeys) GoString() string { return k.String() }

// LogValue keeps loggers from printing the key.
func (k visitKeys) LogValue() slog.Value { return slog.StringValue(k.String()) }
