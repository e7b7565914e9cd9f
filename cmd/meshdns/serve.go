package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// serveFlags say what is served and where.
type serveFlags struct {
	public  bool
	command string // for messages: meshdns serve

	https, http, tcp, tls, udp uint16 // ports; 0: not given
	path, name, domain         string

	proxyProtocol   int
	background      bool
	lasts           time.Duration
	allow, deny     []string
	rate, access    string // access: a file
	set, remove     []string
	tlsName, tlsPin string
	insecure        bool
}

// serveCommand is the tree below "serve": for the tailnet.
func (a *app) serveCommand() *cobra.Command {
	return a.servingCommand(serveFlags{command: "meshdns serve"}, "Serve a port, a site, files or a text to the tailnet", "Serve TARGET to the tailnet, by this node's name.")
}

// funnelCommand is the tree below "funnel": for the world.
func (a *app) funnelCommand() *cobra.Command {
	return a.servingCommand(serveFlags{command: "meshdns funnel", public: true}, "Serve a port, a site, files or a text to the world, through the gateway",
		"Serve TARGET to the world, by this node's name and through the gateway, which cannot read what passes: TLS ends here. It waits until\n"+
			"the address works from outside. Where the tailnet is served at 443 already, `meshdns funnel 443` shows just that to the world.")
}

// servingCommand is serve or funnel. Without a word of its tree it serves.
func (a *app) servingCommand(f serveFlags, short, long string) *cobra.Command {
	_, word, _ := strings.Cut(f.command, " ")
	cmd := a.leaf(word+" [TARGET]", short, func(ctx context.Context, args []string) error {
		if len(args) == 0 {
			return &usageError{errors.New("TARGET is missing"), f.command}
		}
		return a.serve(ctx, args[0], f)
	})
	cmd.Long = long + "\n\nTARGET is a port of this machine, HOST:PORT, an http:// or https:// URL, https+insecure://HOST:PORT (this machine's, whose\n" +
		"certificate is not checked), unix:PATH, a file, a directory, text:TEXT, or redirect:[3xx:]URL. It is served for as long as this\n" +
		"command runs, or with --bg until `" + f.command + " off`, which takes the same --https, --name and --set-path."
	cmd.ValidArgsFunction = nil // files are targets
	f.places(cmd)
	flags := cmd.Flags()
	flags.IntVar(&f.proxyProtocol, "proxy-protocol", 0, "`version` of the PROXY protocol, 1 or 2, by which the target is told who comes")
	flags.BoolVar(&f.background, "bg", false, "go on after this command, and after restarts")
	flags.DurationVar(&f.lasts, "for", 0, "end by itself after this `time`, such as 2h")
	flags.StringSliceVar(&f.allow, "allow", nil, "only for addresses of these `ranges`, such as 192.0.2.0/24")
	flags.StringSliceVar(&f.deny, "deny", nil, "not for addresses of these `ranges`")
	flags.StringVar(&f.rate, "rate", "", "how much one client may ask for, such as `10/s`, 100/m or \"10/s burst 50\"")
	flags.StringVar(&f.access, "access", "", "`file` with further rules on who may come, as JSON: passwords, logins, limits; - for stdin")
	flags.StringArrayVar(&f.set, "set-header", nil, "`header`, NAME: VALUE, that the target gets instead of the visitor's")
	flags.StringSliceVar(&f.remove, "remove-header", nil, "`names` of headers that the target does not get")
	flags.StringVar(&f.tlsName, "tls-name", "", "`name` that an https target's certificate is for, if not the target's own")
	flags.StringVar(&f.tlsPin, "tls-pin", "", "`hash` of an https target's public key, sha256//BASE64, which then counts alone")
	flags.BoolVar(&f.insecure, "insecure", false, "believe any certificate of an https+insecure target on another machine")
	flags.Bool("yes", false, "")
	_ = flags.MarkHidden("yes") // which scripts bring along; nothing is asked here
	cmd.AddCommand(a.serveOffCommand(f), a.serveResetCommand(f), a.serveStatusCommand(),
		a.serveShareCommand(f), a.servePasswordCommand())
	return withJSON(cmd)
}

// places are the flags that name a place.
func (f *serveFlags) places(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Uint16Var(&f.https, "https", 0, "`port` for HTTPS; 443 if no port is given")
	flags.Uint16Var(&f.tcp, "tcp", 0, "`port` for bytes as they come")
	flags.Uint16Var(&f.tls, "tls-terminated-tcp", 0, "`port` for TLS, of which the target gets the content")
	if f.public {
		flags.Uint16Var(&f.udp, "udp", 0, "`port` for datagrams")
	} else {
		flags.Uint16Var(&f.http, "http", 0, "`port` for HTTP without TLS")
	}
	flags.StringVar(&f.path, "set-path", "", "`path` of the site, such as /photos; / if not given")
	flags.StringVar(&f.name, "name", "", "service `name` with a certificate of its own, such as photos, instead of this node's name")
	flags.StringVar(&f.domain, "domain", "", "`name` of a zone of yours, such as www.example.com, whose CNAME is this node's name")
}

// place is the kind and the port.
func (f serveFlags) place() (kind string, port uint16, err error) {
	given := 0
	for _, one := range []struct {
		kind string
		port uint16
	}{{"https", f.https}, {"http", f.http}, {"tcp", f.tcp}, {"tls-terminated-tcp", f.tls}, {"udp", f.udp}} {
		if one.port != 0 {
			kind, port = one.kind, one.port
			given++
		}
	}
	switch {
	case given == 0:
		kind = "https"
	case given > 1:
		return "", 0, &usageError{errors.New("several ports: one call for each"), f.command}
	}
	if f.name != "" && f.domain != "" {
		return "", 0, &usageError{errors.New("--name and --domain: one of them"), f.command}
	}
	return kind, port, nil
}

