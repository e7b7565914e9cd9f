package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/meshdns/meshdns/osconfig"
)

// takeoverSchema names the form of Takeover.
const takeoverSchema = "meshdns.dns.takeover/v1"

// errEnding denies what would outlive the node.
var errEnding = errors.New("the node is ending")

// systemDNS is the machine's DNS: osconfig's Manager, or a test's fake.
type systemDNS interface {
	Apply(ctx context.Context, c osconfig.Config) error // the zero Config gives it back
	Plan(ctx context.Context, c osconfig.Config) (osconfig.Plan, error)
	Status() osconfig.Status
	Close() error
}

// takeover has the machine's DNS point at the stub, or not. Changes are made one at a time.
type takeover struct {
	system systemDNS
	config func() osconfig.Config // what to apply
	report func(format string, args ...any)
	log    *slog.Logger
	kick   chan struct{} // tells run of a new deadline

	wanted bool  // up is to take over
	denied error // why that is not to be done, whoever asks; nil: nothing speaks against it

	changing sync.Mutex // held while the machine is changed
	applied  osconfig.Config

	mu  sync.Mutex
	now Takeover
}

// state is who answers for the machine's DNS at present.
func (t *takeover) state() Takeover {
	t.mu.Lock()
	now := t.now
	t.mu.Unlock()
	now.Schema, now.Trace = takeoverSchema, []string{}
	if t.system == nil {
		return now
	}
	system := t.system.Status()
	now.Trace = notNil(system.Trace)
	if now.State == takeoverOff {
		now.Steps, now.Left = system.Given.Steps, system.Given.Left
		return now
	}
	now.Mode = system.Mode
	if (now.State == takeoverOn || now.State == takeoverPending) && !system.Active {
		// Its watching found that somebody else owns it now.
		now.State, now.Reason, now.Until = takeoverRefused, "another program has the machine's DNS now", nil
		if len(system.Problems) > 0 {
			now.Reason = system.Problems[0]
		}
		return now
	}
	if now.State == takeoverOn || now.State == takeoverPending {
		now.Asks = asksAll
		if system.Split {
			now.Asks = asksSplit
		}
	}
	return now
}

// What the machine asks the stub for.
const (
	asksAll   = "all"
	asksSplit = "split"
)

// problems are what somebody should know of the machine's DNS.
func (t *takeover) problems() []string {
	if t.system == nil {
		return nil
	}
	s := t.system.Status()
	if !s.Active {
		return slices.Concat(s.Problems, s.Given.Left)
	}
	return s.Problems
}

// begin takes the machine's DNS over if that is wanted, or says why not. What fails is no reason not to run.
func (t *takeover) begin(ctx context.Context) {
	var err error
	switch {
	case !t.wanted:
		t.setState(takeoverOff, t.denied.Error(), nil)
	case t.denied != nil:
		err = t.denied
		t.setState(takeoverRefused, err.Error(), nil)
	default:
		err = t.apply(ctx, 0)
	}
	now := t.state()
	if now.State == takeoverOn {
		return // apply has told
	}
	t.report("the machine's DNS is left alone: %s", now.Reason)
	if hint := hintOf(err); hint != "" {
		t.report("hint: %s", hint)
	}
}

func (t *takeover) setState(state, reason string, until *time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = Takeover{State: state, Reason: reason, Until: until}
	// run looks at the state, not at what is in the channel, so one word waiting is enough.
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// apply takes the machine's DNS over. If confirm is not zero and it was not taken over before, that is undone after
// confirm unless confirm is called until then.
func (t *takeover) apply(ctx context.Context, confirm time.Duration) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	if t.denied != nil {
		return fmt.Errorf("taking over the machine's DNS: %w", t.denied)
	}
	was := t.state().State
	config := t.config()
	if err := t.system.Apply(ctx, config); err != nil {
		t.setState(takeoverRefused, err.Error(), nil)
		return fmt.Errorf("taking over the machine's DNS: %w", err)
	}
	t.applied = config
	// Whoever has names already shall not lose them for want of a confirmation.
	if confirm == 0 || was == takeoverOn {
		t.setState(takeoverOn, "", nil)
	} else {
		until := time.Now().Add(confirm).UTC()
		t.setState(takeoverPending, "", &until)
	}
	t.report("the machine's DNS is taken over (%s)", t.state().Mode)
	return nil
}

