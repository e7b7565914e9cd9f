package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// trustTimeout is how long the system may take for its store of roots.
const trustTimeout = 3 * time.Minute

// trustResult is what came of it.
type trustResult struct {
	Schema      string `json:"schema"` // meshdns.cert.trust/v1
	Trusted     bool   `json:"trusted"`
	Zone        string `json:"zone,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	Where       string `json:"where,omitempty"`
}

// certTrustCommand has the system believe the tailnet's own CA.
func (a *app) certTrustCommand() *cobra.Command {
	var remove, show bool
	cmd := a.leaf("trust", "Have this machine's programs believe the tailnet's own CA", func(ctx context.Context, _ []string) error {
		ctx, cancel := context.WithTimeout(ctx, trustTimeout)
		defer cancel()
		switch {
		case remove && show:
			return &usageError{errors.New("--remove and --print exclude each other"), "meshdns cert trust"}
		case remove:
			return a.distrust(ctx)
		}
		return a.trust(ctx, show)
	})
	cmd.Long = "Have this machine's programs believe the tailnet's own CA (certs.ca: local): its root goes into the system's store, which most\n" +
		"programs read. It can certify names of the tailnet's zone and nothing else; a root that could is refused. Firefox, and Chromium on\n" +
		"Linux, have stores of their own: give them what --print prints."
	cmd.Flags().BoolVar(&remove, "remove", false, "have them believe it no longer; this needs no daemon")
	cmd.Flags().BoolVar(&show, "print", false, "print the root as PEM and change nothing")
	return withJSON(cmd)
}

func (a *app) trust(ctx context.Context, show bool) error {
	root, err := ask(ctx, a.client().CARoot)
	if err != nil {
		return err
	}
	a.say("root of %s, good until %s", root.Zone, root.Until.Local().Format(time.DateOnly))
	a.say("SHA-256 %s", root.Fingerprint)
	a.say("it may certify names in %s, and no other name, address, mailbox or URI", root.Zone)
	if show {
		return a.print(root, func(w io.Writer) { fmt.Fprint(w, root.PEM) })
	}
	paths, err := a.places(false)
	if err != nil {
		return err
	}
	where, err := paths.TrustRoot(ctx, root.PEM)
	if err != nil {
		return err
	}
	return a.print(trustResult{"meshdns.cert.trust/v1", true, root.Zone, root.Fingerprint, where}, func(w io.Writer) {
		fmt.Fprintf(w, "trusted: %s\n", where)
	})
}

func (a *app) distrust(ctx context.Context) error {
	paths, err := a.places(false)
	if err != nil {
		return err
	}
	was, err := paths.DistrustRoot(ctx)
	if err != nil {
		return err
	}
	return a.print(trustResult{Schema: "meshdns.cert.trust/v1"}, func(w io.Writer) {
		if !was {
			fmt.Fprintln(w, "nothing was trusted")
			return
		}
		fmt.Fprintln(w, "no longer trusted")
	})
}

// gatewayCACommand is the tree below "gateway ca".
func (a *app) gatewayCACommand() *cobra.Command {
	return a.group("ca", "Look at the tailnet's own CA, and keep its root elsewhere", a.caShowCommand(), a.caSignCommand())
}

func (a *app) caShowCommand() *cobra.Command {
	cmd := a.leaf("show", "Show the CA, which is made when it is first asked for", func(ctx context.Context, _ []string) error {
		ca, err := ask(ctx, a.client().TailnetCA)
		if err != nil {
			return err
		}
		err = a.print(ca, func(w io.Writer) {
			fmt.Fprintf(w, "zone\t%s\n", ca.Zone)
			fmt.Fprintf(w, "root\tSHA-256 %s\n", ca.Fingerprint)
			fmt.Fprintf(w, "until\t%s\n", ca.Until.Local().Format(time.DateOnly))
			fmt.Fprintf(w, "intermediate\tuntil %s\n", ca.Intermediate.Local().Format(time.DateOnly))
			where := "elsewhere"
			if ca.RootKey {
				where = ca.Directory
			}
			fmt.Fprintf(w, "root's key\t%s\n", where)
			if ca.Request != "" {
				fmt.Fprintf(w, "to be signed\t%s\n", ca.Request)
			}
		})
		if err == nil && ca.Request != "" {
			a.hint("where the root's key is: meshdns gateway ca sign intermediate.csr > intermediate.crt; then bring that back to " + ca.Directory)
		}
		return err
	})
	return withJSON(cmd)
}

// caSignCommand runs where the root is, which may be no node at all.
func (a *app) caSignCommand() *cobra.Command {
	var root string
	cmd := a.leaf("sign REQUEST", "Sign a gateway's next intermediate with a root that is kept elsewhere", func(_ context.Context, args []string) error {
		paths, err := a.places(false)
		if err != nil {
			return err
		}
		signed, err := paths.SignIntermediate(args[0], root)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(signed)
		return err
	})
	cmd.Long = "Sign a gateway's next intermediate with a root that is kept elsewhere. To keep it there, move root.key from the gateway's\n" +
		"directory ca to a machine that is seldom on, beside a copy of root.crt. The gateway writes a request, ca/intermediate.csr, each 45 days,\n" +
		"and says so; what this prints goes to ca/intermediate.crt there, within 45 days more."
	cmd.Flags().StringVar(&root, "root", "", "`directory` of root.crt and root.key; default: ca in the state directory")
	cmd.ValidArgsFunction = nil // files
	return cmd
}