// absoluteTarget is a target that means the same to the daemon, which is in another directory.
func absoluteTarget(target string) (string, error) {
	if rest, ok := strings.CutPrefix(target, "unix:"); ok && rest != "" {
		path, err := filepath.Abs(rest)
		return "unix:" + path, err
	}
	scheme, _, isURL := strings.Cut(target, ":")
	switch {
	case target == "", isURL && len(scheme) > 1 && !strings.ContainsAny(scheme, `./\`):
		return target, nil // text:, redirect:, a URL or HOST:PORT
	case strings.Trim(target, "0123456789") == "":
		return target, nil // a port
	case strings.ContainsRune(target, os.PathSeparator), target == ".", target == "..":
		return filepath.Abs(target)
	}
	if _, err := os.Stat(target); err == nil {
		return filepath.Abs(target)
	}
	return target, nil
}

// maxAccessFile bounds a file of rules.
const maxAccessFile = 48 << 10

// readAccess reads the file of rules. It may hold a provider's secret, which is why it is a file.
func (a *app) readAccess(path string) ([]byte, error) {
	var from io.Reader = a.stdin
	switch path {
	case "":
		return nil, nil
	case "-":
	default:
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, maxAccessFile))
	if err != nil {
		return nil, fmt.Errorf("reading the rules on who may come: %w", err)
	}
	return data, nil
}

// serve has the daemon serve, and stays unless that is for the background.
func (a *app) serve(ctx context.Context, target string, f serveFlags) error {
	client := a.client()
	req := client.ServeRequest()
	var err error
	if req.Kind, req.Port, err = f.place(); err != nil {
		return err
	}
	if req.Target, err = absoluteTarget(target); err != nil {
		return err
	}
	if req.Access, err = a.readAccess(f.access); err != nil {
		return err
	}
	req.Public, req.Path, req.Name, req.Domain = f.public, f.path, f.name, f.domain
	req.ProxyProtocol, req.Background, req.For = f.proxyProtocol, f.background, f.lasts
	req.Allow, req.Deny, req.SetHeaders, req.RemoveHeaders = f.allow, f.deny, f.set, f.remove
	req.Rate, req.TLSName, req.TLSPin, req.Insecure = f.rate, f.tlsName, f.tlsPin, f.insecure
	view := &serveView{app: a, flags: f}
	err = client.Serve(ctx, req, view.told)
	if view.up && ctx.Err() != nil {
		return nil // Ctrl-C is how it ends
	}
	return err
}

// serveOffCommand ends one thing.
func (a *app) serveOffCommand(f serveFlags) *cobra.Command {
	cmd := a.leaf("off", "End what is served in the background at a port, name and path", func(ctx context.Context, _ []string) error {
		kind, port, err := f.place()
		if err != nil {
			return err
		}
		off := a.client().ServeOff()
		off.Public, off.Kind, off.Port, off.Name, off.Domain, off.Path = f.public, kind, port, f.name, f.domain, f.path
		ended, err := a.client().EndServed(ctx, off)
		return a.printEnded(ended, err)
	})
	f.places(cmd)
	cmd.Long = "End what is served in the background: at --https 443 by this node's name, unless other flags are given; with --set-path only that path."
	return withJSON(cmd)
}

// serveResetCommand ends everything.
func (a *app) serveResetCommand(f serveFlags) *cobra.Command {
	who := "the tailnet"
	if f.public {
		who = "the world"
	}
	return withJSON(a.leaf("reset", "End all that "+who+" is served in the background", func(ctx context.Context, _ []string) error {
		off := a.client().ServeOff()
		off.Public, off.All = f.public, true
		ended, err := a.client().EndServed(ctx, off)
		return a.printEnded(ended, err)
	}))
}

// endedResult tells what was ended.
type endedResult struct {
	Schema string   `json:"schema"` // meshdns.serve.off/v1
	Ended  []string `json:"ended"`  // addresses
}

func (a *app) printEnded(ended []string, err error) error {
	if err != nil {
		return err
	}
	return a.print(endedResult{"meshdns.serve.off/v1", ended}, func(w io.Writer) {
		for _, url := range ended {
			fmt.Fprintf(w, "%s\tended\n", url)
		}
	})
}

// serveStatusCommand tells what is served.
func (a *app) serveStatusCommand() *cobra.Command {
	return withJSON(a.leaf("status", "Show what is served, to the tailnet and to the world", func(ctx context.Context, _ []string) error {
		reply, err := ask(ctx, a.client().Served)
		if err != nil {
			return err
		}
		return a.print(reply, func(w io.Writer) {
			for _, p := range reply.Problems {
				fmt.Fprintf(w, "problem: %s\n", p)
			}
			if len(reply.Entries) == 0 {
				fmt.Fprintf(w, "nothing is served\n")
			}
			for _, e := range reply.Entries {
				audience := "tailnet"
				if e.Public {
					audience = "world"
				}
				notes := []string{e.State, e.Source}
				if !e.Until.IsZero() {
					notes = append(notes, "until "+minute(e.Until))
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", e.URL, audience, e.Target, strings.Join(notes, ", "))
				for _, p := range e.Problems {
					fmt.Fprintf(w, "  problem: %s\n", p)
				}
			}
		})
	}))
}
