package node

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// pathPinned is the call for the records of a pinned zone.
const pathPinned = "/v1/gateway/records"

// pinnedReply are the records that a pinned zone's owner keeps at his own DNS provider. Names end in a dot.
type pinnedReply struct {
	Schema  string         `json:"schema"` // meshdns.gateway.records/v1
	Zone    string         `json:"zone"`
	Records []pinnedRecord `json:"records"`
}

// pinnedRecord is one of them.
type pinnedRecord struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Data   string `json:"data"`
	Wanted bool   `json:"wanted"` // a node has begun to get certificates for the name; else it is for those that will
}

// pinnedRecords are the records of a zone whose addresses and CAA stay with its owner's provider, so that whoever runs the
// gateway can get no certificate that the owner has not let: the gateway's own name servers, who may issue for what, and the
// challenges of every name, which alone are delegated.
func (n *Node) pinnedRecords() []pinnedRecord {
	g := &n.gateway
	m, _ := g.registry.Map()
	view, _ := g.registry.Certs()
	list := pinnedList(m.Zone, n.cfg.Gateway.Public, view.Issue, func() (names []string) {
		for _, one := range m.Nodes {
			for _, label := range append([]string{one.Name}, one.Names...) {
				names = append(names, label+"."+m.Zone)
			}
		}
		return names
	}())
	return append(list, pinnedAddresses(n.cfg.Gateway.Public, g.funnels.view())...)
}

// pinnedAddresses are the addresses of names that are shown to the world.
func pinnedAddresses(public []netip.Addr, list []shown) []pinnedRecord {
	var records []pinnedRecord
	for _, s := range list {
		for _, a := range public {
			one := pinnedRecord{s.publish + ".", addressType(a), a.String(), true}
			if s.publish != "" && !slices.Contains(records, one) {
				records = append(records, one)
			}
		}
	}
	return records
}

// pinnedList makes the records of what is known.
func pinnedList(zone string, public []netip.Addr, issue map[string][]string, names []string) []pinnedRecord {
	list := []pinnedRecord{}
	var servers []string
	for i, a := range public[:min(len(public), maxServers)] {
		server := serverName(i) + "." + zone + "."
		servers = append(servers, server)
		list = append(list, pinnedRecord{server, addressType(a), a.String(), true})
	}
	for _, tag := range []string{"issue", "issuewild"} {
		list = append(list, pinnedRecord{zone + ".", "CAA", `0 ` + tag + ` ";"`, true})
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		wanted := len(issue[name]) > 0
		for _, server := range servers {
			list = append(list, pinnedRecord{"_acme-challenge." + name + ".", "NS", server, wanted})
		}
		for _, value := range issue[name] {
			for _, tag := range []string{"issue", "issuewild"} {
				list = append(list, pinnedRecord{name + ".", "CAA", fmt.Sprintf("0 %s %q", tag, value), true})
			}
		}
	}
	return list
}

func (n *Node) servePinned(*http.Request) (any, error) {
	m, _ := n.gateway.registry.Map()
	return pinnedReply{Schema: "meshdns.gateway.records/v1", Zone: m.Zone, Records: n.pinnedRecords()}, nil
}

// PinnedRecords asks a gateway for the records that its zone's owner keeps elsewhere.
func (c Client) PinnedRecords(ctx context.Context) (pinnedReply, error) {
	return get[pinnedReply](ctx, c, pathPinned, url.Values{})
}

// pinnedFacts are what the world says of those records.
type pinnedFacts struct {
	on      bool
	err     error // why nothing could be asked
	zone    string
	records []pinnedRecord
	found   map[pinnedSet][]string // what the owner's provider has, as data
	errs    map[pinnedSet]error
}

// pinnedSet is where records stand.
type pinnedSet struct{ name, kind string }

// maxPinned bounds how many record sets a check asks for.
const maxPinned = 300

