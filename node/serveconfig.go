package node

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshdns/meshdns/funnel"
)

// serveConfig is one thing that the configuration has served.
type serveConfig struct {
	Name          string      `yaml:"name" doc:"a service name of this node; empty: its own name"`
	Domain        string      `yaml:"domain" doc:"instead, a name of a zone of yours, whose CNAME is this node's name"`
	Funnel        bool        `yaml:"funnel" doc:"to the world, by the gateway, and not to the tailnet"`
	Kind          string      `yaml:"kind" doc:"https, http, tcp, tls-terminated-tcp or udp; https if empty"`
	Port          uint16      `yaml:"port" doc:"the visitor's; 443 for https and 80 for http if 0"`
	Path          string      `yaml:"path" doc:"of https and http; / if empty"`
	Target        string      `yaml:"target" doc:"a port, HOST:PORT, http:// or https:// URL, https+insecure://, unix:PATH, a file or directory (relative to this file with ./), text:TEXT or redirect:[3xx:]URL; files and sockets only if root owns this file"`
	ProxyProtocol uint16      `yaml:"proxy_protocol" doc:"version of the PROXY protocol that the target gets, 1 or 2; 0: none"`
	SetHeaders    []string    `yaml:"set_headers" doc:"NAME: VALUE, that the target gets instead of the visitor's"`
	RemoveHeaders []string    `yaml:"remove_headers" doc:"names of headers that the target does not get"`
	TLSName       string      `yaml:"tls_name" doc:"the name that an https target's certificate is for, if not the target's"`
	TLSPin        string      `yaml:"tls_pin" doc:"sha256//BASE64 of an https target's public key"`
	Insecure      bool        `yaml:"insecure" doc:"believe any certificate of an https+insecure target on another machine"`
	Access        serveAccess `yaml:"access" doc:"who may come: allow, deny, nodes, rate, methods, paths, basic, login and so on; see the README"`

	at string // the place in the file
}

// serveAccess are rules on who may come, as a mapping or as its JSON.
type serveAccess struct{ rules *funnel.Access }

// decodeItem reads the keys that the rules have in JSON.
func (a *serveAccess) decodeItem(d *decoder, it *item, path string) {
	switch it.kind {
	case nullItem:
	case scalarItem:
		if it.text == "" {
			return
		}
		if err := a.UnmarshalText([]byte(it.text)); err != nil {
			d.wrong(it, path, err.Error())
		}
	default:
		a.rules = &funnel.Access{}
		d.into(it, path, a.rules)
	}
}

// UnmarshalText reads the rules' JSON.
func (a *serveAccess) UnmarshalText(text []byte) error {
	a.rules = &funnel.Access{}
	return strictJSON(text, a.rules)
}

// MarshalText is the rules' JSON, without what opens doors.
func (a serveAccess) MarshalText() ([]byte, error) {
	if a.rules == nil {
		return nil, nil
	}
	return json.Marshal(a.rules.Redacted())
}

// request is what the block asks for.
func (c serveConfig) request() (serveRequest, error) {
	req := serveRequest{
		Public: c.Funnel, Kind: c.Kind, Port: c.Port, Name: c.Name, Domain: c.Domain, Path: c.Path, Target: c.Target,
		ProxyProtocol: int(c.ProxyProtocol), SetHeaders: c.SetHeaders, RemoveHeaders: c.RemoveHeaders,
		TLSName: c.TLSName, TLSPin: c.TLSPin, Insecure: c.Insecure, Background: true,
	}
	if c.Access.rules == nil {
		return req, nil
	}
	var err error
	req.Access, err = json.Marshal(c.Access.rules)
	return req, err
}

