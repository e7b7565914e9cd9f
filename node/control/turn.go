package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// The bounds of first certificates. CAs count those of a registered domain over a week, and all nodes share that; renewals
// are not counted.
const (
	turnsWeek    = 40 // of the 50 that Let's Encrypt allows
	turnTime     = 7 * 24 * time.Hour
	turnAgain    = 24 * time.Hour   // for how long an order may be tried again
	turnPatience = 10 * time.Minute // after which who waits and has not asked again has given up
	maxWaiting   = 1000
	maxTurnNames = 100 // of one order (RFC 8555 sets none; Let's Encrypt does)
)

// turnsKey is the record of the turns of the last week.
const turnsKey = "turns"

// turnRecord is one first certificate.
type turnRecord struct {
	Node string    `json:"node"`
	What string    `json:"what"` // the CA and the names
	At   time.Time `json:"at"`
}

// waitingTurns are those who wait, in the order in which they came. After a restart they come again.
type waitingTurns struct {
	mu   sync.Mutex
	list []waitingTurn
}

type waitingTurn struct {
	node, what string
	asked      time.Time
}

// turnRequest asks whether a first certificate may be ordered now.
type turnRequest struct {
	CA    string   `json:"ca"`
	Names []string `json:"names"`
}

// turnAnswer says so, or when to ask again.
type turnAnswer struct {
	Granted bool `json:"granted"`
	Left    int  `json:"left"`              // of this week, after this one
	Limit   int  `json:"limit"`             // of a week
	Place   int  `json:"place,omitempty"`   // in the queue, from 1
	Retry   int  `json:"retry_s,omitempty"` // when to ask again
}

// turn gives turns in the order in which they were asked for.
func (s *Server) turn(ctx context.Context, node string, body io.Reader) (any, error) {
	var in turnRequest
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	if in.CA == "" && len(in.Names) == 0 {
		return s.TurnsLeft(), nil
	}
	if len(in.Names) == 0 || len(in.Names) > maxTurnNames || len(in.CA) > 200 {
		return nil, refuse(http.StatusBadRequest, codeBad, "%d names", len(in.Names))
	}
	return s.Turn(ctx, node, in.CA, in.Names)
}

// Turn asks for node's turn to order a first certificate of names at a CA.
func (s *Server) Turn(ctx context.Context, node, ca string, names []string) (turnAnswer, error) {
	limit := s.turnsLimit()
	names = slices.Clone(names)
	slices.Sort(names)
	what := hashText(strings.Join(append(slices.Compact(names), ca), " "))
	now := s.cfg.Registry.cfg.Now()
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	place := s.queue.placeLocked(node, what, now)
	if place < 0 {
		return turnAnswer{}, refuse(http.StatusTooManyRequests, codeBusy, "%d certificates wait for their turn", maxWaiting)
	}
	left, next, err := s.cfg.Registry.takeTurn(ctx, turnRecord{node, what, now.UTC()}, limit, place)
	if err != nil {
		return turnAnswer{}, err
	}
	if left < 0 {
		retry := min(max(next.Sub(now), time.Minute), turnPatience/2)
		return turnAnswer{Limit: limit, Place: place + 1, Retry: int(retry / time.Second)}, nil
	}
	s.queue.list = slices.DeleteFunc(s.queue.list, func(w waitingTurn) bool { return w.node == node && w.what == what })
	return turnAnswer{Granted: true, Left: left, Limit: limit}, nil
}

// turnsLimit is how many turns there are in a week.
func (s *Server) turnsLimit() int {
	if s.cfg.Pace > 0 {
		return s.cfg.Pace
	}
	return turnsWeek
}

// TurnsLeft tells how many first certificates may be ordered yet, of how many in a week. Nobody is granted anything.
func (s *Server) TurnsLeft() turnAnswer {
	r := s.cfg.Registry
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	limit := s.turnsLimit()
	left := limit
	for _, t := range r.turns {
		if now.Sub(t.At) < turnTime {
			left--
		}
	}
	return turnAnswer{Left: max(left, 0), Limit: limit}
}

func hashText(s string) string { return fmt.Sprintf("%x", hashOf(s)[:12]) }

// placeLocked is the place of an order in the queue, which it is put into; -1: it is full.
func (q *waitingTurns) placeLocked(node, what string, now time.Time) int {
	q.list = slices.DeleteFunc(q.list, func(w waitingTurn) bool { return now.Sub(w.asked) > turnPatience })
	i := slices.IndexFunc(q.list, func(w waitingTurn) bool { return w.node == node && w.what == what })
	if i >= 0 {
		q.list[i].asked = now
		return i
	}
	if len(q.list) >= maxWaiting {
		return -1
	}
	q.list = append(q.list, waitingTurn{node, what, now})
	return len(q.list) - 1
}

// takeTurn takes one of the week's turns, if there is one left for those at a place of the queue. left is -1 otherwise, and
// next is when one is free again.
func (r *Registry) takeTurn(ctx context.Context, one turnRecord, limit, place int) (left int, next time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err = r.changeLocked(ctx, func() ([]change, error) {
		list := slices.DeleteFunc(slices.Clone(r.turns), func(t turnRecord) bool { return one.At.Sub(t.At) >= turnTime })
		again := slices.ContainsFunc(list, func(t turnRecord) bool {
			return t.Node == one.Node && t.What == one.What && one.At.Sub(t.At) < turnAgain
		})
		left = limit - len(list)
		if again {
			return nil, nil
		}
		if left <= place {
			left, next = -1, one.At.Add(turnTime)
			if len(list) > 0 {
				next = list[0].At.Add(turnTime)
			}
			return nil, nil
		}
		left--
		return r.puts(turnsKey, append(list, one))
	})
	return left, next, err
}

// takeTurns takes the record of turns into use.
func (r *Registry) takeTurns(value []byte) error {
	var list []turnRecord
	if value != nil {
		if err := json.Unmarshal(value, &list); err != nil {
			return err
		}
	}
	r.turns = list
	return nil
}

// Turn asks whether this node may order a first certificate of names at a CA now. Renewals need no turn.
func (c *Client) Turn(ctx context.Context, ca string, names []string) (turnAnswer, error) {
	var answer turnAnswer
	err := c.call(ctx, pathTurn, turnRequest{CA: ca, Names: names}, &answer)
	return answer, err
}

// TurnsLeft asks how many first certificates the tailnet may order yet.
func (c *Client) TurnsLeft(ctx context.Context) (turnAnswer, error) {
	var answer turnAnswer
	err := c.call(ctx, pathTurn, turnRequest{}, &answer)
	return answer, err
}
