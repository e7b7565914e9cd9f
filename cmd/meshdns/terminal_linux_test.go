package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal with a program of ours on it, and what it shows.
type terminal struct {
	master *os.File
	cmd    *exec.Cmd
	ended  chan struct{}

	mu    sync.Mutex
	shown strings.Builder
}

// onTerminal starts meshdns on a terminal. stdout stays apart where it is not nil.
func onTerminal(t *testing.T, env []string, stdout *os.File, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tt := &terminal{master: master, ended: make(chan struct{})}
	tt.cmd = exec.Command(self, args...)
	tt.cmd.Args[0] = "meshdns" // which the test binary is under that name
	tt.cmd.Env = append(os.Environ(), env...)
	tt.cmd.Stdin, tt.cmd.Stdout, tt.cmd.Stderr = slave, slave, slave
	if stdout != nil {
		tt.cmd.Stdout = stdout
	}
	tt.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := tt.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(tt.ended)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			tt.mu.Lock()
			tt.shown.Write(b[:n])
			tt.mu.Unlock()
			if err != nil { // EIO: nobody has the other side any more
				return
			}
		}
	}()
	t.Cleanup(func() { tt.cmd.Process.Kill() })
	return tt
}

func (tt *terminal) text() string {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	return tt.shown.String()
}

// awaits waits until the terminal shows a text.
func (tt *terminal) awaits(t *testing.T, text string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(30 * time.Second); !strings.Contains(tt.text(), text); {
		select {
		case <-tick.C:
		case <-over:
			t.Fatalf("waited for %q for 30 s; the terminal shows\n%s", text, tt.text())
		}
	}
}

// silent waits until what is typed is not shown: the prompt comes first.
func (tt *terminal) silent(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(30 * time.Second); tt.echoes(t); {
		select {
		case <-tick.C:
		case <-over:
			t.Fatal("what is typed is shown")
		}
	}
}

