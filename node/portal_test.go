package node

import (
	"testing"
	"time"
)

// portalRound is a round of probes some time after the arrival.
type portalRound struct {
	after time.Duration
	facts portalFacts
	up    bool // what has to hold then
}

func TestWhenTheNetworksDNSIsUsed(t *testing.T) {
	blocked := portalFacts{base: true}
	open := portalFacts{answers: true}
	announced := portalFacts{base: true, announced: true}
	const s, m = time.Second, time.Minute
	tests := []struct {
		name   string
		rounds []portalRound
	}{
		{"a network that works", []portalRound{{0, open, false}}},
		{"one lost packet", []portalRound{{0, blocked, false}, {s, open, false}}},
		{"a silent portal", []portalRound{{0, blocked, false}, {2 * s, blocked, false}, {4 * s, blocked, true}, {m, blocked, true}}},
		{"a portal that is announced", []portalRound{{0, announced, true}}},
		{"nothing answers at all", []portalRound{{0, portalFacts{}, false}, {5 * s, portalFacts{}, false}, {m, portalFacts{announced: true}, false}}},
		{"the network's DNS comes later", []portalRound{{0, portalFacts{}, false}, {8 * s, blocked, true}}},
		{"somebody signs in", []portalRound{{0, announced, true}, {m, open, false}}},
		{"blocked again after it worked", []portalRound{{0, open, false}, {10 * s, blocked, false}, {20 * s, blocked, false}, {m, announced, false}}},
		{"blocked again after the portal", []portalRound{{0, announced, true}, {m, open, false}, {m + 5*s, announced, false}, {m + 10*s, announced, false}}},
		{"blocked long after the arrival", []portalRound{{0, portalFacts{}, false}, {portalWindow, blocked, false}, {portalWindow + 10*s, blocked, false}}},
		{"announced long after the arrival", []portalRound{{0, portalFacts{}, false}, {portalWindow, blocked, false}, {3 * portalWindow, announced, true}}},
		{"nobody signs in", []portalRound{{0, blocked, false}, {4 * s, blocked, true}, {portalStay, blocked, true},
			{portalStay + 4*s, blocked, false}, {portalStay + 8*s, announced, false}}},
		{"nobody signs in where it is announced", []portalRound{{0, announced, true}, {2 * portalStay, announced, true},
			{portalStayAnnounced, announced, false}, {portalStayAnnounced + s, announced, false}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
			var j portalJudge
			j.arrive(start)
			for _, r := range tt.rounds {
				if j.round(start.Add(r.after), r.facts); j.up != r.up {
					t.Fatalf("after %s, %+v: up is %t, want %t", r.after, r.facts, j.up, r.up)
				}
			}
			j.arrive(start.Add(24 * time.Hour))
			if j.up {
				t.Error("still up on another network")
			}
			if j.round(start.Add(24*time.Hour), announced); !j.up {
				t.Error("what held of the network before holds on another one")
			}
		})
	}
}

func TestProbesAreFewAndBounded(t *testing.T) {
	start := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	now := start
	var j portalJudge
	j.arrive(now)
	rounds := 0
	for now.Before(start.Add(24 * time.Hour)) {
		d, again := j.pause(now, 0.5)
		if !again {
			break
		}
		if rounds > 0 && d < portalPauseMin/2 || d > portalPauseFar {
			t.Fatalf("round %d: a pause of %s", rounds, d)
		}
		if j.up && d > portalPauseMax {
			t.Fatalf("round %d, while it is up: a pause of %s", rounds, d)
		}
		now = now.Add(d)
		j.round(now, portalFacts{base: true})
		rounds++
	}
	if !j.over || rounds > 300 {
		t.Errorf("%d rounds, over %t; want the end, and fewer", rounds, j.over)
	}
	j.arrive(now)
	j.round(now, portalFacts{answers: true})
	if d, again := j.pause(now, 0.5); again {
		t.Errorf("a network that works is probed again in %s", d)
	}
	if low, _ := (&portalJudge{arrived: now, up: true, rounds: 50}).pause(now, 0); low != portalPauseMax/2 {
		t.Errorf("the least pause is %s, want %s", low, portalPauseMax/2)
	}
}

func TestANetworkIsTheSameWhileAWayOutStays(t *testing.T) {
	hotel, cable, rogue := wayOut{3, "wlan0", "10.0.0.1"}, wayOut{2, "eth0", "192.0.2.1"}, wayOut{3, "wlan0", "10.0.0.66"}
	tests := []struct {
		name      string
		was, next site
		left      bool
	}{
		{"nothing changed", site{[]wayOut{hotel}, nil}, site{[]wayOut{hotel}, nil}, false},
		{"another server", site{[]wayOut{hotel}, []string{"10.0.0.1"}}, site{[]wayOut{hotel}, []string{"10.0.0.66"}}, false},
		{"another router beside it", site{[]wayOut{hotel}, nil}, site{[]wayOut{rogue, hotel}, nil}, false},
		{"a cable was plugged in", site{[]wayOut{hotel}, nil}, site{[]wayOut{cable, hotel}, nil}, false},
		{"another network", site{[]wayOut{hotel}, nil}, site{[]wayOut{cable}, nil}, true},
		{"the way out is lost", site{[]wayOut{hotel}, nil}, site{}, true},
		{"the way out is back", site{}, site{[]wayOut{hotel}, nil}, true},
		{"no ways known", site{nil, []string{"10.0.0.1"}}, site{nil, []string{"10.0.0.1"}}, false},
		{"no ways known, another server", site{nil, []string{"10.0.0.1"}}, site{nil, []string{"192.0.2.1"}}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.was.left(tt.next); got != tt.left {
				t.Errorf("left is %t, want %t", got, tt.left)
			}
		})
	}
}
