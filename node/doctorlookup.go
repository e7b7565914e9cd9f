package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

// Who looks a name up.
const (
	byGo   = "go"   // Go's own resolver, which reads resolv.conf, as musl's and dig do
	byLibc = "libc" // the C library, by the order in nsswitch.conf
)

// lookUp looks names up as programs do. The node's own are asked for only while the machine's DNS is meant to come to
// the node: whoever else got the question would learn the names of a private network.
func (f *doctorFacts) lookUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, doctorLookupTime)
	defer cancel()
	var looking sync.WaitGroup
	if f.takenOver() && f.target.name != "" {
		f.lookups = lookupsOf(f.target.name)
		for i := range f.lookups {
			looking.Go(func() { f.lookups[i].do(ctx) })
		}
	}
	looking.Go(func() {
		f.outside = lookup{by: byGo, name: "."}
		_, f.outside.err = (&net.Resolver{PreferGo: true}).LookupNS(ctx, ".")
	})
	if f.running() {
		looking.Go(func() { f.viaStub.result, f.viaStub.err = Query(ctx, f.stub, ".", "NS") })
	}
	looking.Wait()
}

// lookupsOf are the lookups to make of a name: in full and by its first label, by every resolver that there is.
func lookupsOf(name string) []lookup {
	label, _, _ := strings.Cut(name, ".")
	list := []lookup{{by: byGo, name: name}, {by: byGo, name: label, short: true}}
	if _, err := exec.LookPath("getent"); err == nil {
		list = append(list, lookup{by: byLibc, name: name}, lookup{by: byLibc, name: label, short: true})
	}
	return list
}

// do looks the name up.
func (l *lookup) do(ctx context.Context) {
	if l.by == byGo {
		l.addrs, l.err = (&net.Resolver{PreferGo: true}).LookupNetIP(ctx, "ip", l.name)
		return
	}
	// As nobody where we are root: what ordinary programs may not read is found out so.
	out, err := runCommand(ctx, []string{"getent", "ahosts", l.name})
	if exitCodeOf(err) == getentUsage { // one that knows fewer databases, as others than glibc's may
		out, err = runCommand(ctx, []string{"getent", "hosts", l.name})
	}
	if exitCodeOf(err) == getentNothing {
		err = errors.New("no such host")
	}
	l.addrs, l.err = parseGetent(out), err
}

// Two of getent's exit codes (getent(1)).
const (
	getentUsage   = 1
	getentNothing = 2
)

// exitCodeOf is the exit code of a program that ended with err; -1 if it did not end by itself, or well.
func exitCodeOf(err error) int {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return -1
	}
	return exit.ExitCode()
}

