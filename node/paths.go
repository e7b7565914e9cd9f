package node

import (
	"fmt"
	"net"
	"path/filepath"
)

// Paths are the places that a node reads and writes.
type Paths struct {
	Config string // this machine's configuration; the file may be absent
	Map    string // the static map; the file may be absent
	State  string // directory for what outlives the process: drawn ranges, last good map, DNS journal
	Socket string // the control socket

	work int // what a backup's passphrase costs, a logarithm; zero: backupWork
}

// DefaultPaths are the places where nothing else is said: the system's for root, or else the user's XDG base
// directories. With try, what is written goes to places of its own below the user's, so that a node for a first look
// meets no other one. It fails where neither the XDG variables nor HOME say where the user's directories are.
func DefaultPaths(getenv func(string) string, root, try bool) (Paths, error) {
	system := systemPaths(getenv)
	if root && !try {
		return system, nil
	}
	p, err := userPaths(getenv)
	if err != nil {
		return Paths{}, err
	}
	if root {
		p.Config, p.Map = system.Config, system.Map
	}
	if try {
		p.State = filepath.Join(p.State, "try")
		p.Socket = filepath.Join(p.State, "meshdns.sock")
	}
	return p, nil
}

func userPaths(getenv func(string) string) (Paths, error) {
	config, err := xdgDir(getenv, "XDG_CONFIG_HOME", ".config")
	if err != nil {
		return Paths{}, err
	}
	state, err := xdgDir(getenv, "XDG_STATE_HOME", ".local/state")
	if err != nil {
		return Paths{}, err
	}
	p := Paths{
		Config: filepath.Join(config, "meshdns.yaml"),
		Map:    filepath.Join(config, "map.yaml"),
		State:  state,
		Socket: filepath.Join(state, "meshdns.sock"),
	}
	// The specification has no fallback for the runtime directory but a warning; the state directory is as private,
	// which a name under /tmp is not.
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		p.Socket = filepath.Join(dir, "meshdns", "meshdns.sock")
	}
	return p, nil
}

// xdgDir is meshdns's directory under the base directory that variable names, or under its default below HOME. A
// relative value counts as unset (XDG Base Directory Specification, "Basics").
func xdgDir(getenv func(string) string, variable, fallback string) (string, error) {
	if dir := getenv(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, "meshdns"), nil
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, fallback, "meshdns"), nil
	}
	return "", &noHomeError{variable: variable}
}

// noHomeError says that the user has no home directory to keep things in.
type noHomeError struct{ variable string }

func (e *noHomeError) Error() string {
	return fmt.Sprintf("finding the user's directories: neither %s nor HOME is set", e.variable)
}

// Hint says what the user can do.
func (e *noHomeError) Hint() string {
	return "set HOME, or give --config, --map, --state-dir and --socket"
}

// findSocket is the control socket to ask when none is named: the first that something answers on of the user's node,
// the system's, and the user's for a first look. Where nothing does it is the first place looked at.
func findSocket(getenv func(string) string, root bool) string {
	var places []string
	for _, kind := range []struct{ root, try bool }{{root, false}, {true, false}, {root, true}} {
		if p, err := DefaultPaths(getenv, kind.root, kind.try); err == nil {
			places = append(places, p.Socket)
		}
	}
	for _, place := range places {
		// Here only a connection counts: what is not ours to connect to is not the one to ask.
		if conn, err := net.DialTimeout("unix", place, dialTimeout); err == nil {
			conn.Close()
			return place
		}
	}
	return places[0] // the system's is always among them
}
