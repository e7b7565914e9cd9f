package osconfig

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const (
	vpnConf    = "# made by a VPN\nnameserver 10.9.0.1\nsearch corp.test corp.example\n"
	otherVPN   = "nameserver 10.8.0.1\n"
	vpnBackup  = "run/vpnc/resolv.conf-backup.vpn0"
	vpnLink    = "vpn0"
	vpnIndex   = "7"
	secondLink = "vpn1"
)

// withLinks gives a machine links, and servers of 10.9 and 10.8 that are reached by the tunnels among them.
func (r *rig) withLinks() {
	r.write("sys/class/net/lo/type", "772\n")
	r.tunnel(vpnLink, vpnIndex)
	r.tunnel(secondLink, "8")
	r.opt.machine.reach = func(a netip.Addr) string {
		switch {
		case strings.HasPrefix(a.String(), "10.9."):
			return vpnLink
		case strings.HasPrefix(a.String(), "10.8."):
			return secondLink
		}
		return "eth0"
	}
}

func (r *rig) tunnel(name, index string) {
	r.write("sys/class/net/"+name+"/type", "65534\n")
	r.write("sys/class/net/"+name+"/ifindex", index+"\n")
	r.write("sys/class/net/"+name+"/flags", "0x1091\n")
}

// gone has a link be down, and be there no more.
func (r *rig) gone(name string) { r.write("sys/class/net/"+name+"/flags", "0x1090\n") }

// wantConf wants of resolv.conf that it has, or has not, these words.
func (r *rig) wantConf(when, has, lacks string) {
	r.t.Helper()
	if text := r.read("etc/resolv.conf"); !strings.Contains(text, has) || lacks != "" && strings.Contains(text, lacks) {
		r.t.Errorf("%s resolv.conf is\n%s\nwant %q in it, and not %q", when, text, has, lacks)
	}
}

func TestWhatAVPNWroteIsRightWhileItsLinkIsThere(t *testing.T) {
	for name, leave := range map[string]func(r *rig){
		"its link is down":    func(r *rig) { r.gone(vpnLink) },
		"another of its name": func(r *rig) { r.tunnel(vpnLink, "99") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.withLinks()
			r.write("etc/resolv.conf", upstreamConf)
			m := r.applied()
			ours := r.read("etc/resolv.conf")
			// The VPN backs up what it finds, which names us, and writes its own.
			r.write(vpnBackup, ours)
			r.replace("etc/resolv.conf", vpnConf)
			m.look(t.Context())
			r.wantConf("beside the VPN", "nameserver 127.0.0.77", "")
			if b, err := m.Base(t.Context()); err != nil || serverWords(b.Servers)[0] != "10.9.0.1:53" {
				t.Errorf("the base beside the VPN: %v, %v", b, err)
			}
			if j, err := loadJournal(r.opt.StateDir); err != nil || len(j.Layers) != 1 || j.Layers[0].Link != vpnLink || string(j.Layers[0].Under.Data) != upstreamConf {
				t.Errorf("the journal: %+v, %v", j, err)
			}
			leave(r)
			m.look(t.Context())
			if b, err := m.Base(t.Context()); err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) {
				t.Errorf("the base after the VPN has left: %v, %v", b, err)
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			if got := r.read("etc/resolv.conf"); got != upstreamConf {
				t.Errorf("put back: %q", got)
			}
		})
	}
}

// A VPN that leaves after us writes its backup back, which must not name us by then.
func TestABackupThatNamesUsIsMended(t *testing.T) {
	for name, undo := range map[string]func(r *rig, m *Manager){
		"by the end":     func(_ *rig, m *Manager) { m.Close() },
		"by dns restore": func(r *rig, _ *Manager) { r.restore() },
		"by the next start": func(r *rig, _ *Manager) {
			if _, err := Open(r.t.Context(), r.opt); err != nil {
				r.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.withLinks()
			r.write("etc/resolv.conf", upstreamConf)
			m := r.applied()
			r.write(vpnBackup, r.read("etc/resolv.conf"))
			r.write("etc/resolv.conf.admin", "# mine\nnameserver 127.0.0.77\n") // which we have not written
			r.replace("etc/resolv.conf", vpnConf)
			m.look(t.Context())
			undo(r, m)
			if got := r.read("etc/resolv.conf"); got != vpnConf {
				t.Errorf("the VPN's file is not put back: %q", got)
			}
			if got := r.read(vpnBackup); got != upstreamConf {
				t.Errorf("the VPN's backup is %q", got)
			}
			if got := r.read("etc/resolv.conf.admin"); !strings.HasPrefix(got, "# mine") {
				t.Errorf("another file was changed: %q", got)
			}
		})
	}
}

