package control

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// maxConnects is how many introductions wait for a node. They are worthless when they are old.
const maxConnects = 16

// mapStream sends a node the map and every newer one, until it or somebody closes that. A node has one stream: a newer one
// ends it, since the node has lost it.
func (s *Server) mapStream(w http.ResponseWriter, r *http.Request) {
	name, err := s.node(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	query := r.URL.Query()
	epoch, _ := strconv.ParseUint(query.Get("epoch"), 10, 64) // what is no number is no map that it has
	version, _ := strconv.ParseUint(query.Get("version"), 10, 64)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	st := &stream{cancel: cancel, connect: make(chan Connect, maxConnects), texts: make(chan time.Time, 1)}
	s.mu.Lock()
	if old := s.streams[name]; old != nil {
		old.cancel()
	}
	s.streams[name] = st
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.streams[name] == st {
			delete(s.streams, name)
		}
	}()
	st.out = lineWriter{w: w, control: http.NewResponseController(w)}
	w.Header().Set("Content-Type", "application/x-ndjson")
	s.tellTexts(name) // which it may have written before it started anew
	s.push(r.WithContext(ctx), st, epoch, version)
}

// push writes events until something ends it.
func (s *Server) push(r *http.Request, st *stream, epoch, version uint64) {
	ctx, out := r.Context(), &st.out
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	for first := true; ; first = false {
		line, m, changed, err := s.event(epoch, version)
		if err == nil && line != nil {
			err = out.line(line)
			epoch, version = m.Epoch, m.Version
		} else if err == nil && first {
			err = out.event(signOfLife()) // a node that has the newest map has to see that it is heard
		}
		if err != nil {
			s.log.Debug("a map was not taken", "err", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
			if !wait(ctx, settleTime) {
				return
			}
			// A node that was removed gets no map any more (S5).
			if _, err := s.node(r); err != nil {
				return
			}
		case c := <-st.connect:
			err = out.event(Event{Connect: &c})
		case until := <-st.texts:
			err = out.event(Event{Texts: until})
		case <-ping.C:
			err = out.event(signOfLife())
		}
		if err != nil {
			s.log.Debug("a stream has ended", "err", err)
			return
		}
	}
}

// signOfLife says that the gateway lives, and with it its map.
func signOfLife() Event { return Event{Trust: time.Now().Add(trustTime).UTC().Truncate(time.Second)} }

// wait waits, and reports whether ctx still lives then.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// event is the line that takes a node from its map to the newest; nil: it has that. A change reaches all nodes from the
// same map, mostly, so each line is written out once.
func (s *Server) event(epoch, version uint64) (line []byte, m *Map, changed <-chan struct{}, err error) {
	e, m, changed := s.cfg.Registry.update(epoch, version)
	if e.Map == nil && e.Delta == nil {
		return nil, m, changed, nil
	}
	from := version
	if e.Map != nil {
		from = 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest != m {
		s.newest = m
		clear(s.encoded)
	}
	if line = s.encoded[from]; line == nil {
		if line, err = json.Marshal(e); err != nil {
			return nil, m, changed, err
		}
		s.encoded[from] = line
	}
	return line, m, changed, nil
}

// lineWriter writes events, each with a time of its own: a node that takes none is let go.
type lineWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (l *lineWriter) event(e Event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return l.line(line)
}

func (l *lineWriter) line(line []byte) error {
	if err := l.control.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	if _, err := l.w.Write(line); err != nil {
		return err
	}
	if _, err := l.w.Write([]byte{'\n'}); err != nil {
		return err
	}
	return l.control.Flush()
}
