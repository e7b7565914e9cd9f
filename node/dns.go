package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshdns/meshdns/resolver"
)

// startResolver binds the stub and the further addresses and answers on them from the map.
func (n *Node) startResolver(ctx context.Context) error {
	bound, err := n.bind(ctx)
	if err != nil {
		return fmt.Errorf("starting the resolver: %w", err)
	}
	if err := n.prepareResolver(bound); err != nil {
		for _, s := range bound {
			s.close()
		}
		return err
	}
	// From here on the sockets are the services' to close, whatever fails next.
	n.undo.push("ending the resolver", n.services.stop)
	n.services.run("resolver", n.resolver.Run)
	for _, s := range bound {
		n.serve(s)
	}
	m, _ := n.tailnet.current()
	if err := selfCheck(ctx, n.stub, m.Zone()); err != nil {
		// A firewall on loopback, say. Other addresses may answer well, so the resolver goes on; but nothing is to be
		// pointed at a stub that does not.
		n.stubFault = err
		n.report("%v", err)
		return nil
	}
	n.report("resolver answers at %s", n.stub)
	return nil
}

// bind binds the stub first, then the further addresses. Only the stub may move to another port: whoever asks for a
// further address by name wants that one or an error.
func (n *Node) bind(ctx context.Context) ([]*sockets, error) {
	link := machineLoopback()
	if n.opt.Try || !n.opt.Root {
		link = nil
	}
	stub, undo, err := listenOwned(ctx, n.wantedStub(), link, func(addr netip.AddrPort) (stubSockets, error) {
		s, problem, err := listenStub(ctx, addr, readers())
		return stubSockets{s, problem}, err
	})
	if err != nil {
		return nil, err
	}
	if undo != nil {
		n.undo.push("removing the address of the stub", undo)
	}
	n.stub, n.stubFault = stub.addr, stub.problem
	if stub.addr.Addr() == machineAddress() {
		n.carrier.shutPort(stub.addr.Port())
	}
	if stub.problem != nil {
		n.report("%v; the stub is %s instead", stub.problem, stub.addr)
	}
	bound := []*sockets{stub.sockets}
	for _, addr := range n.cfg.DNS.Listen {
		more, err := listenDNS(ctx, addr, readers())
		if err != nil {
			for _, s := range bound {
				s.close()
			}
			return nil, err
		}
		n.listen = append(n.listen, more.addr)
		bound = append(bound, more)
	}
	return bound, nil
}

// wantedStub is where programs are to ask: the configured address, on a high port where 53 is not ours to take.
func (n *Node) wantedStub() netip.AddrPort {
	stub := n.cfg.DNS.Stub
	if stub.Port() == 53 && (n.opt.Try || !n.opt.Root) {
		return netip.AddrPortFrom(stub.Addr(), highPort)
	}
	return stub
}

// prepareResolver makes the resolver, with the map that was read. It answers nothing yet.
func (n *Node) prepareResolver(bound []*sockets) error {
	// Whatever the network offers as an upstream, it must not be us (a loop).
	var self []netip.AddrPort
	for _, s := range bound {
		self = append(self, s.addr)
	}
	m := n.tailnet.static
	if a, err := serviceAddress(n.cfg.DNS.Service, m, nil); err == nil {
		self = append(self, netip.AddrPortFrom(a, portDNS)) // whether or not we are there yet
	}
	var err error
	n.resolver, err = resolver.New(resolver.Config{
		Rebind:     n.rebind(m),
		Self:       self,
		CacheBytes: int(n.cfg.DNS.Cache),
		Logger:     n.log,
	})
	if err != nil {
		return fmt.Errorf("making the resolver: %w", err)
	}
	n.routing.resolver, n.routing.dns = n.resolver, n.cfg.DNS
	return n.tailnet.set(m)
}

// rebind is which addresses no outside name may have (S10).
func (n *Node) rebind(m *Map) resolver.Rebind {
	refuse := slices.Clone(m.Ranges())
	if a := n.cfg.DNS.Service; a.IsValid() { // one that is not configured lies in the ranges
		refuse = append(refuse, netip.PrefixFrom(a, a.BitLen()))
	}
	return resolver.Rebind{
		Refuse:  refuse,
		Private: n.cfg.DNS.Rebind.Private,
		Allow:   n.cfg.DNS.Rebind.Allow,
	}
}

// useMap has the resolver answer from m. The table comes first, so that a name which moves into the zone is never
// forwarded by a route that the old map had.
func (n *Node) useMap(old, m *Map) error {
	table, err := resolver.NewTable(resolver.TableConfig{
		Zone:    m.Zone(),
		Ranges:  m.Ranges(),
		Records: m.Records(),
		Serial:  uint32(m.Version()),
		TTL:     m.TTL(),
	})
	if err != nil {
		return fmt.Errorf("making the table of names: %w", err)
	}
	if old != nil && !slices.Equal(old.Ranges(), m.Ranges()) {
		if err := n.resolver.SetRebind(n.rebind(m)); err != nil {
			return fmt.Errorf("protecting the new ranges: %w", err)
		}
	}
	guests, err := n.guestTable(m, table)
	if err != nil {
		return err
	}
	n.resolver.SetTable(table)
	n.resolver.SetGuestTable(guests)
	n.useContacts()
	if n.gateway.registry != nil {
		n.wakeGateway()
		if err := n.carrier.setPolicy(m, n.findSelf(m)); err != nil {
			return fmt.Errorf("setting the policy: %w", err)
		}
	} else if err := n.carrier.setMap(m, n.findSelf(m)); err != nil {
		n.log.Error("the tunnel has not all peers of the map", "err", err) // status says so; names are answered all the same
	}
	defer n.portal.wake()
	return n.routing.setMap(m)
}

// serve answers on s until the services end. One goroutine a UDP socket: the kernel spreads the queries over them.
func (n *Node) serve(s *sockets) {
	for _, conn := range s.udp {
		n.services.run(fmt.Sprintf("resolver at %s/udp", s.addr), func(ctx context.Context) error {
			return n.resolver.ServeUDP(ctx, conn)
		})
	}
	n.services.run(fmt.Sprintf("resolver at %s/tcp", s.addr), func(ctx context.Context) error {
		return n.resolver.ServeTCP(ctx, s.tcp)
	})
}
