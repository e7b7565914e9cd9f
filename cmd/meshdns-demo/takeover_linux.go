package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const resolvConf = "/etc/resolv.conf"

// apartTime is how long that may take.
const apartTime = time.Minute

// takeover shows the takeover of the machine's DNS in a process whose mounts and network are its own: its /etc and /run are
// gone with it.
func (d *demo) takeover(ctx context.Context) (string, error) {
	if os.Geteuid() != 0 {
		return noTakeover, nil
	}
	laptop, nas := addressOf(d.laptop.ready, "laptop"), addressOf(d.nas.ready, "nas")
	apart, err := newDaemon(d.dir, "apart", "node: laptop\ntunnel: \"off\"\ndns: {os: direct, containers: \"off\", portal: \"off\"}\n")
	if err == nil {
		err = os.WriteFile(apart.paths.Map, fmt.Appendf(nil, "zone: %s\nranges: [%s]\nnodes:\n  laptop: {addresses: [%s]}\n  %s\n",
			zone, netip.PrefixFrom(nas, 24).Masked(), laptop, nasEntry(nas.String())), 0o600)
	}
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, apartTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, takeoverWord, filepath.Dir(apart.paths.State))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	var errs bytes.Buffer
	cmd.Stderr = io.MultiWriter(&errs, d.log)
	out, err := cmd.Output()
	var ended *exec.ExitError
	switch {
	case errors.As(err, &ended):
		return "", fmt.Errorf("in a mount namespace of its own: %s", strings.TrimSpace(errs.String()))
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EINVAL):
		return fmt.Sprintf("is left alone: this system has no mount namespaces for us (%v)", err), nil
	case err != nil:
		return "", err
	}
	return strings.TrimSpace(string(out)), nil
}

// nasEntry is the nas as that process's map has it.
func nasEntry(addr string) string { return fmt.Sprintf("nas: {addresses: [%s]}", addr) }

// showTakeover is what that process does.
func showTakeover(ctx context.Context, dir string, out io.Writer) error {
	if err := isApart(); err != nil {
		return err
	}
	if err := beApart(); err != nil {
		return err
	}
	before, err := os.ReadFile(resolvConf)
	if err != nil {
		return err
	}
	d := daemonAt(dir, "laptop")
	d.root = true
	if err := d.start(ctx, os.Stderr); err != nil {
		return err
	}
	during, err := os.ReadFile(resolvConf)
	found, lookup := net.DefaultResolver.LookupHost(ctx, "nas")
	err = errors.Join(err, lookup, d.end())
	if err != nil {
		return err
	}
	after, err := os.ReadFile(resolvConf)
	if err != nil {
		return err
	}
	tailnet, err := os.ReadFile(d.paths.Map)
	switch {
	case err != nil:
		return err
	case bytes.Equal(before, during):
		return fmt.Errorf("%s was not taken over: %s", resolvConf, d.ready.DNS.Takeover.Reason)
	case !bytes.Equal(before, after):
		return fmt.Errorf("%s is not what it was:\n%s\nand it was:\n%s", resolvConf, after, before)
	case len(found) == 0 || !bytes.Contains(tailnet, []byte(nasEntry(found[0]))):
		return fmt.Errorf("nas is %v for programs", found)
	}
	fmt.Fprintf(out, "with root, in mounts of its own: taken over (%s), nas is %s for every program, and put back byte for byte\n", d.ready.DNS.Takeover.Mode, found[0])
	fmt.Fprintf(out, "before and after: %s\nmeanwhile:        %s\n", inOneLine(before), inOneLine(during))
	return nil
}

// isApart makes sure that no mount of the machine's is touched, whoever starts this.
func isApart() error {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("looking at this process: %w", err)
	}
	parents, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", os.Getppid()))
	if err != nil {
		return fmt.Errorf("looking at the process that started this one: %w", err)
	}
	if own == parents {
		return errors.New(takeoverWord + " is for the demo itself, in mounts of its own")
	}
	return nil
}

// beApart puts an /etc and a /run over the machine's that nobody else sees, and has loopback work.
func beApart() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("parting from the machine's mounts: %w", err)
	}
	files := map[string][]byte{}
	for _, name := range []string{"resolv.conf", "hosts", "nsswitch.conf", "passwd", "group"} {
		data, err := os.ReadFile("/etc/" + name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err == nil {
			files[name] = data
		}
	}
	if len(bytes.TrimSpace(files["resolv.conf"])) == 0 {
		files["resolv.conf"] = []byte("nameserver 192.0.2.53\n")
	}
	for _, dir := range []string{"/etc", "/run"} {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mounting another %s: %w", dir, err)
		}
	}
	for name, data := range files {
		if err := os.WriteFile("/etc/"+name, data, 0o644); err != nil {
			return err
		}
	}
	return raiseLoopback()
}

// raiseLoopback has lo up, which it is not in a new network.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("raising lo: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		lo.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
	}
	if err != nil {
		return fmt.Errorf("raising lo: %w", err)
	}
	return nil
}

// inOneLine is a resolv.conf without its comments.
func inOneLine(conf []byte) string {
	lines := slices.DeleteFunc(strings.Split(string(conf), "\n"), func(line string) bool {
		return strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";")
	})
	return strings.Join(lines, " | ")
}
