package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Service is meshdns as a service of the system, so that it starts with the machine.
type Service struct {
	Binary string       // the program, absolute
	Root   bool         // may change the system's services
	Report func(string) // is told each step; nil: nobody is

	run  func(ctx context.Context, args ...string) error // tests; nil: programs are run
	base string                                          // tests: what stands before every path
}

// serviceTimeout bounds one call of the service manager, which waits until the node is ready.
const serviceTimeout = 60 * time.Second

// serviceFile is one file that a service consists of.
type serviceFile struct {
	path string
	text string
	mode os.FileMode
}

// The two units: the daemon, and what repairs the machine's DNS before the network comes up after a power cut.
const (
	daemonUnit  = "meshdns.service"
	restoreUnit = "meshdns-restore.service"
	unitDir     = "/etc/systemd/system"
)

// hidden are the directories that the unit hides from the service, the program's own among them.
func hidden() []string { return []string{"/home", "/root", "/run/user", "/tmp", "/var/tmp"} }

// daemonText is the unit of the daemon. It may change /etc and /run, where resolv.conf and the files of those who manage
// it are, and its state; make a TUN; bind port 53; give files back to their owners; and run sources as nobody.
const daemonText = `[Unit]
Description=meshdns: names for the machines of a private network
After=network.target dbus.service systemd-resolved.service NetworkManager.service
Wants=nss-lookup.target
Before=nss-lookup.target

[Service]
Type=notify
ExecStart=BINARY up
ExecReload=/bin/kill -HUP $MAINPID
ExecStopPost=-BINARY dns restore
Restart=on-failure
RestartSec=1
TimeoutStopSec=15
WatchdogSec=30
LimitNOFILE=131072
RuntimeDirectory=meshdns
StateDirectory=meshdns
StateDirectoryMode=0700
UMask=0077

CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_SETUID CAP_SETGID
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/etc /run
ProtectHome=yes
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectClock=yes
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
`

const restoreText = `[Unit]
Description=meshdns: give the machine's DNS back after a power cut
DefaultDependencies=no
ConditionPathExists=/var/lib/meshdns/dns-journal.json
RequiresMountsFor=/etc /var/lib/meshdns
After=local-fs.target
Wants=network-pre.target
Before=network-pre.target systemd-resolved.service NetworkManager.service networking.service meshdns.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=BINARY dns restore

[Install]
WantedBy=sysinit.target
`

const openrcText = `#!/sbin/openrc-run
# /etc/init.d/meshdns
description="names for the machines of a private network"
supervisor=supervise-daemon
command=BINARY
command_args=up

depend() {
	need localmount
	use net dbus
	provide dns
}

start_pre() {
	BINARY dns restore
}

stop_post() {
	BINARY dns restore
}
`

const runitText = `#!/bin/sh
# /etc/sv/meshdns/run; beside it /etc/sv/meshdns/finish with: exec BINARY dns restore
exec 2>&1
exec BINARY up
`

// ServiceText is what a service consists of on a system that is not installed to: systemd, openrc or runit.
func ServiceText(system, binary string) (string, error) {
	texts := map[string]string{
		"systemd": "# " + unitDir + "/" + daemonUnit + "\n" + daemonText + "\n# " + unitDir + "/" + restoreUnit + "\n" + restoreText,
		"openrc":  openrcText,
		"runit":   runitText,
	}
	text, ok := texts[system]
	if !ok {
		return "", hinted(ErrBadRequest, fmt.Errorf("printing a service: %q is no service manager that is known", system), "one of systemd, openrc, runit")
	}
	return strings.ReplaceAll(text, "BINARY", binary), nil
}

// files are the units of s.
func (s *Service) files() []serviceFile {
	var files []serviceFile
	for _, unit := range []struct{ name, text string }{{daemonUnit, daemonText}, {restoreUnit, restoreText}} {
		files = append(files, serviceFile{
			path: filepath.Join(s.base, unitDir, unit.name),
			text: strings.ReplaceAll(unit.text, "BINARY", s.Binary),
			mode: 0o644,
		})
	}
	return files
}

// check says why s cannot be a service.
func (s *Service) check() error {
	if !filepath.IsAbs(s.Binary) || strings.ContainsAny(s.Binary, " \t\n\\\"'%$;") {
		return fmt.Errorf("installing the service: %q cannot be named in a unit", s.Binary)
	}
	in := func(dir string) bool { return strings.HasPrefix(s.Binary, dir+"/") }
	if slices.ContainsFunc(hidden(), in) {
		return hinted(nil, fmt.Errorf("installing the service: a service does not see %s", s.Binary),
			"install it first: sudo install "+s.Binary+" /usr/local/bin/meshdns, and run that")
	}
	return s.needSystemd()
}

func (s *Service) needRoot() error {
	if s.Root {
		return nil
	}
	return hinted(ErrNotPermitted, errors.New("changing the system's services: only root may"), "run it with sudo")
}

// needSystemd fails where systemd does not run (sd_booted(3)).
func (s *Service) needSystemd() error {
	if _, err := os.Stat(filepath.Join(s.base, "/run/systemd/system")); err != nil {
		return hinted(nil, errors.New("systemd does not run here"), "see meshdns service print openrc, or runit")
	}
	return nil
}

// Install writes the units, and has systemd start the node now and with the machine. It can be called again, as after
// an update.
func (s *Service) Install(ctx context.Context) error {
	if err := s.needRoot(); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	for _, f := range s.files() {
		if err := writeFile(f.path, []byte(f.text), f.mode); err != nil {
			return err
		}
		s.report("wrote %s", f.path)
	}
	for _, args := range [][]string{
		{"systemctl", "daemon-reload"},
		{"systemctl", "enable", restoreUnit, daemonUnit},
		{"systemctl", "restart", daemonUnit},
	} {
		if err := s.exec(ctx, args...); err != nil {
			return hinted(nil, fmt.Errorf("installing the service: %w", err), "see: journalctl -u meshdns; undo it with: meshdns service uninstall")
		}
	}
	s.report("started; it starts with the machine from now on")
	return nil
}

// Uninstall ends the node, which gives the machine's DNS back, and removes the units. What it kept stays.
func (s *Service) Uninstall(ctx context.Context) error {
	if err := s.needRoot(); err != nil {
		return err
	}
	if err := s.needSystemd(); err != nil {
		return err
	}
	var errs []error
	// What fails does not keep the rest from being undone: a unit may be gone, or was never started.
	for _, unit := range []string{daemonUnit, restoreUnit} {
		if _, err := os.Stat(filepath.Join(s.base, unitDir, unit)); err == nil {
			errs = append(errs, s.exec(ctx, "systemctl", "disable", "--now", unit))
		}
	}
	for _, f := range s.files() {
		err := os.Remove(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			s.report("removed %s", f.path)
		}
		errs = append(errs, err)
	}
	errs = append(errs, s.exec(ctx, "systemctl", "daemon-reload"))
	return errors.Join(errs...)
}

func (s *Service) report(format string, args ...any) {
	if s.Report != nil {
		s.Report(fmt.Sprintf(format, args...))
	}
}

// exec runs one program of the service manager's.
func (s *Service) exec(ctx context.Context, args ...string) error {
	if s.run != nil {
		return s.run(ctx, args...)
	}
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("running %s: %w (%.300s)", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
