package control

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// maxConnects is how many introductions wait for a node. They are worthless when they are old.
const maxConnects = 16

// maxReport bounds a report that comes by a stream, in bytes.
const maxReport = 4 << 10

// mapStream sends a node the map and every newer one, until it or somebody closes that, and hears how the node is meanwhile. A
// node has one stream: a newer one ends it, since the node has lost it.
func (s *Server) mapStream(w http.ResponseWriter, r *http.Request) {
	name, err := s.node(r)
	st := &stream{
		name: name, connect: make(chan Connect, maxConnects), texts: make(chan time.Time, 1), funnels: make(chan []Funnel, 1),
		out: lineWriter{w: w, control: http.NewResponseController(w)},
	}
	if err == nil {
		err = st.out.control.EnableFullDuplex()
	}
	if err == nil {
		conn, _ := r.Context().Value(callerKey{}).(*tls.Conn) // which node has seen to be there
		st.visit, err = visitKey(conn)
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	query := r.URL.Query()
	epoch, _ := strconv.ParseUint(query.Get("epoch"), 10, 64) // what is no number is no map that it has
	version, _ := strconv.ParseUint(query.Get("version"), 10, 64)
	s.cfg.Registry.works(name, epoch, version)
	ctx, cancel := context.WithCancel(r.Context())
	st.cancel = cancel
	s.enter(st)
	defer s.leave(st)
	var hearing sync.WaitGroup
	hearing.Go(func() {
		defer cancel()
		s.hear(ctx, st, r)
	})
	defer hearing.Wait()
	defer st.finish() // which ends hear
	w.Header().Set("Content-Type", "application/x-ndjson")
	s.tellTexts(name) // which it may have written before it started anew
	s.push(r.WithContext(ctx), st, epoch, version)
}

// enter makes a stream its node's.
func (s *Server) enter(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.streams[st.name]; old != nil {
		old.cancel()
	}
	s.streams[st.name] = st
}

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	st.cancel()
	name, last := st.name, s.streams[st.name] == st // else a newer one is the node's
	if last {
		delete(s.streams, name)
	}
	s.mu.Unlock()
	if last {
		s.cfg.Left(name)
	}
}

// hear takes what a node says by its stream, a report a line. One that says more than a node may call has to wait.
func (s *Server) hear(ctx context.Context, st *stream, r *http.Request) {
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(make([]byte, 0, 256), maxReport)
	for lines.Scan() {
		st.listen(s.silence)
		for !s.limit.allow(sourceOf(addrOf(r)), time.Now()) {
			if !wait(ctx, time.Second/callsRefill) {
				return
			}
		}
		if len(lines.Bytes()) == 0 {
			continue // it only says that the node lives
		}
		var report Report
		name, err := s.node(r)
		if err == nil {
			err = json.Unmarshal(lines.Bytes(), &report)
		}
		if err != nil {
			s.log.Debug("a stream has said what is no report", "err", err)
			return
		}
		s.cfg.Registry.Take(name, report)
	}
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
			err = out.event(s.signOfLife()) // a node that has the newest map has to see that it is heard
		}
		if err != nil {
			s.log.Debug("a map was not taken", "err", err)
			return
		}
		sent := time.Now()
		select {
		case <-ctx.Done():
			return
		case <-changed:
			if !wait(ctx, s.settle(time.Since(sent))) {
				return
			}
			// A node that was removed gets no map any more (S5).
			name, err := s.node(r)
			if err != nil {
				return
			}
			s.renamed(st, name)
		case c := <-st.connect:
			err = out.event(Event{Connect: &c})
		case list := <-st.funnels:
			err = out.event(Event{Funnels: list})
		case until := <-st.texts:
			err = out.event(Event{Texts: until})
		case <-ping.C:
			err = out.event(s.signOfLife())
		}
		if err != nil {
			s.log.Debug("a stream has ended", "err", err)
			return
		}
	}
}

// settle is how long to wait for further changes before one is sent, where the one before was sent a while ago. While many
// nodes join, all would be told of each, whose cost is the square of their number: then changes go out together. And each
// stream waits a little less or more, so that not a thousand packets leave at once, which no queue on their way holds.
func (s *Server) settle(since time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	spread := min(time.Duration(len(s.streams))*settleEach, settleMost)
	return max(settleTime, spread-since) + rand.N(spread+1)
}

// renamed has a stream be found by its node's name of now.
func (s *Server) renamed(st *stream, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == st.name {
		return
	}
	if s.streams[st.name] == st {
		delete(s.streams, st.name)
		s.streams[name] = st
	}
	st.name = name
}

// signOfLife says that the gateway lives, and with it its map.
func (s *Server) signOfLife() Event {
	now := s.cfg.Registry.cfg.Now().UTC()
	return Event{Trust: now.Add(trustTime).Truncate(time.Second), Now: now.Truncate(time.Second)}
}

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
// same map, mostly, so each line is made once.
func (s *Server) event(epoch, version uint64) (line []byte, m *Map, changed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, changed = s.cfg.Registry.Map()
	if epoch != m.Epoch {
		version = 0
	}
	if made := s.encoded[version]; made != nil && s.newest == m {
		return made, m, changed, nil
	}
	e, m, changed := s.cfg.Registry.update(m.Epoch, version)
	if e.Map == nil && e.Delta == nil {
		return nil, m, changed, nil
	}
	if s.newest != m {
		s.newest = m
		clear(s.encoded)
	}
	if e.Map != nil {
		line = s.encoded[0]
	}
	if line == nil {
		if line, err = json.Marshal(e); err != nil {
			return nil, m, changed, err
		}
	}
	s.encoded[version] = line
	if e.Map != nil {
		s.encoded[0] = line
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