// plan tells what apply would do.
func (t *takeover) plan(ctx context.Context) (PlanResult, error) {
	t.changing.Lock()
	defer t.changing.Unlock()
	plan, err := t.system.Plan(ctx, t.config())
	if err != nil {
		return PlanResult{}, fmt.Errorf("planning: %w", err)
	}
	return planResult(plan, t.denied), nil
}

// confirm keeps what apply did.
func (t *takeover) confirm() error {
	t.changing.Lock()
	defer t.changing.Unlock()
	if t.state().State != takeoverPending {
		return hinted(ErrNotFound, errors.New("no takeover waits for its confirmation"), "look at it with: meshdns dns status")
	}
	t.setState(takeoverOn, "", nil)
	t.report("the takeover of the machine's DNS is confirmed")
	return nil
}

// restore gives the machine's DNS back and leaves it alone until the next apply.
func (t *takeover) restore(ctx context.Context, reason string) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	return t.restoreChanging(ctx, reason)
}

func (t *takeover) restoreChanging(ctx context.Context, reason string) error {
	// A refused one too: it may have failed half-way, and giving back what is not ours to give back does nothing.
	switch t.state().State {
	case takeoverOn, takeoverPending, takeoverRefused:
	default:
		return nil
	}
	if err := t.system.Apply(ctx, osconfig.Config{}); err != nil {
		return fmt.Errorf("giving the machine's DNS back: %w", err)
	}
	t.setState(takeoverOff, reason, nil)
	t.report("the machine's DNS is given back: %s", reason)
	return nil
}

// reapply brings what the machine has been told in line with a changed map, if that makes a difference.
func (t *takeover) reapply(ctx context.Context) {
	t.changing.Lock()
	defer t.changing.Unlock()
	config := t.config()
	switch t.state().State {
	case takeoverOn, takeoverPending:
	default:
		return
	}
	if reflect.DeepEqual(config, t.applied) {
		return
	}
	if err := t.system.Apply(ctx, config); err != nil {
		t.log.Error("the machine was not told of the map's domains", "err", err)
		return
	}
	t.applied = config
}

// run undoes a takeover that is not confirmed in time, until ctx ends.
func (t *takeover) run(ctx context.Context) error {
	for {
		var due <-chan time.Time
		if until := t.state().Until; until != nil {
			due = time.After(time.Until(*until))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.kick:
		case <-due:
			t.expire(ctx)
		}
	}
}

// expire undoes a takeover if it still waits for its confirmation and its time is up.
func (t *takeover) expire(ctx context.Context) {
	t.changing.Lock()
	defer t.changing.Unlock()
	now := t.state()
	if now.State != takeoverPending || time.Now().Before(*now.Until) {
		return
	}
	if err := t.restoreChanging(ctx, "not confirmed in time"); err != nil {
		t.log.Error("the takeover was not confirmed and not undone", "err", err)
		t.setState(takeoverOn, "not confirmed, and not undone: "+err.Error(), nil)
	}
}

// close gives the machine's DNS back for good: what is asked for afterwards is refused, so that a call on the control
// socket cannot take it over again behind our back. It waits for a change under way; the caller has a bound on that.
func (t *takeover) close() error {
	t.changing.Lock()
	defer t.changing.Unlock()
	t.denied = errEnding
	had := t.state().State
	if err := t.system.Close(); err != nil {
		return hinted(nil, fmt.Errorf("giving the machine's DNS back: %w", err), "run: meshdns dns restore")
	}
	if had == takeoverOn || had == takeoverPending {
		t.setState(takeoverOff, errEnding.Error(), nil)
		t.report("the machine's DNS is given back")
	}
	return nil
}
