package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/meshdns/meshdns/node"
)

// daemon is one machine of the tailnet: what `meshdns up` runs, with a directory for all that it has.
type daemon struct {
	node.Client

	name  string
	paths node.Paths
	root  bool // may take over the machine's DNS
	ready node.Status
	done  chan error
	stop  context.CancelFunc
}

// startTime is how long one may take to start, and to end.
const startTime = 30 * time.Second

// daemonAt is one whose configuration is in a directory.
func daemonAt(dir, name string) *daemon {
	d := &daemon{name: name, paths: node.Paths{
		Config: filepath.Join(dir, "meshdns.yaml"), Map: filepath.Join(dir, "map.yaml"), State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s"),
	}}
	d.Socket = d.paths.Socket
	return d
}

// newDaemon writes a configuration into a directory of its own.
func newDaemon(dir, name, config string) (*daemon, error) {
	d := daemonAt(filepath.Join(dir, name), name)
	if err := os.Mkdir(filepath.Dir(d.paths.Config), 0o700); err != nil {
		return nil, err
	}
	return d, os.WriteFile(d.paths.Config, []byte(config), 0o600)
}

// start runs it until end is called.
func (d *daemon) start(ctx context.Context, log io.Writer) error {
	cfg, err := node.LoadConfigFile(d.paths.Config)
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		return err
	}
	ready := make(chan node.Status, 1)
	options := node.Options{
		Paths: d.paths, Root: d.root, Version: "demo", Ready: func(s node.Status) { ready <- s },
		Logger: slog.New(slog.NewTextHandler(log, nil)).With("machine", d.name),
	}
	n, err := node.New(cfg, options)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // Ctrl-C ends machines in their order
	d.stop, d.done = stop, make(chan error, 1)
	go func() { d.done <- n.Run(running) }()
	select {
	case d.ready = <-ready:
		return nil
	case err := <-d.done:
		stop()
		d.stop = nil
		return fmt.Errorf("starting %s: it has ended: %w", d.name, err)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(startTime):
		return fmt.Errorf("starting %s: it is not ready after %s", d.name, startTime)
	}
}

// end ends it, and returns once it has put everything back.
func (d *daemon) end() error {
	if d.stop == nil {
		return nil
	}
	d.stop()
	select {
	case err := <-d.done:
		return err
	case <-time.After(startTime):
		return fmt.Errorf("ending %s: it has not ended after %s", d.name, startTime)
	}
}

// poll waits until something is so.
func poll(ctx context.Context, so func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := so(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
