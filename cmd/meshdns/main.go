// Command meshdns gives the machines of a private network names that every program on this machine can use. It holds
// flags, output and exit codes alone; the work is package node's.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// process is what a command sees of the process that it runs in.
type process struct {
	stdin  io.Reader
	stdout io.Writer // results
	stderr io.Writer // everything else
	getenv func(string) string
	root   bool // may do what only root may
}

func main() {
	os.Exit(run(context.Background(), os.Args[1:], process{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		root:   isRoot(),
	}))
}

// run runs one command until it ends or a signal ends it, and returns the exit code.
func run(ctx context.Context, args []string, p process) int {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if isTerminal(p.stdin) {
		// A terminal that goes away, such as a lost SSH session, takes with it what runs in its foreground; without
		// one SIGHUP means "read the files again".
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(ctx, signals...)
	defer stop()

	a := &app{process: p}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	err := root.ExecuteContext(ctx)
	a.printError(err)
	return exitCode(err)
}
