package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshdns/meshdns/certs"
	"github.com/meshdns/meshdns/funnel"
	"github.com/meshdns/meshdns/node/control"
)

// The bounds of commands that serve.
const (
	maxSessions  = 32 // at once; each keeps a place at the control socket
	maxWaiting   = 64 // visits that a command has not been told of; others are left out
	readyTime    = certTime + 3*time.Minute
	visitorsTime = time.Minute // until an address has to work from outside
	visitorsEach = time.Second
	lineTime     = 10 * time.Second // for one line to be taken
	waitTime     = 30 * time.Second // for a gateway's answer
)

// serveLine is one line of the answer to a request to serve: a step, a warning, that it stands, a visit, or the end.
type serveLine struct {
	Step    string             `json:"step,omitempty"`
	Warning string             `json:"warning,omitempty"`
	Up      *serveUp           `json:"up,omitempty"`
	Visit   *funnel.AccessLine `json:"visit,omitempty"`
	End     string             `json:"end,omitempty"`
	Error   *problem           `json:"error,omitempty"`
}

// serveUp says what is served now.
type serveUp struct {
	Schema  string        `json:"schema"` // meshdns.serve/v1
	Entries []servedState `json:"entries"`
}

// serveStream tells a command how it goes.
type serveStream struct {
	w       http.ResponseWriter
	control *http.ResponseController

	mu   sync.Mutex
	gone bool
}

// say writes a line. Who does not take it in time is gone.
func (s *serveStream) say(line serveLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	err := s.control.SetWriteDeadline(time.Now().Add(lineTime))
	if err == nil {
		err = json.NewEncoder(s.w).Encode(line)
	}
	if err == nil {
		err = s.control.Flush()
	}
	s.gone = err != nil
}

func (s *serveStream) step(format string, args ...any) {
	s.say(serveLine{Step: fmt.Sprintf(format, args...)})
}

