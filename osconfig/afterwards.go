package osconfig

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// keptError says that something names us still that was to forget us.
type keptError struct{ why, mend string }

func (e *keptError) Error() string { return e.why }

// Hint says what the user can do.
func (e *keptError) Hint() string { return e.mend }

// stillNames is an error if programs read one of our servers.
func (d disk) stillNames(ours []netip.Addr, mend string) error {
	data, err := d.readThrough(confPath)
	if err != nil {
		return fmt.Errorf("reading %s back: %w", confPath, err)
	}
	for _, addr := range parseResolvConf(data).nameservers {
		if slices.Contains(ours, addr) {
			return &keptError{fmt.Sprintf("%s names %s still", confPath, addr), mend}
		}
	}
	return nil
}

// tryServers has the nameservers asked that programs read now, once the machine's DNS is given back, and says of each
// whether it answers. That none does is a finding and nothing that is left to do: the network may be down.
func (m machine) tryServers(ctx context.Context, probe func(context.Context, netip.AddrPort) error) (steps, left []string) {
	if probe == nil || m.native() != modeDirect {
		return nil, nil
	}
	data, err := m.disk.readThrough(confPath)
	if err != nil {
		return []string{fmt.Sprintf("%s cannot be read: %v", confPath, err)}, nil
	}
	servers := parseResolvConf(data).nameservers
	if len(servers) == 0 {
		return []string{confPath + " names no nameserver"}, nil
	}
	servers = servers[:min(len(servers), maxServersWritten)]
	faults := make([]error, len(servers))
	var asked sync.WaitGroup
	for i, addr := range servers {
		asked.Go(func() { faults[i] = probe(ctx, netip.AddrPortFrom(addr, 53)) })
	}
	asked.Wait()
	for i, addr := range servers {
		if faults[i] == nil {
			steps = append(steps, fmt.Sprintf("nameserver %s answers", addr))
		} else {
			steps = append(steps, fmt.Sprintf("nameserver %s does not answer: %v", addr, faults[i]))
		}
	}
	if !slices.Contains(faults, nil) {
		steps = append(steps, "no name is found until one of them answers: see whether the network is up")
	}
	return steps, nil
}
