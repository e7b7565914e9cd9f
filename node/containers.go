package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshdns/meshdns/resolver"
)

// Who may ask at the service address (dns.containers).
const (
	containersAll     = "all"
	containersForward = "forward"
	containersOff     = "off"
)

const (
	// containersInterval is how often it is looked for an engine that was installed meanwhile, and for what news of the
	// kernel were lost.
	containersInterval = 30 * time.Second
	// containersPause gathers news: a container brings half a dozen.
	containersPause = 20 * time.Millisecond
)

// containers answers the containers of this machine at the service address. Docker and Podman copy the machine's
// resolv.conf into each container without its loopback servers, so the stub is none of theirs. The address lies on lo,
// which answers whatever link leads to it: a filter lets only containers' packets through (containerFilter).
type containers struct {
	node   *Node
	exists func(path string) bool
	kick   chan struct{}

	mu      sync.Mutex
	open    *openService // nil: there is none
	nets    []containerNet
	engines []string
	fault   error // why there is none although it is wanted
	ended   bool
}

// openService is a service address that is answered at.
type openService struct {
	addr    netip.Addr
	noted   bool // we have put it on lo, and noted that
	sockets *serviceSockets
	end     context.CancelFunc
	served  sync.WaitGroup
}

// startContainers takes back what a dead process left, and answers containers if there are any.
func (n *Node) startContainers(ctx context.Context) error {
	c := &n.containers
	c.node, c.kick = n, make(chan struct{}, 1)
	c.exists = func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}
	left, err := takeServiceBack(n.opt.Paths.State)
	if err != nil {
		n.log.Error("the service address that a dead node left is not taken back", "err", err)
	} else if left.IsValid() {
		n.log.Warn("a node that died had left its service address", "address", left)
	}
	if !n.wantsContainers() {
		return nil
	}
	n.undo.push("taking the service address back", c.close)
	c.look(ctx)
	n.services.run("following of containers", c.follow)
	return nil
}

// wantsContainers reports whether containers are to be answered at all.
func (n *Node) wantsContainers() bool {
	return n.opt.Root && !n.opt.Try && n.cfg.DNS.OS != "off" && n.cfg.DNS.Containers != containersOff
}

// service is the address that containers ask, or the zero Addr.
func (c *containers) service() netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		return netip.Addr{}
	}
	return c.open.addr
}

// wake has follow look at the machine.
func (c *containers) wake() {
	select {
	case c.kick <- struct{}{}:
	default: // it will look anyway
	}
}

// follow keeps up with engines, bridges and the map until ctx ends.
func (c *containers) follow(ctx context.Context) error {
	var news sync.WaitGroup
	defer news.Wait()
	news.Go(func() {
		if err := followLinks(ctx, c.wake); err != nil {
			c.node.log.Error("containers' networks are looked at now and then only", "err", err)
		}
	})
	tick := time.NewTicker(containersInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-c.kick:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(containersPause):
			}
		}
		before := c.service()
		c.look(ctx)
		if c.service() != before {
			c.node.takeover.reapply(ctx)
		}
	}
}

// look brings what containers are answered in line with what is so on the machine.
func (c *containers) look(ctx context.Context) {
	bridges, err := machineBridges()
	if err != nil {
		c.node.log.Debug("the bridges of this machine are not known", "err", err)
		return
	}
	nets := findContainerNets(bridges, c.node.cfg.DNS.Bridges)
	m, _ := c.node.tailnet.current()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	changed := !slices.EqualFunc(nets, c.nets, containerNet.equal)
	c.nets, c.engines = nets, containerEngines(c.exists)
	configured := c.node.cfg.DNS.Service
	if c.open != nil && !keepsAddress(c.open.addr, configured, m) {
		c.node.report("the map has no room for the service address %s any more; containers that run have lost it", c.open.addr)
		if err := c.closeLocked(ctx); err != nil {
			c.node.log.Error("the service address is not taken back", "err", err)
		}
	}
	switch {
	case c.open != nil:
		err = c.keepLocked(changed)
	case len(nets) > 0 || len(c.engines) > 0 || configured.IsValid():
		err = c.openLocked(ctx, m)
	default:
		return // nobody would ask
	}
	if err != nil && (c.fault == nil || c.fault.Error() != err.Error()) {
		c.node.report("containers are not answered: %v", err)
	}
	c.fault = err
}

