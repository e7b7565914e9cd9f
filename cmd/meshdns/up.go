package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/meshdns/meshdns/node"
)

// upFlags are the flags of up that override the configuration.
type upFlags struct {
	os     string
	stub   netip.AddrPort
	listen []netip.AddrPort
}

// upCommand runs the node. It stays in the foreground: service managers want that, and everybody sees what it does.
func (a *app) upCommand() *cobra.Command {
	var try, debug bool
	cmd := a.leaf("up", "Run the node in the foreground", func(ctx context.Context, _ []string) error {
		return a.up(ctx, try, debug)
	})
	cmd.Long = "Run the node in the foreground until SIGINT, SIGTERM or `meshdns down`, then put everything back.\n" +
		"SIGHUP has the map read again; the map's file is watched besides."
	flags := cmd.Flags()
	flags.BoolVar(&try, "try", false, "for a first look: a high port, the machine's DNS untouched, nothing kept")
	flags.BoolVar(&debug, "debug", false, "log queries and the like too")
	flags.StringVar(&a.flags.os, "os", "", "how to point the machine's DNS at us: auto, off, or a `mode`")
	flags.Var((*addrPort)(&a.flags.stub), "stub", "`address` and port where this machine's programs ask")
	flags.Var((*addrPorts)(&a.flags.listen), "listen", "further `address` to answer on (repeatable)")
	return cmd
}

// up loads the configuration, says what it found, and runs the node until ctx ends.
func (a *app) up(ctx context.Context, try, debug bool) error {
	cfg, options, err := a.load(try)
	if err != nil {
		return err
	}
	a.sayConfiguration(options.Paths.Config)
	if !a.root && !try {
		a.say("not root, so a high port and the machine's DNS untouched; root adds port 53 and takes the machine's DNS over")
	}
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	options.Logger = newLogger(a.stderr, level)
	defer takeLog(options.Logger)()
	options.Report = func(line string) { a.say("%s", line) }
	options.Ready = func(s node.Status) {
		if try {
			a.sayExamples(s)
		}
	}
	if !isTerminal(a.stdin) { // run has the signals of a terminal
		reread := make(chan os.Signal, 1)
		signal.Notify(reread, syscall.SIGHUP)
		defer signal.Stop(reread)
		options.Reread = reread
	}
	n, err := node.New(cfg, options)
	if err != nil {
		return err
	}
	return n.Run(ctx)
}

// sayConfiguration says which configuration is in use.
func (a *app) sayConfiguration(path string) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		a.say("no configuration at %s: the defaults", path)
		return
	}
	a.say("configuration %s", path)
}

// sayExamples shows what to try out.
func (a *app) sayExamples(s node.Status) {
	at, err := netip.ParseAddrPort(s.DNS.Stub)
	if err != nil {
		return
	}
	dig := fmt.Sprintf("dig @%s -p %d", at.Addr(), at.Port())
	for _, example := range []string{
		fmt.Sprintf("%s %s", dig, s.Node),
		fmt.Sprintf("%s example.com", dig),
		"meshdns dns explain " + s.Node,
		"meshdns down",
	} {
		a.say("try: %s", example)
	}
}

// addrPort is a flag with an address, and port 53 unless it has one.
type addrPort netip.AddrPort

// Set reads the flag's value.
func (p *addrPort) Set(s string) error {
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return errors.New("want an address, or an address and a port")
		}
		at = netip.AddrPortFrom(addr, 53)
	}
	*p = addrPort(at)
	return nil
}

// String is the flag's value.
func (p *addrPort) String() string {
	if at := netip.AddrPort(*p); at.IsValid() {
		return at.String()
	}
	return ""
}

// Type names the flag's type in help texts.
func (p *addrPort) Type() string { return "address" }

// addrPorts is a flag that may be given several times.
type addrPorts []netip.AddrPort

// Set adds a value.
func (p *addrPorts) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		var one addrPort
		if err := one.Set(strings.TrimSpace(word)); err != nil {
			return err
		}
		*p = append(*p, netip.AddrPort(one))
	}
	return nil
}

// String lists the values.
func (p *addrPorts) String() string {
	words := make([]string, len(*p))
	for i, at := range *p {
		words[i] = at.String()
	}
	return strings.Join(words, ",")
}

// Type names the flag's type in help texts.
func (p *addrPorts) Type() string { return "address" }
