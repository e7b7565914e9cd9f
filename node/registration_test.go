package node

import (
	"errors"
	"net/http"
	"testing"

	"github.com/meshdns/meshdns/node/control"
)

func shownAs(name string) control.Funnel { return control.Funnel{Name: name, Port: 443, Kind: "https"} }

// What the gateway says is about what was wanted when it was told; a wish that came meanwhile has still to be told.
func TestARegistrationIsSettledOnceItsLastWishIsKnown(t *testing.T) {
	r := newRegistration()
	if _, _, needless := r.wishes(); !needless {
		t.Error("a gateway is told of nothing")
	}
	a, b := shownAs("a.example"), shownAs("b.example")
	r.set([]control.Funnel{a})
	list, wish, needless := r.wishes()
	if needless || len(list) != 1 {
		t.Fatalf("%v, needless %t", list, needless)
	}
	r.set([]control.Funnel{b})
	a.Open = true
	_, _, changed, _ := r.state()
	if r.took(wish, []control.Funnel{a}, nil) {
		t.Error("it is told again although it was")
	}
	<-changed
	if _, settled, _, _ := r.state(); settled {
		t.Error("settled by an older wish")
	}
	_, wish, _ = r.wishes()
	r.took(wish, []control.Funnel{b}, nil)
	if told, settled, _, err := r.state(); !settled || err != nil || !told[0].Same(b) {
		t.Errorf("%v %t %v", told, settled, err)
	}
	// The last one ends: that has to be told as well.
	r.set(nil)
	if _, _, needless := r.wishes(); needless {
		t.Error("the end is not told")
	}
}

func TestWhichRefusalsOfARegistrationAreTriedAgain(t *testing.T) {
	busy := &control.RefusedError{Status: http.StatusServiceUnavailable, Code: "busy", Message: "no stream"}
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"the gateway is not reached": {errors.New("no answer"), true},
		"it is busy":                 {busy, true},
		"it cannot":                  {&control.RefusedError{Status: http.StatusNotImplemented, Code: "no_funnels", Message: "no"}, false},
		"done":                       {nil, false},
	} {
		r := newRegistration()
		r.set([]control.Funnel{shownAs("a.example")})
		_, wish, _ := r.wishes()
		if got := r.took(wish, nil, tt.err); got != tt.want {
			t.Errorf("%s: again %t", name, got)
		}
		if _, settled, _, _ := r.state(); settled == tt.want {
			t.Errorf("%s: settled %t", name, settled)
		}
	}
}
