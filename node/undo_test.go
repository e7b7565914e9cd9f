package node

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestUndoGoesBackwardsAndPastErrors(t *testing.T) {
	var order []string
	s := undoStack{log: slog.New(slog.DiscardHandler)}
	for _, what := range []string{"lock", "resolver", "socket"} {
		s.push(what, func(context.Context) error {
			order = append(order, what)
			if what == "resolver" {
				return errors.New("stuck")
			}
			return nil
		})
	}
	err := s.run()
	if got, want := strings.Join(order, " "), "socket resolver lock"; got != want {
		t.Errorf("order: got %q, want %q", got, want)
	}
	if err == nil || err.Error() != "resolver: stuck" {
		t.Errorf("error: got %v, want %q", err, "resolver: stuck")
	}
	if err := s.run(); err != nil || len(order) != 3 {
		t.Errorf("a second run did it again: %v, %v", order, err)
	}
}

func TestUndoAbandonsWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := undoStack{log: slog.New(slog.DiscardHandler)}
		release := make(chan struct{})
		unlocked := false
		s.push("lock", func(context.Context) error { unlocked = true; return nil })
		s.push("DNS", func(context.Context) error { <-release; return nil })
		start := time.Now()
		err := s.run()
		if took := time.Since(start); took > undoTime {
			t.Errorf("took %s, want at most %s", took, undoTime)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want an error about the time", err)
		}
		close(release)
		synctest.Wait()
		if !unlocked {
			t.Error("what lay behind it was not undone")
		}
	})
}

func TestUndoLetsTheMachinesDNSTakeItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := undoStack{log: slog.New(slog.DiscardHandler)}
		var done []string
		s.push("last", func(context.Context) error { done = append(done, "last"); return nil })
		s.steps = append(s.steps, undoStep{"DNS", func(context.Context) error {
			time.Sleep(3 * undoTime) // a machine that is busy
			done = append(done, "DNS")
			return nil
		}, undoDNSTime})
		s.push("hangs", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		if err := s.run(); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "DNS") {
			t.Errorf("got %v, want what hangs alone", err)
		}
		if got := strings.Join(done, " "); got != "DNS last" {
			t.Errorf("done: %q", got)
		}
	})
}

func TestGroupTellsOfAPartThatEndsByItself(t *testing.T) {
	checkGoroutines(t)
	for name, end := range map[string]error{"with an error": errors.New("no socket"), "without": nil} {
		t.Run(name, func(t *testing.T) {
			g := newGroup()
			g.run("good part", func(ctx context.Context) error { <-ctx.Done(); return nil })
			g.run("bad part", func(context.Context) error { return end })
			if err := <-g.failed; err == nil || !strings.Contains(err.Error(), "bad part") {
				t.Errorf("got %v, want an error that names the part", err)
			}
			if err := g.stop(t.Context()); err != nil {
				t.Errorf("stop: %v", err)
			}
		})
	}
}

func TestGroupWaitsForItsParts(t *testing.T) {
	checkGoroutines(t)
	g := newGroup()
	ended := false
	g.run("slow part", func(ctx context.Context) error { <-ctx.Done(); ended = true; return nil })
	if err := g.stop(t.Context()); err != nil || !ended {
		t.Errorf("stop: got %v, ended %t; want nil after the part has ended", err, ended)
	}
	select {
	case err := <-g.failed:
		t.Errorf("a part that was asked to end counts as failed: %v", err)
	default:
	}
}
