package resolver

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// PublicView is what the public may know of a zone: what is in it exists, nothing else does.
type PublicView struct {
	// Servers are the name servers as the parent has them, and the addresses of those whose names lie in the zone;
	// one of these without is an error. At least one is required.
	Servers map[string][]netip.Addr
	// Records are the public ones, with absolute owners: addresses and aliases of funnelled names, CAA records. What
	// they lead to is told as well, so it must be no secret either. They are not written to. Those that delegate or sign
	// are errors. Where none is a CAA record at the zone's top, that says that nobody may issue certificates (RFC 8659).
	Records []dns.RR
}

// Times, in seconds.
const (
	// serverTTL is that of the name servers and their addresses, as long as an owner waits who moves a gateway.
	serverTTL = 300
	// negativeTTL is how long a resolver may keep that a name does not exist (RFC 2308, 5), and so how long a challenge
	// stays hidden from a CA that looked too early.
	negativeTTL = 5
	// textTTL is that of TXT records that come and go: a CA asks for each once, and the next value may follow at once.
	textTTL = 1
)

// Bounds of TXT records that come and go.
const (
	maxText      = 255 // of a value, in octets: one string
	maxTextsName = 16  // at a name
	maxTexts     = 4096
)

// SetPublic replaces what the public sees, TXT records of SetTXT apart. Queries under way see the old view or the new
// one. After an error the old one stays.
func (a *Authority) SetPublic(v PublicView) error {
	v = PublicView{Servers: maps.Clone(v.Servers), Records: slices.Clone(v.Records)}
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.view
	a.view = v
	if err := a.rebuildLocked(); err != nil {
		a.view = old
		return fmt.Errorf("making the public view of %s: %w", presentName(a.zone), err)
	}
	return nil
}

var (
	errNotInZone     = errors.New("the name lies outside the zone")
	errText          = fmt.Errorf("a value has 1 to %d octets", maxText)
	errTexts         = errors.New("there are as many values as there may be")
	errNoServers     = errors.New("a zone needs a name server")
	errServerAddress = errors.New("a name server in the zone needs an address")
	errNotPublic     = errors.New("no such record can be in a zone that is neither signed nor delegates")
)