// serve checks one block by itself.
func (v *validator) serve(path string, c serveConfig, trusted bool) {
	if c.Target == "" {
		v.add(path+".target", "", "missing").Advice = "name what is served, such as 3000 or /srv/www"
		return
	}
	if (filepath.IsAbs(c.Target) || strings.HasPrefix(c.Target, "unix:")) && !trusted {
		v.add(path+".target", c.Target, "files and sockets are served only from a file that root owns and nobody else can write").
			Advice = "chown root and chmod go-w the configuration, or use meshdns serve"
	}
	if c.Name != "" && c.Domain != "" {
		v.add(path+".domain", c.Domain, "besides name").Advice = "a name of the tailnet, or one of your own zone"
	}
	req, err := c.request()
	var s served
	if err == nil {
		s, err = sampleOf(req)
	}
	if err == nil {
		err = entriesOf([]served{s})[0].Check()
	}
	if err != nil {
		v.add(path, "", err.Error()).Advice = hintOf(err)
	}
}

// sampleOf is what a request asks for, on a node whose name is not known.
func sampleOf(req serveRequest) (served, error) {
	s, err := req.served()
	if err == nil {
		err = s.fill()
	}
	if s.Kind != kindTCP && s.Kind != kindUDP {
		s.Name = "node.example"
	}
	return s, err
}

// servedByConfig is what the configuration's blocks mean on this node now, and what of them cannot be.
func (n *Node) servedByConfig() (list []served, wrong []string) {
	s := &n.serving
	s.mu.Lock()
	blocks := s.blocks
	s.mu.Unlock()
	for _, b := range blocks {
		one, err := n.servedByBlock(b)
		for _, other := range list {
			if err == nil {
				err = clash(one, other)
			}
		}
		if err == nil && len(list) >= maxServed {
			err = fmt.Errorf("more than %d entries", maxServed)
		}
		if err != nil {
			wrong = append(wrong, b.at+": "+err.Error())
			continue
		}
		list = append(list, one)
	}
	return list, wrong
}

func (n *Node) servedByBlock(b serveConfig) (served, error) {
	req, err := b.request()
	if err != nil {
		return served{}, err
	}
	one, err := n.wish(req)
	one.from, one.at = fromConfig, b.at
	return one, err
}

// takeConfiguredNames gets the service names that the configuration serves and nobody has. What it does not get, status tells.
func (n *Node) takeConfiguredNames(ctx context.Context) {
	if !n.hasGateway() {
		return
	}
	for _, s := range n.serving.current() {
		if s.from != fromConfig || s.Name == "" || s.Domain || n.hasName(s.Name) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, lineTime)
		if err := n.takeName(ctx, s.Name); err != nil {
			n.log.Debug("a name that the configuration serves is not to be had", "name", s.Name, "err", err)
		}
		cancel()
	}
}

// watchConfig follows what the configuration's file has served. A file that is wrong changes nothing, and status says so.
func (n *Node) watchConfig(ctx context.Context) error {
	path := n.opt.Paths.Config
	if path == "" {
		<-ctx.Done()
		return nil
	}
	dirs := newDirWatch(path, n.log)
	defer dirs.close()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	settled := time.NewTimer(0) // whatever changed between the first reading and now
	defer settled.Stop()
	var seen os.FileInfo
	var last [sha256.Size]byte
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-dirs.events():
			dirs.forget(e)
			settled.Reset(quiet)
		case err := <-dirs.errors():
			n.log.Warn("watching the configuration", "path", path, "err", err)
			settled.Reset(quiet)
		case <-poll.C:
			if info, err := os.Stat(path); err == nil && (seen == nil || !sameState(info, seen)) {
				settled.Reset(0)
			}
		case <-settled.C:
			dirs.follow(path)
			seen, _ = os.Stat(path)
			data, err := readFile(path, maxConfig)
			if sum := sha256.Sum256(data); err == nil && sum != last {
				last = sum
				n.rereadServed(path)
			}
		}
	}
}

// rereadServed takes over what the configuration's file has served by now.
func (n *Node) rereadServed(path string) {
	cfg, err := LoadConfigFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = cfg.Validate()
	}
	s := &n.serving
	s.mu.Lock()
	s.bad = err
	if err == nil {
		s.blocks = cfg.Serve
	}
	s.mu.Unlock()
	if err != nil {
		n.log.Error("the configuration's file is not taken over, what was served stays", "err", err)
		return
	}
	n.applyServed()
	s.again()
}
