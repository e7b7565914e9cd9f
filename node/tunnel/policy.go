package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
)

const maxRules = 131072 // a gateway has one for each address of 50,000 nodes

// Rule lets packets in: from a source, with a protocol, to a range of ports of this node.
type Rule struct {
	Source      netip.Prefix
	Protocol    uint8  // IANA's number: 6 is TCP, 17 UDP, 1 ICMP of either family; 0: any
	First, Last uint16 // TCP and UDP: 0 and 0 is any port
}

func (r Rule) check() error {
	if !r.Source.IsValid() || r.Source != r.Source.Masked() || r.Source.Addr().Is4In6() {
		return fmt.Errorf("source %s is not a prefix", r.Source)
	}
	if r.ported() && r.Protocol != protoTCP && r.Protocol != protoUDP && r.Protocol != 0 || r.First > r.Last {
		return fmt.Errorf("ports %d to %d of protocol %d make no sense", r.First, r.Last, r.Protocol)
	}
	return nil
}

func (r Rule) ported() bool { return r.First != 0 || r.Last != 0 }

// admits tells whether a packet that opens a conversation is let in. The source is checked already.
func (r Rule) admits(p packet) bool {
	if r.Protocol != 0 && r.Protocol != p.protocol && (r.Protocol != protoICMP || p.protocol != protoICMPv6) {
		return false
	}
	if !r.ported() {
		return true
	}
	return (p.protocol == protoTCP || p.protocol == protoUDP) && r.First <= p.destinationPort && p.destinationPort <= r.Last
}

// policy is a set of rules, made for being asked. It does not change.
type policy struct {
	rules  []Rule // as they were given
	single map[netip.Addr][]Rule
	wide   []Rule
}

// newPolicy checks rules and sorts them by how they are found.
func newPolicy(rules []Rule) (*policy, error) {
	if len(rules) > maxRules {
		return nil, fmt.Errorf("%d rules, at most %d", len(rules), maxRules)
	}
	p := &policy{rules: slices.Clone(rules), single: make(map[netip.Addr][]Rule)}
	for i, r := range rules {
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		if r.Source.IsSingleIP() {
			p.single[r.Source.Addr()] = append(p.single[r.Source.Addr()], r)
		} else {
			p.wide = append(p.wide, r)
		}
	}
	return p, nil
}

func (p *policy) admits(pkt packet) bool {
	for _, r := range p.single[pkt.source] {
		if r.admits(pkt) {
			return true
		}
	}
	for _, r := range p.wide {
		if r.Source.Contains(pkt.source) && r.admits(pkt) {
			return true
		}
	}
	return false
}

// SetPolicy makes these the only packets that other nodes may open conversations with; answers to this node's own pass.
// Conversations that are open go on. Nil, which is what holds from the start, lets in all that the peers send; an empty
// list lets in nothing.
func (t *Tunnel) SetPolicy(rules []Rule) error {
	var p *policy
	if rules != nil {
		var err error
		if p, err = newPolicy(rules); err != nil {
			return fmt.Errorf("policy: %w", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.managedLocked()
	if err != nil {
		return err
	}
	return c.policy(p)
}
