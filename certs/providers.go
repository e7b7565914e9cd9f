package certs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libdns/libdns"
)

// The times of a provider's DNS.
const (
	providerTime = 5 * time.Minute // until all of its servers have a value; some take minutes
	txtTTL       = time.Minute
)

// provider is what is used of a libdns package.
type provider interface {
	libdns.RecordAppender
	libdns.RecordDeleter
}

// ProviderNames are the names of the DNS providers that this build can write at.
func ProviderNames() []string { return slices.Sorted(maps.Keys(providers())) }

// ProviderConfig says at which provider TXT records are written, and how.
type ProviderConfig struct {
	Name     string            // as libdns has it: cloudflare
	Settings map[string]string // its own, by the names of its libdns package; secrets among them
	Lookup   Lookup
	Timeout  time.Duration // until all servers of the zone serve a value; 5 minutes if zero
}

// writer writes TXT records at a DNS provider. It is a TXTSetter. CNAMEs at a name are followed, so that a challenge can
// be delegated to a zone of its own.
type writer struct {
	cfg ProviderConfig

	mu sync.Mutex // most packages read, change and write back a zone
	p  provider
}

// String is the provider's name: its settings hold secrets.
func (p *writer) String() string { return p.cfg.Name }

// GoString is the same.
func (p *writer) GoString() string { return p.cfg.Name }

// NewProvider checks the settings and asks nobody.
func NewProvider(cfg ProviderConfig) (*writer, error) {
	newOne := providers()[cfg.Name]
	if newOne == nil {
		return nil, &hinted{fmt.Errorf("DNS provider %q is not in this build", cfg.Name), "known are " + strings.Join(ProviderNames(), ", ")}
	}
	p := newOne()
	if err := set(p, cfg.Settings); err != nil {
		return nil, &hinted{fmt.Errorf("settings of DNS provider %s: %w", cfg.Name, err), "its settings are " + strings.Join(settings(p), ", ")}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = providerTime
	}
	cfg.Settings = nil
	return &writer{cfg: cfg, p: p}, nil
}

// set gives a provider its settings. No error holds a value: some are secrets.
func set(p provider, settings map[string]string) error {
	v := reflect.ValueOf(p).Elem()
	for name, text := range settings {
		f, ok := settable(v, name)
		switch {
		case !ok:
			return fmt.Errorf("unknown setting %q", name)
		case f.Kind() == reflect.String:
			f.SetString(text)
			continue
		}
		if err := json.Unmarshal([]byte(text), f.Addr().Interface()); err != nil {
			return fmt.Errorf("setting %s: want a %s", name, f.Kind())
		}
	}
	return nil
}

// settable is the field of a setting: libdns packages name them by their JSON tags.
func settable(v reflect.Value, name string) (reflect.Value, bool) {
	for field, value := range v.Fields() {
		if key, _, _ := strings.Cut(field.Tag.Get("json"), ","); key == name && key != "-" && key != "" {
			return value, true
		}
	}
	return reflect.Value{}, false
}

// settings are the names of what a provider can be told.
func settings(p provider) []string {
	var names []string
	for f := range reflect.TypeOf(p).Elem().Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Serial tells whether the provider holds one TXT value at a time.
func (p *writer) Serial() bool { return p.cfg.Name == "duckdns" }

// SetTXT publishes a value and waits until every server of the zone serves it.
func (p *writer) SetTXT(ctx context.Context, name, value string) (undo func(context.Context) error, err error) {
	at, zone, err := p.cfg.Lookup.place(ctx, name)
	if err != nil {
		return nil, &StepError{Stage: Published, Err: err}
	}
	record := libdns.TXT{Name: libdns.RelativeName(at+".", zone+"."), TTL: txtTTL, Text: value}
	if err := p.change(ctx, p.p.AppendRecords, zone, record); err != nil {
		return nil, &StepError{Stage: Published, Err: fmt.Errorf("%s for %s: %w", p.cfg.Name, at, err)}
	}
	undo = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, undoTime)
		defer cancel()
		if err := p.change(ctx, p.p.DeleteRecords, zone, record); err != nil {
			return fmt.Errorf("taking away the TXT record at %s at %s: %w", at, p.cfg.Name, err)
		}
		return nil
	}
	Report(ctx, Step{Stage: Published, Name: at, Detail: p.cfg.Name})
	return p.cfg.Lookup.settle(ctx, published{zone, at, value, p.cfg.Timeout}, undo)
}

func (p *writer) change(ctx context.Context, do func(context.Context, string, []libdns.Record) ([]libdns.Record, error), zone string, r libdns.TXT) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := do(ctx, zone+".", []libdns.Record{r})
	return err
}

// place is where a value for name is to be written: behind its CNAMEs, in the zone that is there.
func (l Lookup) place(ctx context.Context, name string) (at, zone string, err error) {
	if at, err = l.Target(ctx, name); err == nil {
		zone, err = l.zone(ctx, at)
	}
	return at, zone, err
}

// published is a value that was written.
type published struct {
	zone, name, value string
	timeout           time.Duration
}

// settle waits for a value, and has it taken away again if it does not come.
func (l Lookup) settle(ctx context.Context, p published, undo func(context.Context) error) (func(context.Context) error, error) {
	waited, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if err := l.await(waited, p.zone, p.name, p.value); err != nil {
		return nil, &StepError{Stage: seen, Err: errors.Join(err, undo(context.WithoutCancel(ctx)))}
	}
	return undo, nil
}
