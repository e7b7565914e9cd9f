package osconfig

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
)

func TestTheNameserversAreTriedOnceTheDNSIsGivenBack(t *testing.T) {
	for name, tt := range map[string]struct {
		conf string
		dead []string
		want []string
	}{
		"one that answers": {upstreamConf, nil, []string{"nameserver 192.0.2.53 answers"}},
		"one of two": {
			"nameserver 192.0.2.53\nnameserver 192.0.2.54\n", []string{"192.0.2.53"},
			[]string{"nameserver 192.0.2.53 does not answer: dead", "nameserver 192.0.2.54 answers"},
		},
		"none": {
			upstreamConf, []string{"192.0.2.53"},
			[]string{"nameserver 192.0.2.53 does not answer: dead", "no name is found until one of them answers: see whether the network is up"},
		},
		"none named": {"search lan\n", nil, []string{"/etc/resolv.conf names no nameserver"}},
		"only those that libc asks": {
			"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", nil,
			[]string{"nameserver 192.0.2.1 answers", "nameserver 192.0.2.2 answers", "nameserver 192.0.2.3 answers"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.write("etc/resolv.conf", tt.conf)
			var mu sync.Mutex
			r.opt.Probe = func(_ context.Context, at netip.AddrPort) error {
				mu.Lock()
				defer mu.Unlock()
				if at.Port() != 53 || slices.Contains(tt.dead, at.Addr().String()) {
					return errors.New("dead")
				}
				return nil
			}
			m := r.applied()
			r.must(m.Apply(t.Context(), Config{}))
			want := append([]string{"/etc/resolv.conf is put back: a regular file"}, tt.want...)
			if got := m.Status().Given; !slices.Equal(got.Steps, want) || !got.Changed || got.Left != nil {
				t.Errorf("by the process itself: %+v, want steps %q", got, want)
			}
			r.applied()
			if got := r.restore(); !slices.Equal(got.Steps, want) {
				t.Errorf("by another process: %q, want %q", got.Steps, want)
			}
			// With nothing to do, the nameservers are tried all the same.
			if got := r.restore(); !slices.Equal(got.Steps, tt.want) || got.Changed {
				t.Errorf("a second time: %+v", got)
			}
		})
	}
}

// Ending must not wait for nameservers.
func TestCloseTriesNobody(t *testing.T) {
	r := newRig(t)
	r.write("etc/resolv.conf", upstreamConf)
	r.opt.Probe = func(context.Context, netip.AddrPort) error { t.Error("asked"); return nil }
	r.must(r.applied().Close())
}
