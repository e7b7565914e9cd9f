package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/meshdns/meshdns/node"
)

// TestMain lets the test binary be meshdns, for the scripts.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshdns": scriptMain})
}

// scriptMain is main, but whoever runs the tests is no root to it unless a script says so: the places are then those
// below the script's own home, and the machine's DNS is not touched.
func scriptMain() {
	os.Exit(run(context.Background(), os.Args[1:], process{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		root:   os.Getenv("AS_ROOT") != "",
	}))
}

// The scripts hold stdout, stderr and exit code of every command, and with them the hints, word for word.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("MESHDNS_SOCKET", filepath.Join(env.WorkDir, "s"))
			env.Setenv("MESHDNS_DNS_OS", "off")
			env.Setenv("MESHDNS_DNS_STUB", "127.0.0.1:0")
			env.Setenv("MESHDNS_NODE", "nas")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // else every command of a race test sleeps for a second at its end
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":  scriptCode,
			"match": scriptMatch,
			"place": scriptPlace,
			"ready": scriptReady,
			"until": scriptUntil,
		},
	})
}

// scriptCode runs a program that has to end with an exit code: code 3 meshdns status.
func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code NUMBER program [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// scriptPlace sets ADDR to the address that this machine's packets leave from, at which a gateway listens, and PORT to a
// UDP port of it that is free, with the one above.
func scriptPlace(ts *testscript.TestScript, _ bool, _ []string) {
	out, err := net.Dial("udp4", "192.0.2.1:9") // which sends nothing
	ts.Check(err)
	addr := out.LocalAddr().(*net.UDPAddr).IP
	out.Close()
	for range 50 {
		first, err := net.ListenUDP("udp", &net.UDPAddr{IP: addr})
		ts.Check(err)
		port := first.LocalAddr().(*net.UDPAddr).Port
		second, err := net.ListenUDP("udp", &net.UDPAddr{IP: addr, Port: port + 1})
		first.Close()
		if err != nil {
			continue
		}
		second.Close()
		ts.Setenv("ADDR", addr.String())
		ts.Setenv("PORT", strconv.Itoa(port))
		return
	}
	ts.Fatalf("no two free ports")
}

// scriptMatch compares a file, or stdout or stderr, with one in which … stands for any text within a line, … alone on
// a line for any lines, and $WORK for the script's directory.
func scriptMatch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: match FILE PATTERN")
	}
	got := ts.ReadFile(args[0])
	want := strings.ReplaceAll(ts.ReadFile(args[1]), "$WORK", ts.Getenv("WORK"))
	if !matches(got, want) {
		ts.Fatalf("%s is\n%s\nand %s is\n%s", args[0], got, args[1], want)
	}
}

func matches(got, want string) bool {
	var pattern strings.Builder
	for line := range strings.Lines(want) {
		if line == "…\n" {
			pattern.WriteString(`(?:.*\n)*`)
			continue
		}
		pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".+"))
	}
	return regexp.MustCompile(`^` + pattern.String() + `$`).MatchString(got)
}

// scriptTimeout bounds what a script waits for.
const scriptTimeout = 20 * time.Second

// poll calls happened until it reports true.
func poll(ts *testscript.TestScript, what string, happened func() bool) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(scriptTimeout)
	for !happened() {
		select {
		case <-tick.C:
		case <-timeout:
			ts.Fatalf("waited for %s for %s", what, scriptTimeout)
		}
	}
}

// scriptReady waits until the node behind $MESHDNS_SOCKET answers, and sets STUB to the address and PORT to the port of
// its stub.
func scriptReady(ts *testscript.TestScript, _ bool, _ []string) {
	client := node.Client{Socket: ts.Getenv("MESHDNS_SOCKET")}
	var status node.Status
	poll(ts, "the node", func() bool {
		var err error
		status, err = client.Status(context.Background())
		return err == nil
	})
	ts.Setenv("STUB", status.DNS.Stub)
}

// scriptUntil runs a program again and again until it prints something: until 'degraded' meshdns status.
func scriptUntil(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until TEXT program [args...]")
	}
	poll(ts, args[0], func() bool {
		_ = ts.Exec(args[1], args[2:]...) // only what it prints counts
		return strings.Contains(ts.ReadFile("stdout")+ts.ReadFile("stderr"), args[0])
	})
}