func TestTwoVPNsLeaveInAnyOrder(t *testing.T) {
	for _, first := range []string{vpnLink, secondLink} {
		r := newRig(t)
		r.withLinks()
		r.write("etc/resolv.conf", upstreamConf)
		m := r.applied()
		for _, text := range []string{vpnConf, otherVPN} {
			r.replace("etc/resolv.conf", text)
			m.look(t.Context())
		}
		if j, err := loadJournal(r.opt.StateDir); err != nil || len(j.Layers) != 2 {
			t.Fatalf("the journal: %+v, %v", j, err)
		}
		other := map[string]string{vpnLink: secondLink, secondLink: vpnLink}[first]
		want := map[string]string{vpnLink: "10.8.0.1:53", secondLink: "10.9.0.1:53"}[first]
		r.gone(first)
		m.look(t.Context())
		if b, err := m.Base(t.Context()); err != nil || serverWords(b.Servers)[0] != want {
			t.Errorf("%s has left: base %v, %v", first, b, err)
		}
		r.gone(other)
		m.look(t.Context())
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if got := r.read("etc/resolv.conf"); got != upstreamConf {
			t.Errorf("%s first: put back %q", first, got)
		}
	}
}

// A VPN that was there before us has its backup of the network's file.
func TestAVPNBeforeUsLeavesWhatItFound(t *testing.T) {
	r := newRig(t)
	r.withLinks()
	r.write(vpnBackup, upstreamConf)
	r.write("etc/resolv.conf", vpnConf)
	m := r.applied()
	r.gone(vpnLink)
	m.look(t.Context())
	if b, err := m.Base(t.Context()); err != nil || !slices.Equal(serverWords(b.Servers), []string{"192.0.2.53:53"}) {
		t.Errorf("base %v, %v", b, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if got := r.read("etc/resolv.conf"); got != upstreamConf {
		t.Errorf("put back: %q", got)
	}
}

// What a script made of our file has our comments and search domains, which are nobody's once we are gone.
func TestTracesOfOurFile(t *testing.T) {
	c := stubConfig()
	ours := string(ourConf(c, parseResolvConf([]byte(upstreamConf)), "laptop"))
	made := strings.Replace(ours, "nameserver 127.0.0.77", "nameserver 10.9.0.1", 1)
	if got := string(withoutTraces([]byte(made), c.Search)); strings.Contains(got, "meshdns") || strings.Contains(got, "foo-bar") ||
		!strings.Contains(got, "10.9.0.1") || !strings.Contains(got, "corp.example") {
		t.Errorf("%q", got)
	}
	if got := string(withoutTraces([]byte(vpnConf), []string{"corp.test"})); got != vpnConf {
		t.Errorf("a file that was not made from ours: %q", got)
	}
}

func TestAJournalHasFewLayers(t *testing.T) {
	r := newRig(t)
	r.withLinks()
	r.write("etc/resolv.conf", upstreamConf)
	m := r.applied()
	reach := ""
	m.direct.machine.reach = func(netip.Addr) string { return reach }
	for n := range maxLayers + 3 {
		reach = fmt.Sprint("vpn", n)
		r.tunnel(reach, fmt.Sprint(20+n))
		r.replace("etc/resolv.conf", fmt.Sprintf("nameserver 10.%d.0.1\n", n))
		m.budget = budget{}
		m.look(t.Context())
	}
	if j, err := loadJournal(r.opt.StateDir); err != nil || len(j.Layers) > maxLayers {
		t.Errorf("%d layers, %v", len(j.Layers), err)
	}
	if _, err := parseJournal([]byte(`{"mode":"direct","layers":[{},{},{},{}]}`)); err == nil {
		t.Error("a journal with more layers than there may be")
	}
}
