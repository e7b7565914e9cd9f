package main

import (
	"bytes"
	"errors"
	"log"
	"log/slog"
	"strings"
	"testing"
)

func TestLogLinesReadLikeTheOthers(t *testing.T) {
	tests := []struct {
		name string
		log  func(l *slog.Logger)
		want string
	}{
		{"a change of state", func(l *slog.Logger) { l.Info("map read again", "version", 3) },
			"meshdns: map read again version=3\n"},
		{"a warning with an error", func(l *slog.Logger) { l.Warn("upstream lost", "err", errors.New("no route")) },
			"meshdns: warning: upstream lost err=\"no route\"\n"},
		{"an error", func(l *slog.Logger) { l.Error("bad") }, "meshdns: error: bad\n"},
		{"below the level", func(l *slog.Logger) { l.Debug("query", "name", "nas.") }, ""},
		{"attributes of the logger", func(l *slog.Logger) { l.With("part", "dns").WithGroup("g").Info("x", "k", "v") },
			"meshdns: x part=dns g.k=v\n"},
		{"a line break in a value", func(l *slog.Logger) { l.Info("x", "k", "a\nmeshdns: ready") },
			"meshdns: x k=\"a\\nmeshdns: ready\"\n"},
		{"an escape sequence in a value", func(l *slog.Logger) { l.Info("x", "k", "a\x1b[2J") },
			"meshdns: x k=\"a\\x1b[2J\"\n"},
		{"an empty value", func(l *slog.Logger) { l.Info("x", "k", "") }, "meshdns: x k=\"\"\n"},
		{"a group", func(l *slog.Logger) { l.Info("x", slog.Group("g", "a", 1, "b", 2)) }, "meshdns: x g.a=1 g.b=2\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			tt.log(newLogger(&b, slog.LevelInfo))
			if got := b.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Some of the packages for DNS providers write what they do to Go's own log.
func TestThereIsOneLog(t *testing.T) {
	var ours, theirs bytes.Buffer
	was := log.Writer()
	log.SetOutput(&theirs)
	defer log.SetOutput(was)
	giveBack := takeLog(newLogger(&ours, slog.LevelInfo))
	log.Println("AppendRecords", "example.org\nmeshdns: ready")
	giveBack()
	log.Print("after")
	if got, want := ours.String(), `meshdns: a library says text="AppendRecords example.org\nmeshdns: ready"`+"\n"; got != want {
		t.Errorf("ours is %q, want %q", got, want)
	}
	if got := theirs.String(); !strings.Contains(got, "after") || strings.Contains(got, "Append") {
		t.Errorf("theirs is %q", got)
	}
}
