package osconfig

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"
)

// plain is a machine whose resolv.conf nobody manages.
func plain() facts {
	return facts{
		system:   modeDirect,
		file:     regular(upstreamConf),
		hops:     []string{confPath},
		data:     []byte(upstreamConf),
		resolved: ownerNone,
		nm:       ownerNone,
	}
}

func linked(target string) func(*facts) {
	return func(f *facts) {
		f.file = fileState{Kind: kindSymlink, Link: target}
		f.hops = append(f.hops, target)
	}
}

// Numbers in the names are those of the issues in which the owner was guessed wrong by another program.
func TestDecide(t *testing.T) {
	tests := map[string]struct {
		change  func(*facts)
		wish    string
		mode    string
		inPlace bool
		refused string // a part of the reason; "": it may be changed
		hint    string
	}{
		"a file that nobody manages": {mode: modeDirect},
		"no file":                    {change: func(f *facts) { f.file = fileState{Kind: kindMissing}; f.data = nil }, mode: modeDirect},
		"a link that nobody manages": {change: linked("/run/x/rc"), mode: modeDirect},
		"no bus":                     {change: func(f *facts) { f.resolved, f.nm, f.busErr = ownerUnknown, ownerUnknown, fs.ErrNotExist }, mode: modeDirect},
		"a bus that does not answer (tailscale 5990)": {
			change: func(f *facts) { f.resolved, f.nm, f.busErr = ownerUnknown, ownerUnknown, context.DeadlineExceeded }, mode: modeDirect, refused: "is not known",
		},
		"a header of systemd-resolved and another server (tailscale 2136)": {
			change: func(f *facts) {
				f.data = []byte("# This file is managed by man:systemd-resolved(8).\nnameserver 192.0.2.53\n")
			},
			mode: modeDirect,
		},
		"resolvconf's header, and its link lost (tailscale 3026)": {
			change: func(f *facts) {
				f.data = []byte("# 127.0.0.53 is the systemd-resolved stub resolver.\nnameserver 192.0.2.53\n")
				f.resolvconf = modeResolvconf
			},
			mode: modeDirect,
		},
		"systemd-resolved's alias for resolvconf alone": {change: func(f *facts) { f.resolvconf = modeResolved }, mode: modeDirect},
		"openresolv without records":                    {change: func(f *facts) { f.resolvconf = modeOpenresolv }, mode: modeDirect},

		"systemd-resolved runs": {change: func(f *facts) { f.resolved = ownerPresent }, mode: modeResolved},
		"systemd-resolved runs beside a foreign file (tailscale 7655, 11342)": {
			change: func(f *facts) { f.resolved = ownerPresent; f.nm = ownerPresent }, mode: modeResolved,
		},
		"systemd-resolved's link before it started": {change: linked("/run/systemd/resolve/stub-resolv.conf"), mode: modeResolved, refused: "systemd-resolved manages"},
		"systemd-resolved's static file":            {change: linked("/usr/lib/systemd/resolv.conf"), mode: modeResolved, refused: "systemd-resolved manages"},
		"systemd-resolved's stub, twice (tailscale 3304)": {
			change: func(f *facts) { f.data = []byte("nameserver 127.0.0.53\nnameserver 127.0.0.54\nsearch lan\n") }, mode: modeResolved, refused: "systemd-resolved manages",
		},
		"its stub beside another server":                        {change: func(f *facts) { f.data = []byte("nameserver 127.0.0.53\nnameserver 192.0.2.53\n") }, mode: modeDirect},
		"NetworkManager runs":                                   {change: func(f *facts) { f.nm = ownerPresent }, mode: modeNM},
		"NetworkManager in its default mode":                    {change: func(f *facts) { f.nm, f.nmMode, f.nmRcManager = ownerPresent, "default", "symlink" }, mode: modeNM},
		"NetworkManager with dnsmasq":                           {change: func(f *facts) { f.nm, f.nmMode, f.nmRcManager = ownerPresent, "dnsmasq", "symlink" }, mode: modeNM},
		"NetworkManager that leaves DNS alone (tailscale 9687)": {change: func(f *facts) { f.nm, f.nmMode, f.nmRcManager = ownerPresent, "none", "symlink" }, mode: modeDirect},
		"NetworkManager that leaves the file alone":             {change: func(f *facts) { f.nm, f.nmMode, f.nmRcManager = ownerPresent, "default", "unmanaged" }, mode: modeDirect},
		"NetworkManager and a link to a third place": {
			change: func(f *facts) {
				linked("/run/x/rc")(f)
				f.nm, f.nmMode, f.nmRcManager = ownerPresent, "default", "symlink"
			}, mode: modeDirect,
		},
		"NetworkManager's link": {change: linked("/run/NetworkManager/resolv.conf"), mode: modeNM, refused: "does not run", hint: "start it"},
		"connman's proxy":       {change: func(f *facts) { f.connman, f.data = ownerPresent, []byte("nameserver 127.0.0.1\n") }, mode: modeDirect},
		"connman's link":        {change: func(f *facts) { linked("/run/connman/resolv.conf")(f); f.connman = ownerPresent }, mode: modeDirect},
		"connman is stopped":    {change: linked("/run/connman/resolv.conf"), mode: modeDirect},
		"Debian's resolvconf": {
			change: func(f *facts) { linked("/run/resolvconf/resolv.conf")(f); f.resolvconf = modeResolvconf }, mode: modeResolvconf,
		},
		"openresolv with records": {
			change: func(f *facts) { f.resolvconf, f.records = modeOpenresolv, true }, mode: modeOpenresolv,
		},
		"openresolv's link": {
			change: func(f *facts) { linked("/run/resolvconf/resolv.conf")(f); f.resolvconf = modeOpenresolv }, mode: modeOpenresolv,
		},

		"a directory":                    {change: func(f *facts) { f.file.Kind = kindDirectory }, mode: modeDirect, refused: "is a directory", hint: "remove it"},
		"a pipe":                         {change: func(f *facts) { f.file.Kind = kindOther }, mode: modeDirect, refused: "is a special file"},
		"immutable":                      {change: func(f *facts) { f.sealed = true }, mode: modeDirect, refused: "immutable", hint: unseal},
		"mode 0444":                      {change: func(f *facts) { f.file.Mode = 0o444 }, mode: modeDirect, refused: "read-only (mode 0444)", hint: "chmod u+w"},
		"a link has no mode that counts": {change: func(f *facts) { linked("/run/x/rc")(f); f.file.Mode = 0 }, mode: modeDirect},
		"read-only /etc":                 {change: func(f *facts) { f.dirErr = syscall.EROFS }, mode: modeDirect, refused: "/etc is read-only"},
		"immutable /etc":                 {change: func(f *facts) { f.dirErr = syscall.EPERM }, mode: modeDirect, refused: "/etc is immutable"},
		"not root":                       {change: func(f *facts) { f.dirErr = syscall.EACCES }, mode: modeDirect, refused: "by this user", hint: "root"},
		"an odd error":                   {change: func(f *facts) { f.dirErr = syscall.EIO }, mode: modeDirect, refused: "input/output error"},
		"a mount (tailscale 3000)":       {change: func(f *facts) { f.mount = &mount{kind: "ext4", source: "/dev/vda1"} }, mode: modeDirect, inPlace: true},
		"a mount in a read-only /etc": {
			change: func(f *facts) { f.mount, f.dirErr = &mount{}, syscall.EROFS }, mode: modeDirect, inPlace: true,
		},
		"a read-only mount":            {change: func(f *facts) { f.mount = &mount{readOnly: true} }, mode: modeDirect, inPlace: true, refused: "read-only mount"},
		"a mount that denies to write": {change: func(f *facts) { f.mount, f.fileErr = &mount{}, syscall.EPERM }, mode: modeDirect, inPlace: true, refused: "read-only mount"},

		"off":                      {wish: "off", mode: modeDirect, refused: "dns.os is off", hint: "auto"},
		"auto":                     {wish: "auto", mode: modeDirect},
		"direct, as the facts say": {wish: "direct", mode: modeDirect},
		"direct beside resolved":   {wish: "direct", change: func(f *facts) { f.resolved = ownerPresent }, mode: modeResolved, refused: "dns.os is direct", hint: "auto"},
		"resolved without it":      {wish: "resolved", mode: modeDirect, refused: "dns.os is resolved"},
		"OpenBSD's resolvd":        {change: func(f *facts) { f.resolvd = true }, mode: modeResolvd},
		"resolvd with unwind before all others": {
			change: func(f *facts) {
				f.resolvd, f.data = true, []byte("nameserver 127.0.0.1 # resolvd: unwind\n#nameserver 192.0.2.53 # resolvd: em0\n")
			}, mode: modeResolvd, refused: "unwind answers", hint: "unwind.conf",
		},
		"lines of a resolvd that does not run": {
			change: func(f *facts) { f.data = []byte("nameserver 127.0.0.1 # resolvd: unwind\n") }, mode: modeDirect,
		},
		"FreeBSD's openresolv": {change: func(f *facts) { f.busErr, f.resolvconf, f.records = fs.ErrNotExist, modeOpenresolv, true }, mode: modeOpenresolv},
		"macOS":                {change: func(f *facts) { *f = facts{system: modeScutil} }, mode: modeScutil},
		"macOS, off":           {change: func(f *facts) { *f = facts{system: modeScutil} }, wish: "off", mode: modeScutil, refused: "dns.os is off"},
		"macOS, by its name":   {change: func(f *facts) { *f = facts{system: modeScutil} }, wish: "scutil", mode: modeScutil},
		"macOS, and a mode of Linux's": {
			change: func(f *facts) { *f = facts{system: modeScutil} }, wish: "direct", mode: modeScutil, refused: "dns.os is direct", hint: "auto",
		},
		"Windows":                   {change: func(f *facts) { *f = facts{system: modeNRPT} }, mode: modeNRPT},
		"Windows with group policy": {change: func(f *facts) { *f = facts{system: modeNRPT, policy: true} }, mode: modeNRPT},
		"a system that nobody knows, off": {
			change: func(f *facts) { f.system = modeNone }, wish: "off", mode: modeNone, refused: "not changed", hint: "by hand",
		},
		"a system without the file": {change: func(f *facts) { f.system = modeNone }, mode: modeNone, refused: "not changed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := plain()
			if tt.change != nil {
				tt.change(&f)
			}
			d := decide(f, tt.wish)
			if d.mode != tt.mode || d.inPlace != tt.inPlace {
				t.Errorf("mode %s, in place %t; want %s, %t", d.mode, d.inPlace, tt.mode, tt.inPlace)
			}
			switch {
			case (d.refused == nil) != (tt.refused == ""):
				t.Errorf("refused: %v, want %q", d.refused, tt.refused)
			case d.refused != nil:
				if !strings.Contains(d.refused.Error(), tt.refused) || !strings.Contains(d.refused.Hint(), tt.hint) || d.refused.Hint() == "" {
					t.Errorf("refused: %v (hint: %s), want %q (hint: %s)", d.refused, d.refused.Hint(), tt.refused, tt.hint)
				}
				if !errors.Is(d.refused, ErrRefused) {
					t.Error("it is no ErrRefused")
				}
			}
			if len(d.trace) == 0 {
				t.Error("no trace")
			}
		})
	}
}