// keepLocked sees that lo still has the address, and that the filter is of the networks that are there.
func (c *containers) keepLocked(changed bool) error {
	if changed {
		if err := c.open.sockets.allow(c.nets); err != nil {
			return err
		}
		c.node.log.Info("containers' networks changed", "networks", describeNets(c.nets))
	}
	has, err := hasAddress(c.open.addr)
	if err != nil || has {
		return err
	}
	c.node.log.Warn("another program took the service address off lo; it is put back", "address", c.open.addr)
	return addAddress(c.open.addr)
}

// openLocked puts the service address on lo and answers there. It is not open before it is seen to answer.
func (c *containers) openLocked(ctx context.Context, m *Map) error {
	links, err := machineLinks()
	if err != nil {
		return err
	}
	var taken []netip.Addr
	for _, l := range links {
		for _, a := range l.addrs {
			taken = append(taken, a.Addr())
		}
	}
	addr, err := serviceAddress(c.node.cfg.DNS.Service, m, taken)
	if err != nil {
		return err
	}
	c.open = &openService{addr: addr}
	if !slices.Contains(taken, addr) { // else somebody has put it there, whose it stays
		if err := noteService(c.node.opt.Paths.State, addr); err != nil {
			c.open = nil
			return err
		}
		c.open.noted = true
		err = addAddress(addr)
	}
	if err == nil {
		err = c.serveLocked(ctx)
	}
	if err == nil {
		if err = selfCheck(ctx, netip.AddrPortFrom(addr, portDNS), m.Zone()); err != nil {
			err = hinted(nil, err, "see what filters packets on lo: sudo nft list ruleset; or choose another dns.service")
		}
	}
	if err != nil {
		return errors.Join(err, c.closeLocked(ctx))
	}
	c.node.report("containers are answered at %s (%s)", addr, c.node.cfg.DNS.Containers)
	return nil
}

// serveLocked binds the service address and answers there.
func (c *containers) serveLocked(ctx context.Context) error {
	s, err := listenService(ctx, netip.AddrPortFrom(c.open.addr, portDNS), readers(), c.nets)
	if err != nil {
		return err
	}
	c.open.sockets = s
	life, end := context.WithCancel(context.Background())
	c.open.end = end
	run := func(what string, serve func(context.Context) error) {
		c.open.served.Go(func() {
			if err := serve(life); err != nil && life.Err() == nil {
				c.node.log.Error("the service address is not answered at any more", "socket", what, "err", err)
			}
		})
	}
	r := c.node.resolver
	for _, conn := range s.own.udp {
		run("udp on lo", func(ctx context.Context) error { return r.ServeUDP(ctx, conn) })
	}
	for _, conn := range s.guests.udp {
		run("udp for containers", func(ctx context.Context) error { return r.ServeGuestUDP(ctx, conn) })
	}
	run("tcp on lo", func(ctx context.Context) error { return r.ServeTCP(ctx, s.own.tcp) })
	run("tcp for containers", func(ctx context.Context) error { return r.ServeGuestTCP(ctx, s.guests.tcp) })
	return nil
}

// close ends the service address for good.
func (c *containers) close(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	return c.closeLocked(ctx)
}

func (c *containers) closeLocked(ctx context.Context) error {
	open := c.open
	c.open = nil
	if open == nil {
		return nil
	}
	if open.sockets != nil {
		open.end()
		if err := orAbandon(ctx, func() error { open.served.Wait(); return nil }); err != nil {
			open.sockets.close()
		}
	}
	if !open.noted {
		return nil
	}
	if _, err := takeServiceBack(c.node.opt.Paths.State); err != nil {
		return hinted(nil, fmt.Errorf("taking the service address back: %w", err), "run: meshdns dns restore")
	}
	return nil
}

// guestTable is what containers are told of the tailnet: all of it, or that its names do not exist.
func (n *Node) guestTable(m *Map, table *resolver.Table) (*resolver.Table, error) {
	if n.cfg.DNS.Containers == containersAll {
		return table, nil
	}
	none, err := resolver.NewTable(resolver.TableConfig{Zone: m.Zone(), Ranges: m.Ranges(), Serial: uint32(m.Version()), TTL: m.TTL()})
	if err != nil {
		return nil, fmt.Errorf("making the table of names for containers: %w", err)
	}
	return none, nil
}

// describeNets are networks in words: "docker0 172.17.0.0/16".
func describeNets(nets []containerNet) []string {
	words := []string{}
	for _, n := range nets {
		words = append(words, n.name+" "+strings.ReplaceAll(listPrefixes(n.prefixes), ", ", " "))
	}
	return words
}