// gatherPinned asks the servers of the zone's owner for each of the records.
func (f *gatewayFacts) gatherPinned(ctx context.Context, w *walker) {
	p := &f.pinned
	if p.err != nil {
		return
	}
	p.found, p.errs = map[pinnedSet][]string{}, map[pinnedSet]error{}
	at, err := w.holder(ctx, f.zone+".")
	if err != nil {
		p.err = err
		return
	}
	p.zone = strings.TrimSuffix(at.zone, ".")
	for _, r := range p.records {
		set := pinnedSet{r.Name, r.Type}
		if _, asked := p.found[set]; asked || p.errs[set] != nil || len(p.found) >= maxPinned {
			continue
		}
		w.left += maxAsked
		if p.found[set], p.errs[set] = w.set(ctx, at, set); p.errs[set] == nil {
			delete(p.errs, set)
		}
	}
}

// holder finds the zone that a name lies in, and its servers.
func (w *walker) holder(ctx context.Context, name string) (cut, error) {
	var at cut
	var err error
	if w.resolver.IsValid() {
		at, err = w.aboveByResolver(ctx, name)
	} else {
		var r *dns.Msg
		if at, r, err = w.descend(ctx, name, dns.TypeSOA, "", 0); err == nil {
			at, err = w.named(ctx, at, r)
		}
	}
	if err != nil {
		return at, err
	}
	return w.complete(ctx, at, 0), nil
}

// set is what a zone's servers have at a name, or refer to from there.
func (w *walker) set(ctx context.Context, at cut, set pinnedSet) ([]string, error) {
	qtype := dns.StringToType[set.kind]
	r, err := w.askAny(ctx, at, set.name, qtype)
	if err != nil {
		return nil, err
	}
	list := []string{}
	for _, rr := range slices.Concat(r.Answer, r.Ns) { // a delegation is no answer
		if strings.EqualFold(rr.Header().Name, set.name) && rr.Header().Rrtype == qtype {
			list = append(list, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
	}
	return list, nil
}

// judgePinned says which of the records the world does not see.
func (f *gatewayFacts) judgePinned() []checkFinding {
	p := &f.pinned
	if p.err != nil {
		return []checkFinding{checked("records", checkFail, hintOf(p.err), "the records of a pinned zone cannot be looked at: %v", p.err)}
	}
	var list []checkFinding
	missing := map[string][]initRecord{}
	for _, r := range p.records {
		set := pinnedSet{r.Name, r.Type}
		found, asked := p.found[set]
		one := initRecord{r.Name, r.Type, r.Data}
		switch {
		case p.errs[set] != nil:
			list = append(list, checked(r.Name, checkFail, "", "%v", p.errs[set]))
		case asked && slices.ContainsFunc(found, func(data string) bool { return sameData(data, r.Data) }):
		case asked && r.Wanted:
			missing[checkFail] = append(missing[checkFail], one)
		default:
			missing[checkSkip] = append(missing[checkSkip], one)
		}
		// A CA lets what any record lets, so one that is too many undoes the others.
		for _, data := range found {
			if asked && r.Type == "CAA" && !slices.ContainsFunc(p.records, func(other pinnedRecord) bool {
				return other.Name == r.Name && other.Type == r.Type && sameData(data, other.Data)
			}) {
				extra := checked("CAA", checkFail, "remove it, unless it is yours for another purpose", "%s has a record that lets others issue, or in other ways", r.Name)
				extra = extra.with(initRecord{r.Name, r.Type, data})
				if !slices.ContainsFunc(list, func(c checkFinding) bool { return slices.Equal(c.Records, extra.Records) }) {
					list = append(list, extra)
				}
			}
		}
	}
	for _, state := range slices.Sorted(maps.Keys(missing)) {
		finding := checked("records", state, "add to the zone "+p.zone+", at its DNS provider", "%d records are not there", len(missing[state]))
		if state == checkSkip {
			finding.Hint, finding.Detail = "for certificates of these names, add to the zone "+p.zone, "nodes without certificates"
		}
		list = append(list, finding.with(missing[state]...))
	}
	if len(missing[checkFail]) == 0 && len(p.errs) == 0 {
		list = append(list, checked("records", checkOK, "", "addresses, CAA and delegations of challenges are in the zone %s", p.zone))
	}
	return list
}

// sameData compares the data of two records as people and servers write it.
func sameData(a, b string) bool {
	return strings.EqualFold(strings.ReplaceAll(a, `"`, ""), strings.ReplaceAll(b, `"`, ""))
}