// parseGetent reads what `getent ahosts` prints: an address at the start of each line, several times.
func parseGetent(out []byte) []netip.Addr {
	var addrs []netip.Addr
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if addr, err := netip.ParseAddr(fields[0]); err == nil && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// tryStub asks the stub of the node that runs for its zone.
func (f *doctorFacts) tryStub(ctx context.Context) error {
	if !f.running() {
		return nil
	}
	return selfCheck(ctx, f.stub, f.status.Zone)
}

// lookupFailure is in one line why a lookup found nothing.
func lookupFailure(err error) string {
	var dnsErr *net.DNSError
	switch {
	case isTimeout(err):
		return fmt.Sprintf("no answer within %s", doctorLookupTime)
	case errors.As(err, &dnsErr):
		if dnsErr.Server != "" {
			return dnsErr.Err + " (" + dnsErr.Server + ")"
		}
		return dnsErr.Err
	}
	return err.Error()
}

// judgeLookups says whether programs find the node's names.
func judgeLookups(f doctorFacts) []finding {
	var list []finding
	for _, l := range f.lookups {
		if l.short {
			continue // what a failure of those means is for judgeSearch
		}
		how := map[string]string{byGo: "programs that read " + systemConf, byLibc: "programs that ask the C library"}[l.by]
		switch {
		case l.err != nil:
			list = append(list, wrong(l.by, f.mendLookup(l), "%s do not find %s: %s", how, l.name, lookupFailure(l.err)))
		case slices.ContainsFunc(l.addrs, f.isTarget):
			list = append(list, fine(l.by, "%s find %s at %s", how, l.name, listAddrs(l.addrs)))
		case slices.ContainsFunc(l.addrs, netip.Addr.IsLoopback): // as Debian's installer has it for the host's own name
			list = append(list, warn(l.by, "grep -n "+l.name+" /etc/hosts", "%s find %s at %s, and the map says %s", how, l.name,
				listAddrs(l.addrs), listAddrs(f.target.addrs)))
		default:
			list = append(list, wrong(l.by, f.mendLookup(l), "%s find %s at %s, and the map says %s: another server or the hosts file answered", how, l.name,
				listAddrs(l.addrs), listAddrs(f.target.addrs)))
		}
	}
	return list
}

// isTarget reports whether the map has the address for the name that was looked up.
func (f *doctorFacts) isTarget(addr netip.Addr) bool {
	return slices.Contains(f.target.addrs, addr.Unmap())
}

// mendLookup is what to do about a lookup that failed.
func (f *doctorFacts) mendLookup(l lookup) string {
	goFinds := slices.ContainsFunc(f.lookups, func(other lookup) bool { return other.by == byGo && !other.short && other.err == nil })
	stub := netip.AddrFrom4([4]byte{127, 0, 0, 53}) // systemd-resolved's
	switch {
	case f.overwritten():
		return "sudo meshdns dns apply"
	case f.status.DNS.Takeover.Mode == "resolved" && !slices.Contains(f.conf.servers, stub):
		return "sudo ln -sf ../run/systemd/resolve/stub-resolv.conf " + systemConf
	case l.by == byLibc && goFinds:
		return "have dns stand among hosts: in /etc/nsswitch.conf"
	}
	return "meshdns dns explain " + l.name
}

// searchBytes and searchDomains are what all libraries read of a search list (resolv.conf(5), glibc before 2.26; musl).
const (
	searchBytes   = 256
	searchDomains = 6
)

// judgeSearch says whether short names are found.
func judgeSearch(f doctorFacts) []finding {
	const name = "search"
	if !f.takenOver() {
		return nil
	}
	if len(f.status.DNS.Search) == 0 {
		return []finding{fine(name, "short names are not looked up in the zone (dns.search is false)")}
	}
	var list []finding
	for _, l := range f.lookups {
		full := slices.IndexFunc(f.lookups, func(other lookup) bool { return other.by == l.by && !other.short })
		if l.short && l.err != nil && full >= 0 && f.lookups[full].err == nil {
			list = append(list, wrong(name, "meshdns dns apply", "%s finds %s, and not %s: %s; the search list is %s",
				l.by, f.lookups[full].name, l.name, lookupFailure(l.err), listWords(f.conf.search)))
		}
	}
	zone := foldName(f.status.Zone)
	switch at := slices.Index(f.conf.search, zone); {
	case len(list) > 0 || f.conf.err != nil:
	case len(f.conf.search) > searchDomains || len(strings.Join(f.conf.search, " ")) > searchBytes:
		list = append(list, warn(name, "shorten search: in the map, or in what sets "+systemConf,
			"older C libraries read %d domains and %d bytes of a search list, which is longer: %s", searchDomains, searchBytes, listWords(f.conf.search)))
	case at > 0:
		list = append(list, warn(name, "meshdns dns plan", "short names are looked for in %s before %s", listWords(f.conf.search[:at]), zone))
	default:
		list = append(list, fine(name, "short names are looked up in %s", listWords(f.status.DNS.Search)))
	}
	return list
}

// judgeOutside says whether names outside of the zone are answered. The root's own nameservers are asked for: that
// question tells nobody anything. Some servers answer it poorly or refuse it, and are well nevertheless.
func judgeOutside(f doctorFacts) []finding {
	const name = "outside"
	var dnsErr *net.DNSError
	answered := f.outside.err == nil || errors.As(f.outside.err, &dnsErr) && dnsErr.IsNotFound
	// Go's word for every answer of another code; which of them it was the stub tells.
	oddly := !answered && dnsErr != nil && dnsErr.Err == "server misbehaving"
	stub := f.viaStub
	switch {
	case f.asksNobody():
		return nil // which judgeLeft tells
	case !f.running() && answered:
		return []finding{fine(name, "the machine's own nameservers answer")}
	case !f.running() && oddly:
		return []finding{warn(name, "cat "+systemConf, "the machine's own nameservers answer a simple question with an error: %s", lookupFailure(f.outside.err))}
	case !f.running():
		return []finding{warn(name, "cat "+systemConf, "the machine's own nameservers do not answer: %s", lookupFailure(f.outside.err))}
	case stub.err != nil:
		return []finding{wrong(name, "meshdns dns status", "the stub does not answer for names outside of the zone: %s", lookupFailure(stub.err))}
	case stub.result.Rcode == "SERVFAIL":
		return []finding{wrong(name, "meshdns dns status", "the upstreams do not answer for names outside of the zone: %s",
			strings.TrimPrefix(stub.result.Extended+", SERVFAIL", ", "))}
	case !answered && !oddly:
		return []finding{warn(name, "meshdns dns status", "the upstreams answer the stub, and the machine's nameservers do not answer: %s",
			lookupFailure(f.outside.err))}
	}
	return []finding{fine(name, "the upstreams answer for names outside of the zone (%s for the root's nameservers)", stub.result.Rcode)}
}

func listAddrs(addrs []netip.Addr) string {
	words := make([]string, len(addrs))
	for i, addr := range addrs {
		words[i] = addr.String()
	}
	return listWords(words)
}

func listWords(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, " ")
}
