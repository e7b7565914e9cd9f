package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strconv"
	"strings"
	"sync"
)

// logHandler writes log records as the other lines on stderr are: "meshdns: warning: MESSAGE key=value". It gives no
// time: whoever keeps the lines, such as journald, has it.
type logHandler struct {
	level  slog.Level
	attrs  string // of WithAttrs, written out
	prefix string // of WithGroup

	mu *sync.Mutex // shared by all that write to w
	w  io.Writer
}

func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(&logHandler{level: level, mu: new(sync.Mutex), w: w})
}

// takeLog has what libraries write to Go's own log go to ours, until giveBack.
func takeLog(l *slog.Logger) (giveBack func()) {
	flags, before := log.Flags(), log.Writer()
	log.SetFlags(0)
	log.SetOutput(libraries{l})
	return func() {
		log.SetFlags(flags)
		log.SetOutput(before)
	}
}

// libraries is the log of libraries: their texts may hold words from outside.
type libraries struct{ *slog.Logger }

// Write takes one line.
func (l libraries) Write(line []byte) (int, error) {
	l.Info("a library says", "text", strings.TrimSpace(string(line)))
	return len(line), nil
}

// Enabled reports whether records of this level are written.
func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// Handle writes one record.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	b.WriteString("meshdns: ")
	switch {
	case r.Level >= slog.LevelError:
		b.WriteString("error: ")
	case r.Level >= slog.LevelWarn:
		b.WriteString("warning: ")
	case r.Level < slog.LevelInfo:
		b.WriteString("debug: ")
	}
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(attrText(h.prefix, a))
		return true
	})
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b.Bytes())
	return err
}

// WithAttrs returns a handler that adds attrs to each record.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	for _, a := range attrs {
		next.attrs += attrText(h.prefix, a)
	}
	return &next
}

// WithGroup returns a handler that puts name before the keys.
func (h *logHandler) WithGroup(name string) slog.Handler {
	next := *h
	next.prefix += name + "."
	return &next
}

// attrText is " key=value", the value quoted where it would not be one word on one line.
func attrText(prefix string, a slog.Attr) string {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		var b strings.Builder
		for _, inner := range value.Group() {
			b.WriteString(attrText(prefix+a.Key+".", inner))
		}
		return b.String()
	}
	text := value.String()
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || !strconv.IsPrint(r) }) {
		text = strconv.Quote(text)
	}
	return fmt.Sprintf(" %s%s=%s", prefix, a.Key, text)
}
