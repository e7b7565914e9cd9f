package osconfig

import (
	"strings"
	"testing"
)

// What is put back is what the machine has now: while nobody of ours ran, a lease brought other servers.
func TestWhatIsRightNowIsPutBackAndNotWhatWasThen(t *testing.T) {
	const roamed = "nameserver 198.51.100.53\n"
	over := func(text string) func(r *rig) { return func(r *rig) { r.write("etc/resolv.conf", text) } }
	for name, tt := range map[string]struct {
		make func(t *testing.T) *rig
		roam func(r *rig)
		want string
	}{
		"direct, a file written over":           {shaped("regular"), over(roamed), "198.51.100.53"},
		"direct, a file replaced":               {shaped("regular"), func(r *rig) { r.replace("etc/resolv.conf", roamed) }, "198.51.100.53"},
		"direct, a server added to ours":        {shaped("regular"), over("nameserver 127.0.0.77\n" + roamed), "198.51.100.53"},
		"direct, a lease without a server":      {shaped("regular"), over("# dhcpcd\n"), "192.0.2.53"},
		"direct, a lease that kept ours":        {shaped("regular"), over("search new.example\nnameserver 127.0.0.77\n"), "192.0.2.53"},
		"direct, where a link leads":            {shaped("symlink-rel"), func(r *rig) { r.write("run/x/rc", roamed) }, "198.51.100.53"},
		"direct, where a chain of links leads":  {shaped("chain"), func(r *rig) { r.write("run/x/rc", roamed) }, "198.51.100.53"},
		"direct, a link that led nowhere":       {shaped("dangling"), func(r *rig) { r.write("run/nowhere/rc", roamed) }, "198.51.100.53"},
		"direct, no file, and one has appeared": {shaped("missing"), over(roamed), "198.51.100.53"},
		"Debian's resolvconf": {debian, func(r *rig) {
			r.write("run/resolvconf/interface/eth0", roamed)
			r.write("run/resolvconf/interface/eth1", "")
			r.write("run/resolvconf/escape", "")
		}, "198.51.100.53"},
		"openresolv": {openresolv, func(r *rig) { r.write("run/resolvconf/interfaces/eth0", roamed) }, "198.51.100.53"},
		"NetworkManager": {func(t *testing.T) *rig {
			n := newNM(t)
			n.has(func() {
				n.did = func(method string, _ []any) {
					if method == "Reload" && strings.HasPrefix(n.rig.read(nmConfig), "error: ") {
						n.global()
						n.rig.replace("etc/resolv.conf", roamed)
					} else if method == "Reload" {
						n.reload()
					}
				}
			})
			return n.rig
		}, func(*rig) {}, "198.51.100.53"},
		// It asks its own links, whatever they have; what goes is our link, and the file was never ours.
		"systemd-resolved": {func(t *testing.T) *rig {
			r := newRig(t)
			r.write("run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n")
			r.link("../run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf")
			r.opt.machine.bus = nil
			o := newResolved1(t)
			o.has(func() {
				o.props[string(resolvedPath)+" "+resolvedName+".Manager"] = map[string]any{
					"DNS": []anyServer{}, "DNSEx": []globalServer{}, "Domains": []globalDomain{},
				}
			})
			return r
		}, func(r *rig) { r.replace("run/systemd/resolve/stub-resolv.conf", roamed) }, "198.51.100.53"},
	} {
		t.Run(name, func(t *testing.T) {
			r := tt.make(t)
			if m := r.open(); m.mode == modeResolved {
				m.managed = fakeLink(t)
				r.must(m.Apply(t.Context(), stubConfig()))
			} else {
				r.must(m.Apply(t.Context(), stubConfig()))
				r.wantServers("127.0.0.77")
			}
			tt.roam(r)
			r.restore()
			r.wantServers(tt.want)
			r.restore() // and again
			r.wantServers(tt.want)
		})
	}
}

func shaped(name string) func(t *testing.T) *rig {
	return func(t *testing.T) *rig {
		r := newRig(t)
		shapes()[name](r)
		return r
	}
}