// serveServe serves something, tells how it comes about, and, in the foreground, ends it with the call.
func (n *Node) serveServe(w http.ResponseWriter, r *http.Request) {
	var req serveRequest
	err := decode(r, &req)
	if err == nil && !n.serving.ready.Load() {
		err = hinted(ErrTimeout, errStarting, "try again")
	}
	stream := &serveStream{w: w, control: http.NewResponseController(w)}
	if err == nil {
		err = stream.control.SetReadDeadline(time.Time{})
	}
	if err != nil {
		n.control.fail(w, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stop := context.AfterFunc(n.services.ctx, cancel)
	defer stop()
	w.Header().Set("Content-Type", "application/x-ndjson")
	session, err := n.makeSession(ctx, req, callerOf(r), stream)
	if err == nil {
		err = n.runSession(ctx, session, req, stream)
	}
	if err != nil && r.Context().Err() == nil {
		p, _ := describeError(err)
		if n.services.ctx.Err() != nil {
			p = problem{Schema: p.Schema, Kind: "failed", Error: "the daemon ends"}
		}
		stream.say(serveLine{Error: &p})
	}
}

// makeSession is a session for what is asked for, once it is known what that is.
func (n *Node) makeSession(ctx context.Context, req serveRequest, who caller, stream *serveStream) (*serveSession, error) {
	one, err := n.wish(req)
	if err != nil {
		return nil, err
	}
	one.Owner = who.uid
	if err := n.mayServe(one); err != nil {
		return nil, err
	}
	w := &serveSession{replace: req.Background}
	if list := n.madePublic(one, req.Target); len(list) > 0 {
		w.served = list
	} else {
		settleTarget(ctx, &one)
		w.served = []served{one}
	}
	if !req.Background {
		w.visits = make(chan funnel.AccessLine, maxWaiting)
	}
	for _, e := range entriesOf(w.served) {
		if err := e.Check(); err != nil {
			return nil, hinted(ErrBadRequest, err, hintOf(err))
		}
	}
	for _, s := range w.served {
		warning := ""
		err := n.asOwner(funnel.Entry{Owner: s.Owner}, func() (err error) {
			warning, err = lookAtTarget(ctx, s.Target)
			return err
		})
		if err != nil {
			return nil, err
		}
		if warning != "" {
			stream.say(serveLine{Warning: warning})
		}
	}
	return w, nil
}

// madePublic is what the tailnet is served at a port already, for the world: `meshdns funnel 443` means that, if there is any.
func (n *Node) madePublic(one served, target string) (list []served) {
	if !one.Public || one.Kind != kindHTTPS || one.Path != "/" || target != fmt.Sprint(one.Port) {
		return nil
	}
	for _, s := range n.serving.current() {
		if !s.Public && s.Kind == kindHTTPS && s.Port == one.Port && s.Name == one.Name && (s.Owner == one.Owner || one.Owner == 0) {
			s.Public, s.Until, s.from, s.at = true, one.Until, "", ""
			if one.Access != nil {
				s.Access = one.Access
			}
			list = append(list, s)
		}
	}
	return list
}

// mayServe says why this node can serve nothing, or nothing to the world.
func (n *Node) mayServe(s served) error {
	if _, err := n.serveTunnel(n.services.ctx); err != nil {
		return hinted(nil, fmt.Errorf("serving needs the tailnet: %w", err), hintOf(err))
	}
	if s.Public && !n.hasGateway() {
		return hinted(nil, errNoGateway, hintGateway)
	}
	return nil
}

// runSession has what a command wants come true, or says why it does not; in the foreground it lasts as long as the command.
func (n *Node) runSession(ctx context.Context, w *serveSession, req serveRequest, stream *serveStream) error {
	if err := n.serving.add(w); err != nil {
		return err
	}
	defer func() {
		n.serving.remove(w)
		n.applyServed()
	}()
	ready, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	for _, s := range w.served {
		if s.Name != "" && !s.Domain {
			if err := n.takeName(ready, s.Name); err != nil {
				return err
			}
		}
	}
	n.applyServed()
	for _, s := range firstOfClasses(w.served) {
		if err := n.comeTrue(ready, s, stream); err != nil {
			return err
		}
	}
	if req.Background {
		if err := n.keepServed(w); err != nil {
			return err
		}
		n.serving.again()
	}
	up := &serveUp{Schema: servedSchema, Entries: []servedState{}}
	for _, s := range w.served {
		s.from = map[bool]string{true: fromCommand, false: fromForeground}[req.Background]
		up.Entries = append(up.Entries, n.servedState(s))
	}
	stream.say(serveLine{Up: up})
	if !req.Background {
		stream.say(serveLine{End: n.stay(ctx, w, stream)})
	}
	return nil
}

// firstOfClasses has one of each name and port: what is below the same is had with it.
func firstOfClasses(list []served) (first []served) {
	for _, s := range list {
		if !slices.ContainsFunc(first, func(o served) bool { return o.class() == s.class() }) {
			first = append(first, s)
		}
	}
	return first
}

// comeTrue waits until something is served, whatever that takes, or says why it is not.
func (n *Node) comeTrue(ctx context.Context, s served, stream *serveStream) error {
	if faults := n.listenFaults(s); len(faults) > 0 {
		n.serving.mu.Lock()
		defer n.serving.mu.Unlock()
		for _, err := range n.serving.faults {
			if err.Error() == faults[0] {
				return err
			}
		}
		return errors.New(faults[0])
	}
	n.serving.mu.Lock()
	unready := n.serving.unready
	n.serving.mu.Unlock()
	if unready != nil {
		return unready
	}
	if s.Public {
		stream.step("asking the gateway to show %s", s.url())
		if err := n.awaitGateway(ctx, s); err != nil {
			return err
		}
	}
	if s.secure() {
		told := func(c certs.Step) {
			stream.step("certificate: %s", strings.TrimSpace(c.Stage+" "+c.Name+" "+c.Detail))
		}
		err := n.getServedCert(ctx, s.Name, told)
		if err != nil && !s.Public && s.Kind == kindHTTPS {
			return hinted(errorKindOf(err), err, hintOf(err)+"; or do without TLS inside the tailnet, which is encrypted: --http 80")
		}
		if err != nil {
			return err
		}
	}
	if s.Public {
		return n.awaitVisitors(ctx, s, stream)
	}
	return nil
}

// awaitGateway waits for the gateway's word, and is its refusal.
func (n *Node) awaitGateway(ctx context.Context, s served) error {
	ctx, cancel := context.WithTimeout(ctx, waitTime)
	defer cancel()
	for {
		list, settled, changed, err := n.registration.state()
		i := slices.IndexFunc(list, s.funnel().Same)
		switch {
		case settled && err != nil:
			return hinted(errorKindOf(err), fmt.Errorf("showing %s: %w", s.url(), err), hintOf(err))
		case settled && i >= 0 && list[i].Code != "":
			return refusedFunnel(s, list[i])
		case settled && i >= 0 && list[i].Open:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err == nil {
				err = errors.New("it has not answered")
			}
			return hinted(ErrTimeout, fmt.Errorf("asking the gateway to show %s: %w", s.url(), err), "see whether it is reached: meshdns status")
		}
	}
}

// refusedFunnel is the gateway's refusal.
func refusedFunnel(s served, f control.Funnel) error {
	return hinted(nil, fmt.Errorf("the gateway does not show %s: %s", s.url(), f.Why), f.Mend)
}

// awaitVisitors waits until a visitor from outside would get through.
func (n *Node) awaitVisitors(ctx context.Context, s served, stream *serveStream) error {
	over := time.Now().Add(visitorsTime)
	said := map[string]bool{}
	var failed error
	for ctx.Err() == nil && time.Now().Before(over) {
		f, err := n.tryFromOutside(ctx, s.funnel())
		failed = err
		if err == nil {
			failed = brokenStep(s, f)
			for _, step := range f.Steps {
				line := strings.TrimSpace(step.What + " " + step.At)
				if step.Err == "" && !said[line] {
					said[line] = true
					stream.step("from outside: %s", line)
				}
			}
		}
		if failed == nil {
			for _, step := range f.Steps {
				if step.Err != "" {
					stream.say(serveLine{Warning: "programs elsewhere may not believe the certificate: " + step.Err})
				}
			}
			return nil
		}
		sleep(ctx, visitorsEach)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return failed
}

// brokenStep is what stops a visitor; nil: nothing.
func brokenStep(s served, f control.Funnel) error {
	for _, step := range f.Steps {
		// Who asks for a certificate of a CA that the gateway's system does not know has visitors who do.
		if step.Err != "" && step.What != stepCertificate {
			mend := map[string]string{
				stepName:       "see on the gateway: meshdns gateway check",
				stepConnection: "let visitors reach the gateway's port, in its firewall and its provider's; see on it: meshdns gateway check",
			}[step.What]
			return hinted(nil, fmt.Errorf("from outside %s does not work: %s: %s", s.url(), strings.TrimSpace(step.What+" "+step.At), step.Err), mend)
		}
	}
	if len(f.Steps) == 0 && f.Why != "" {
		return refusedFunnel(s, f)
	}
	return nil
}

// stay tells of visits until the command, its time or the daemon ends.
func (n *Node) stay(ctx context.Context, w *serveSession, stream *serveStream) (why string) {
	var over <-chan time.Time
	if until := w.served[0].Until; !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		over = timer.C
	}
	for {
		select {
		case <-ctx.Done():
			return "the daemon ends" // who else ended it does not hear of it
		case <-over:
			return "its time is over"
		case visit := <-w.visits:
			stream.say(serveLine{Visit: &visit})
		}
	}
}