func TestFactsAreGathered(t *testing.T) {
	tests := map[string]struct {
		make func(r *rig)
		want func(f facts) bool
	}{
		"a chain of links": {
			func(r *rig) { shapes()["chain"](r) },
			func(f facts) bool {
				return f.file.Link == "alt" && strings.Join(f.hops, " ") == "/etc/resolv.conf /etc/alt /run/x/rc" && string(f.data) == upstreamConf
			},
		},
		"a dangling link": {
			func(r *rig) { shapes()["dangling"](r) },
			func(f facts) bool { return f.hops[len(f.hops)-1] == "/run/nowhere/rc" && f.data == nil },
		},
		"a link that leads in a circle": {
			func(r *rig) { r.link("resolv.conf", "etc/resolv.conf") },
			func(f facts) bool { return f.data == nil && f.file.Kind == kindSymlink },
		},
		"Debian's resolvconf": {
			func(r *rig) { r.write("sbin/resolvconf", ""); r.write("etc/resolvconf/update.d/libc", "") },
			func(f facts) bool { return f.resolvconf == modeResolvconf },
		},
		"openresolv with a record": {
			func(r *rig) { r.write("usr/sbin/resolvconf", ""); r.write("run/resolvconf/interfaces/eth0", "") },
			func(f facts) bool { return f.resolvconf == modeOpenresolv && f.records },
		},
		"openresolv, a new one": {
			func(r *rig) { r.write("usr/sbin/resolvconf", ""); r.write("run/resolvconf/keys/eth0", "") },
			func(f facts) bool { return f.resolvconf == modeOpenresolv && f.records },
		},
		"openresolv without records": {
			func(r *rig) { r.write("usr/sbin/resolvconf", "") },
			func(f facts) bool { return f.resolvconf == modeOpenresolv && !f.records },
		},
		"systemd's alias": {
			func(r *rig) {
				r.write("bin/resolvectl", "")
				r.link("../bin/resolvectl", "sbin-resolvconf")
				r.write("sbin/x", "")
				r.link("/bin/resolvectl", "sbin/resolvconf")
			},
			func(f facts) bool { return f.resolvconf == modeResolved },
		},
		"none of all": {
			func(r *rig) { r.write("etc/resolv.conf", upstreamConf) },
			func(f facts) bool { return f.resolvconf == "" && f.mount == nil && !f.sealed && f.dirErr == nil },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			tt.make(r)
			f, err := r.opt.machine.facts(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if !tt.want(f) {
				t.Errorf("got %+v", f)
			}
		})
	}
}

func TestHostDomain(t *testing.T) {
	for host, want := range map[string]string{
		"laptop": "", "laptop.corp.example": "corp.example", "laptop.Corp.example.": "Corp.example", "a.b c": "", "a.": "", "": "",
	} {
		if got := (machine{host: func() string { return host }}).hostDomain(); got != want {
			t.Errorf("the domain of %q is %q, want %q", host, got, want)
		}
	}
}