func (tt *terminal) echoes(t *testing.T) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(tt.master.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func (tt *terminal) types(t *testing.T, text string) {
	t.Helper()
	if _, err := tt.master.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// code waits for the end.
func (tt *terminal) code() int {
	_ = tt.cmd.Wait()
	<-tt.ended
	return tt.cmd.ProcessState.ExitCode()
}

// A passphrase is asked for twice, is shown nowhere, and an interrupted question leaves a terminal that shows what is typed.
func TestAPassphraseIsAskedForOnTheTerminal(t *testing.T) {
	dir := t.TempDir()
	env := []string{"NO_COLOR=1", "HOME=" + dir, "MESHDNS_SOCKET=" + dir + "/s"}
	ask := func(first, second string) *terminal {
		tt := onTerminal(t, env, nil, "gateway", "backup", dir+"/b", "--state-dir", dir+"/gw")
		tt.awaits(t, "passphrase: ")
		tt.silent(t)
		tt.types(t, first+"\n")
		tt.awaits(t, "again: ")
		tt.silent(t)
		tt.types(t, second+"\n")
		return tt
	}
	for name, test := range map[string]struct {
		first, second string
		code          int
		says          string
	}{
		"another the second time": {"correct horse", "correct house", exitFailed, "error: the second passphrase is another one: nothing was done"},
		"too short":               {"horse", "horse", exitUsage, "error: the passphrase is shorter than 8 characters"},
		"the same":                {"correct horse", "correct horse", exitNotFound, "error: this machine is no gateway yet"},
	} {
		tt := ask(test.first, test.second)
		if code := tt.code(); code != test.code || !strings.Contains(tt.text(), test.says) || strings.Contains(tt.text(), test.first) {
			t.Errorf("%s: exit code %d, the terminal shows\n%s", name, code, tt.text())
		}
	}
	tt := onTerminal(t, env, nil, "gateway", "restore", dir+"/b", "--state-dir", dir+"/gw")
	tt.awaits(t, "passphrase: ")
	tt.silent(t)
	state, err := unix.IoctlGetTermios(int(tt.master.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	tt.types(t, "half a pass\x03") // Ctrl-C
	if code := tt.code(); code != exitInterrupted || strings.Contains(tt.text(), "half") {
		t.Errorf("exit code %d, the terminal shows\n%s", code, tt.text())
	}
	if after, err := unix.IoctlGetTermios(int(tt.master.Fd()), unix.TCGETS); err == nil && after.Lflag&unix.ECHO == 0 {
		t.Errorf("the terminal shows nothing of what is typed any more (%x, %x)", state.Lflag, after.Lflag)
	}
}

// On a terminal an invite comes with a QR code of it, which does not get into what is piped on.
func TestAnInviteIsAQRCodeOnATerminal(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "c.yaml")
	// Ports below 1024 may not be ours, which costs the gateway nothing that an invite needs.
	text := fmt.Sprintf("node: edge\ndns: {os: \"off\", stub: \"127.0.0.1:0\"}\ntunnel: {mode: userspace, port: %d, proxy: \"off\"}\n"+
		"gateway: {zone: foo-bar.example.org, public: [203.0.113.5], listen: [127.80.9.40]}\n", freeUDPPorts(t, "127.80.9.40"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"NO_COLOR=1", "HOME=" + dir, "MESHDNS_SOCKET=" + dir + "/s"}
	gateway := onTerminal(t, env, nil, "up", "--config", config, "--state-dir", dir+"/gw")
	gateway.awaits(t, "meshdns: ready")
	stdout, err := os.Create(filepath.Join(dir, "invite"))
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	tt := onTerminal(t, env, stdout, "gateway", "invite", "nas", "--config", config)
	if code := tt.code(); code != exitDone {
		t.Fatalf("exit code %d, the terminal shows\n%s", code, tt.text())
	}
	invite, err := os.ReadFile(stdout.Name())
	word, rest, _ := strings.Cut(string(invite), "\n")
	if err != nil || rest != "" || !strings.HasPrefix(word, "MESHDNS") {
		t.Errorf("stdout has %d lines (%v)", strings.Count(string(invite), "\n"), err)
	}
	var drawn strings.Builder
	writeQR(&drawn, word)
	if shown := strings.ReplaceAll(tt.text(), "\r\n", "\n"); !strings.Contains(shown, drawn.String()) || strings.Contains(shown, word) {
		t.Errorf("the terminal shows\n%s", shown)
	}
	if err := gateway.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := gateway.code(); code != exitDone {
		t.Errorf("the gateway ended with %d:\n%s", code, gateway.text())
	}
}

// freeUDPPorts is a UDP port that nothing uses, nor the one above it.
func freeUDPPorts(t *testing.T, addr string) int {
	t.Helper()
	for range 50 {
		first, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr)})
		if err != nil {
			t.Fatal(err)
		}
		port := first.LocalAddr().(*net.UDPAddr).Port
		second, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr), Port: port + 1})
		first.Close()
		if err == nil {
			second.Close()
			return port
		}
	}
	t.Fatal("no two free ports")
	return 0
}

// On a terminal each step to a certificate is told of, and in the end the CA's words; stdout has the result alone.
func TestTheStepsToACertificate(t *testing.T) {
	d := newCertDaemon(t)
	dir := t.TempDir()
	out, err := os.Create(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	args := []string{"--socket", d.socket, "cert", "nas", "--cert-file", "-", "--key-file", dir + "/nas.key", "--once"}
	tt := onTerminal(t, []string{"NO_COLOR=1"}, out, args...)
	<-tt.ended
	at := 0
	for _, word := range []string{"account with the CA", "ordered", "TXT record published", "TXT record seen at every server", "validated", "issued", "stored"} {
		i := strings.Index(tt.text()[at:], word+" nas.example.org")
		if i < 0 {
			t.Fatalf("no %q after %q:\n%s", word, tt.text()[:at], tt.text())
		}
		at += i
	}
	if text, err := os.ReadFile(out.Name()); err != nil || !strings.HasPrefix(string(text), d.chain) {
		t.Errorf("stdout has %q, %v", text, err)
	}
	d.has(func() { d.last = `failed:ordering (CA letsencrypt): the CA says "too many"` })
	tt = onTerminal(t, []string{"NO_COLOR=1"}, nil, args...)
	<-tt.ended
	if !strings.Contains(tt.text(), `error: ordering (CA letsencrypt): the CA says "too many"`) {
		t.Errorf("the terminal shows\n%s", tt.text())
	}
}