// SetTXT adds a TXT record, which answers have as soon as SetTXT returns. Setting one again changes nothing. The names
// above it exist for as long as it does, which takes them from a wildcard that would cover them (RFC 4592, 2.2.2).
func (a *Authority) SetTXT(name, value string) error {
	key, err := a.textName(name)
	if err == nil && (value == "" || len(value) > maxText) {
		err = errText
	}
	if err != nil {
		return fmt.Errorf("setting a TXT record of %q: %w", name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.texts[key]
	switch {
	case slices.Contains(old, value):
		return nil
	case len(old) >= maxTextsName || a.count >= maxTexts:
		return fmt.Errorf("setting a TXT record of %q: %w", name, errTexts)
	}
	a.texts[key] = append(slices.Clip(old), value)
	if err := a.rebuildLocked(); err != nil {
		a.restoreLocked(key, old)
		return fmt.Errorf("setting a TXT record of %q: %w", name, err)
	}
	a.count++
	return nil
}

// ClearTXT removes what SetTXT set. One that is not there is no error.
func (a *Authority) ClearTXT(name, value string) error {
	key, err := a.textName(name)
	if err != nil {
		return fmt.Errorf("clearing a TXT record of %q: %w", name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.texts[key]
	i := slices.Index(old, value)
	if i < 0 {
		return nil
	}
	a.restoreLocked(key, slices.Delete(slices.Clone(old), i, i+1))
	if err := a.rebuildLocked(); err != nil {
		a.restoreLocked(key, old)
		return fmt.Errorf("clearing a TXT record of %q: %w", name, err)
	}
	a.count--
	return nil
}

func (a *Authority) restoreLocked(key string, values []string) {
	if len(values) == 0 {
		delete(a.texts, key)
		return
	}
	a.texts[key] = values
}

// textName is the canonical form of the name of a TXT record.
func (a *Authority) textName(name string) (string, error) {
	wire, err := wireName(name)
	switch {
	case err != nil:
		return "", err
	case !hasSuffix(wire, a.zone):
		return "", errNotInZone
	case isWildcard(wire):
		return "", &nameError{name: name}
	}
	return presentName(wire), nil
}

// rebuildLocked makes the table anew. The serial changes if the zone did, and tells nobody of other changes of the map.
func (a *Authority) rebuildLocked() error {
	records, err := a.recordsLocked()
	if err != nil {
		return err
	}
	zone := presentName(a.zone)
	build := func(serial uint32) (*Table, error) {
		return NewTable(TableConfig{Zone: zone, Records: append(slices.Clip(records), a.soaLocked(zone, serial))})
	}
	old := a.table.Load()
	table, err := build(a.serial)
	if err != nil || old != nil && bytes.Equal(table.slab, old.slab) {
		return err
	}
	serial := nextSerial(a.serial, time.Now())
	if table, err = build(serial); err != nil {
		return err
	}
	a.serial = serial
	a.table.Store(table)
	a.log.Debug("public zone changed", "serial", serial, "names", table.Names())
	return nil
}

// nextSerial is the serial number after last. Numbers are the seconds of the clock, so that they grow over a restart as
// well, and go on by one where the clock does not (RFC 1982). Zero is none.
func nextSerial(last uint32, now time.Time) uint32 {
	next := uint32(now.Unix())
	if last != 0 && int32(next-last) <= 0 {
		next = last + 1
	}
	return max(next, 1)
}

func (a *Authority) soaLocked(zone string, serial uint32) *dns.SOA {
	first := slices.Min(slices.Collect(maps.Keys(a.view.Servers)))
	return &dns.SOA{
		Hdr: recordHeader(zone, dns.TypeSOA, defaultTTL),
		Ns:  dns.Fqdn(strings.ToLower(first)), Mbox: "hostmaster." + zone, Serial: serial,
		Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: negativeTTL,
	}
}

// recordsLocked is all that the zone holds, but for its SOA.
func (a *Authority) recordsLocked() ([]dns.RR, error) {
	records, err := a.serversLocked()
	if err != nil {
		return nil, err
	}
	zone := presentName(a.zone)
	issuers := false
	for _, rr := range a.view.Records {
		if rr == nil || !public(rr.Header().Rrtype) {
			return nil, newRecordError(rr, errNotPublic)
		}
		issuers = issuers || rr.Header().Rrtype == dns.TypeCAA && strings.EqualFold(dns.Fqdn(rr.Header().Name), zone)
		records = append(records, rr)
	}
	if !issuers {
		for _, tag := range []string{"issue", "issuewild"} {
			records = append(records, &dns.CAA{Hdr: recordHeader(zone, dns.TypeCAA, defaultTTL), Tag: tag, Value: ";"})
		}
	}
	// The codec reads a value as zone syntax, in which a backslash begins an escape.
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	for _, name := range slices.Sorted(maps.Keys(a.texts)) {
		for _, value := range a.texts[name] {
			records = append(records, &dns.TXT{Hdr: recordHeader(name, dns.TypeTXT, textTTL), Txt: []string{escape.Replace(value)}})
		}
	}
	return records, nil
}

// public reports whether a view may hold records of a type. What makes a name the top of another zone, rewrites
// a subtree or signs would have to be served by other rules than a table's.
func public(rtype uint16) bool {
	switch rtype {
	case dns.TypeNS, dns.TypeSOA, dns.TypeDNAME, dns.TypeDS, dns.TypeDNSKEY, dns.TypeCDS, dns.TypeCDNSKEY, dns.TypeRRSIG,
		dns.TypeNSEC, dns.TypeNSEC3, dns.TypeNSEC3PARAM, dns.TypeKEY, dns.TypeSIG, dns.TypeCSYNC:
		return false
	}
	return true
}

// serversLocked are the NS records and the addresses that stand with them.
func (a *Authority) serversLocked() ([]dns.RR, error) {
	if len(a.view.Servers) == 0 {
		return nil, errNoServers
	}
	var records []dns.RR
	for _, server := range slices.Sorted(maps.Keys(a.view.Servers)) {
		wire, err := wireName(server)
		if err != nil {
			return nil, fmt.Errorf("reading the name server %q: %w", server, err)
		}
		name := presentName(wire)
		records = append(records, &dns.NS{Hdr: recordHeader(presentName(a.zone), dns.TypeNS, serverTTL), Ns: name})
		if !hasSuffix(wire, a.zone) {
			continue // its addresses are served elsewhere
		}
		addrs := a.view.Servers[server]
		if len(addrs) == 0 {
			return nil, fmt.Errorf("reading the name server %q: %w", server, errServerAddress)
		}
		for _, addr := range addrs {
			records = append(records, addressRecord(name, addr.Unmap(), serverTTL))
		}
	}
	return records, nil
}

func addressRecord(name string, addr netip.Addr, ttl uint32) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: recordHeader(name, dns.TypeA, ttl), A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: recordHeader(name, dns.TypeAAAA, ttl), AAAA: addr.AsSlice()}
}

func recordHeader(name string, rtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rtype, Class: dns.ClassINET, Ttl: ttl}
}
