package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshdns/meshdns/node/tunnel"
	"github.com/meshdns/meshdns/osconfig"
)

// takeDNS learns which upstreams the machine has and points its DNS at the stub, unless that is not wanted or not
// possible: the resolver then works on by itself.
func (n *Node) takeDNS(ctx context.Context) error {
	n.takeover.wanted, n.takeover.denied = n.mayTakeOver()
	manager, err := osconfig.Open(ctx, n.systemOptions())
	if err != nil {
		return fmt.Errorf("looking at the machine's DNS: %w", err)
	}
	n.takeover.system, n.takeover.config = manager, n.systemConfig
	n.takeover.report, n.takeover.log = n.report, n.log
	n.takeover.kick = make(chan struct{}, 1)
	n.undo.pushWithin(undoDNSTime, "giving the machine's DNS back", n.giveBack)
	if n.cfg.DNS.Portal == "auto" {
		n.portal = n.newPortal()
		n.services.run("watching for captive portals", n.portal.run)
	}
	n.learnBase(ctx, manager)
	n.system.run("watching of the machine's DNS", manager.Watch)
	n.system.run("confirmation of the takeover", n.takeover.run)
	n.takeover.begin(ctx)
	return nil
}

// systemOptions are how osconfig is to look at this machine.
func (n *Node) systemOptions() osconfig.Options {
	mode := n.cfg.DNS.OS
	if !n.takeover.wanted {
		mode = "off"
	}
	return osconfig.Options{StateDir: n.opt.Paths.State, Mode: mode, OnBase: n.useBase, Logger: n.log, Verify: n.tryStub, Probe: probeFor(n.opt.Root)}
}

// probeFor is how nameservers are tried once the machine's DNS is given back; nil for somebody whom it never was taken
// for.
func probeFor(root bool) func(context.Context, netip.AddrPort) error {
	if root {
		return probe
	}
	return nil
}

// tryStub asks the server that the machine names now for the zone, as programs will.
func (n *Node) tryStub(ctx context.Context, server netip.AddrPort) error {
	m, _ := n.tailnet.current()
	return selfCheck(ctx, server, m.Zone())
}

// mayTakeOver says whether the machine's DNS is to be taken over, and what speaks against it, whoever asks.
func (n *Node) mayTakeOver() (wanted bool, denied error) {
	deny := func(why, hint string) error {
		return hinted(nil, errors.New(why), hint)
	}
	switch {
	case n.opt.Try:
		return false, deny("a node for a first look leaves it alone", "start it without --try")
	case !n.opt.Root:
		return false, deny("the daemon is not root", "start it with sudo")
	case n.cfg.DNS.OS == "off":
		return false, deny(reasonOff, "set dns.os: auto and start it again")
	case n.stubFault != nil:
		return true, n.stubFault
	}
	return true, nil
}

// learnBase asks once which upstreams the machine has now; changes come through useBase.
func (n *Node) learnBase(ctx context.Context, manager *osconfig.Manager) {
	base, err := manager.Base(ctx)
	if err != nil {
		n.report("the machine's own upstreams are not known: %v", err)
		return
	}
	n.useBase(base)
}

// useBase has the resolver ask the upstreams that the machine has, or would have without us.
func (n *Node) useBase(base osconfig.Base) {
	if ours := n.containers.service(); ours.IsValid() {
		base.Servers = slices.DeleteFunc(slices.Clone(base.Servers), func(s osconfig.Server) bool { return s.AddrPort.Addr() == ours })
	}
	learnt, err := learn(base)
	if err == nil {
		err = n.routing.setNetwork(learnt)
	}
	if err != nil {
		n.log.Error("the machine's upstreams are not used", "err", err)
		return
	}
	n.portal.wake()
	_, servers := n.routing.describe()
	if len(servers) == 0 {
		n.report("no upstreams: only names of the tailnet are answered")
		return
	}
	n.report("upstreams %s", strings.Join(servers, " "))
}

// systemConfig is what the machine is to be told: the stub, the search list, and for systems that can ask different
// servers for different names, which names are ours.
func (n *Node) systemConfig() osconfig.Config {
	c := osconfig.Config{Servers: []osconfig.Server{{AddrPort: n.stub}}, Search: n.search(), Service: n.containers.service()}
	if n.cfg.DNS.Takeover == "split" {
		m, _ := n.tailnet.current()
		c.Match = append([]string{m.Zone()}, reverseZones(m.Ranges())...)
		routes, _ := n.routing.describe()
		for _, route := range routes {
			if route.Source != routeLearnt {
				c.Match = append(c.Match, route.Suffix)
			}
		}
		slices.Sort(c.Match)
		c.Match = slices.Compact(c.Match)
	}
	return c
}

// giveBack puts the machine's DNS back, with nothing running any more that could take it over again.
func (n *Node) giveBack(ctx context.Context) error {
	return errors.Join(n.system.stop(ctx), n.takeover.close())
}

// Restore gives the machine's DNS back that a node which died has taken over, as its journal in the state directory
// says. It needs no running node and no configuration, and is safe to call at any time. For root it then tries the
// nameservers that the machine has.
func (p Paths) Restore(ctx context.Context, root bool) (Takeover, error) {
	report, err := osconfig.Restore(ctx, osconfig.Options{StateDir: p.State, Probe: probeFor(root)})
	service, serviceErr := takeServiceBack(p.State)
	if err := errors.Join(err, serviceErr); err != nil {
		return Takeover{}, err
	}
	t := Takeover{Schema: takeoverSchema, State: takeoverOff, Reason: report.String(), Trace: []string{}}
	t.Steps, t.Left = report.Steps, report.Left
	if service.IsValid() {
		t.Steps = append(t.Steps, "the service address "+service.String()+" was taken back")
	}
	// The machine's names come first; what a dead tunnel left harms nobody's.
	if err := tunnel.Cleanup(p.State); err != nil {
		t.Left = append(t.Left, fmt.Sprintf("what a tunnel that was killed left on the machine: %v", err))
	}
	return t, nil
}

// Plan tells what taking over the machine's DNS would do, without a running node. The node must not run.
func (n *Node) Plan(ctx context.Context) (PlanResult, error) {
	if err := n.prepareIdle(); err != nil {
		return PlanResult{}, err
	}
	n.stub = n.cfg.DNS.Stub
	n.takeover.wanted, n.takeover.denied = n.mayTakeOver()
	plan, err := osconfig.Preview(ctx, n.systemOptions(), n.systemConfig())
	if err != nil {
		return PlanResult{}, fmt.Errorf("planning: %w", err)
	}
	return planResult(plan, n.takeover.denied), nil
}

// planResult is plan as the control API tells it. What speaks against it whatever the machine is like goes first.
func planResult(plan osconfig.Plan, denied error) PlanResult {
	result := PlanResult{
		Schema:   "meshdns.dns.plan/v1",
		Possible: plan.Possible,
		Mode:     plan.Mode,
		Reason:   plan.Reason,
		Hint:     plan.Hint,
		Trace:    notNil(plan.Trace),
		Diff:     plan.Diff,
	}
	if denied != nil {
		result.Possible, result.Reason, result.Hint = false, denied.Error(), hintOf(denied)
	}
	return result
}
