// Command meshdns-demo shows on one machine, on loopback and without root, what meshdns does for several: a tailnet comes together, a
// name resolves, gets a certificate, and is shown to the world. All of it is real but the CA, which is Pebble.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// takeoverWord is the argument by which the demo starts itself again, apart from the machine.
const takeoverWord = "takeover"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the command, which returns its exit code: 0, 1 where something does not work, 2 where it was used wrongly.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 2 && args[0] == takeoverWord {
		return fail(stderr, showTakeover(ctx, args[1], stdout))
	}
	flags := flag.NewFlagSet("meshdns-demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	check := flags.Bool("check", false, "end at once, with 0 if everything works and 1 otherwise")
	verbose := flags.Bool("v", false, "print what the nodes log, too")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintln(stderr, "meshdns-demo: error: it takes no arguments")
		return 2
	}
	d, err := newDemo(stdout)
	if err != nil {
		return fail(stderr, err)
	}
	if *verbose {
		d.log = stderr
	}
	err = d.run(ctx, !*check)
	if end := d.end(); err == nil {
		err = end
	}
	return fail(stderr, err)
}

// fail is the exit code of an error, which is printed with what the user can do about it.
func fail(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "meshdns-demo: error: %v\n", err)
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) && hinted.Hint() != "" {
		fmt.Fprintf(stderr, "meshdns-demo: hint: %s\n", hinted.Hint())
	}
	return 1
}
