package main

import (
	"cmp"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/meshdns/meshdns/node"
)

// places are the files and directories to use: as flags and the environment say, or else the defaults.
func (a *app) places(try bool) (node.Paths, error) {
	p, err := node.DefaultPaths(a.getenv, a.root, try)
	if given := a.paths; err != nil && (given.Config == "" || given.State == "" || given.Socket == "") {
		return node.Paths{}, err
	}
	p.Config = cmp.Or(a.paths.Config, p.Config)
	p.State = cmp.Or(a.paths.State, p.State)
	p.Socket = cmp.Or(a.paths.Socket, p.Socket)
	p.Map = cmp.Or(a.paths.Map, filepath.Join(filepath.Dir(p.Config), "map.yaml"))
	return p, nil
}

// load reads this machine's configuration: the file, which may be absent unless it was named, then the environment,
// then the flags, each over what was before.
func (a *app) load(try bool) (node.Config, node.Options, error) {
	paths, err := a.places(try)
	if err != nil {
		return node.Config{}, node.Options{}, err
	}
	cfg, err := node.LoadConfigFile(paths.Config)
	if errors.Is(err, fs.ErrNotExist) && a.paths.Config == "" {
		cfg, err = node.DefaultConfig(), nil
	}
	if err != nil {
		return node.Config{}, node.Options{}, err
	}
	if err := cfg.ApplyEnv(a.lookup); err != nil {
		return node.Config{}, node.Options{}, err
	}
	a.override(&cfg)
	if err := cfg.Validate(); err != nil {
		return node.Config{}, node.Options{}, err
	}
	paths.Map = cmp.Or(cfg.Map, paths.Map)
	return cfg, node.Options{
		Paths:    paths,
		Try:      try,
		Root:     a.root,
		Version:  currentVersion(),
		Notify:   a.getenv("NOTIFY_SOCKET"),
		Watchdog: a.getenv("WATCHDOG_USEC"),
	}, nil
}

// override puts what flags say over the configuration.
func (a *app) override(cfg *node.Config) {
	if a.paths.Map != "" {
		cfg.Map = a.paths.Map
		cfg.Override("map", "--map")
	}
	if a.flags.os != "" {
		cfg.DNS.OS = a.flags.os
		cfg.Override("dns.os", "--os")
	}
	if a.flags.stub.IsValid() {
		cfg.DNS.Stub = a.flags.stub
		cfg.Override("dns.stub", "--stub")
	}
	if len(a.flags.listen) > 0 {
		cfg.DNS.Listen = a.flags.listen
		cfg.Override("dns.listen", "--listen")
	}
}

// lookup is os.LookupEnv of the process that we were given.
func (a *app) lookup(name string) (string, bool) {
	value := a.getenv(name)
	return value, value != ""
}

// idleNode is a node that does not run, to be asked what it would do.
func (a *app) idleNode() (*node.Node, error) {
	cfg, options, err := a.load(false)
	if err != nil {
		return nil, err
	}
	return node.New(cfg, options)
}
