package node

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

func FuzzControlBody(f *testing.F) {
	for _, body := range []string{`{}`, `{"name":"nas"}`, `{"confirm_seconds":30}`, `{"name":"nas"} {}`, `null`, `[`, ``} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, v := range []any{&flushRequest{}, &applyRequest{}, &emptyRequest{}} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://meshdns/", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if err := decode(r, v); err != nil && !errors.Is(err, ErrBadRequest) {
				t.Errorf("%T: got %v, want ErrBadRequest", v, err)
			}
		}
	})
}

func FuzzQuestionOfTheURL(f *testing.F) {
	f.Add("nas", "A")
	f.Add("a..b", "TYPE65535")
	f.Add("100.64.0.2", "")
	f.Fuzz(func(t *testing.T, name, kind string) {
		q, err := parseQuestion(name, kind)
		if err != nil {
			if !errors.Is(err, ErrBadRequest) {
				t.Errorf("got %v, want ErrBadRequest", err)
			}
			return
		}
		if got := q.candidates([]string{"foo-bar.ts.net"}); len(got) == 0 {
			t.Errorf("%q has nothing to ask for", name)
		}
	})
}
