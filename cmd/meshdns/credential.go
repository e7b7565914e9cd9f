package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// credentialCommand makes and keeps credentials of programs on nodes.
func (a *app) credentialCommand() *cobra.Command {
	var name, account, id, end string
	var tsig, list bool
	cmd := a.leaf("credential NODE", "Let a program on a node get certificates by acme-dns or RFC 2136", func(ctx context.Context, args []string) error {
		modes := 0
		for _, on := range []bool{list, id != "", end != ""} {
			if on {
				modes++
			}
		}
		switch {
		case modes > 1 || modes > 0 && (tsig || name != "") || (list || end != "") && account != "":
			return &usageError{errors.New("these flags do not go together"), "meshdns gateway credential"}
		case id != "" && account == "":
			return &usageError{errors.New("--account is missing"), "meshdns gateway credential"}
		case list:
			return a.listCredentials(ctx, args[0])
		case id != "" || end != "":
			return a.changeCredential(ctx, args[0], id, account, end)
		}
		return a.makeCredential(ctx, args[0], name, account, tsig)
	})
	cmd.Long = "Let a program on a node get certificates for the node's names: Caddy, Traefik, lego, certbot, cert-manager, Proxmox. Prints what the\n" +
		"program wants, which is a secret and shown this once: an account of acme-dns in the form that lego and cert-manager keep, or with\n" +
		"--tsig a key for dynamic updates (RFC 2136) in the form of BIND. It is good on that node alone.\n\n" +
		"While the program's account at its CA is not known, CAA lets any account of a CA issue for the node's names: tell it with --account."
	f := cmd.Flags()
	f.BoolVar(&tsig, "tsig", false, "a TSIG key for dynamic updates")
	f.StringVar(&name, "name", "", "the node's `name` that acme-dns is to be used for; its own if not given")
	f.StringVar(&account, "account", "", "the program's account at its CA, as a `URL`")
	f.BoolVar(&list, "list", false, "list the node's credentials, and who may issue for its names")
	f.StringVar(&id, "id", "", "record the account of the credential with this `ID`")
	f.StringVar(&end, "end", "", "end the credential with this `ID`")
	return withJSON(cmd)
}

func (a *app) makeCredential(ctx context.Context, node, name, account string, tsig bool) error {
	client := a.client()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := client.MakeCredential(ctx, node, name, account, tsig)
	if err != nil {
		return err
	}
	var failed error
	err = a.print(reply, func(w io.Writer) {
		if key := reply.TSIG; key != nil {
			fmt.Fprintf(w, "key %q {\n  algorithm %s;\n  secret %q;\n};\n", key.Name, key.Algorithm, key.Secret)
			return
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		failed = e.Encode(map[string]any{reply.Name: reply.ACMEDNS})
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	a.say("for a file of mode 0600 on %s; its server is %s", node, reply.Server)
	if account == "" {
		a.hint("once the program has an account at its CA, let no other one issue: meshdns gateway credential " + node + " --id " + reply.ID + " --account URL")
	}
	return nil
}

func (a *app) changeCredential(ctx context.Context, node, id, account, end string) error {
	client := a.client()
	wait, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := client.ChangeCredential(wait, node, id+end, account, end != ""); err != nil {
		return err
	}
	return a.listCredentials(ctx, node)
}

func (a *app) listCredentials(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := a.client().Credentials(ctx, node)
	if err != nil {
		return err
	}
	return a.print(reply, func(w io.Writer) {
		fmt.Fprintf(w, "ID\tKIND\tNAME\tACCOUNT\tMADE\n")
		for _, c := range reply.Credentials {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.ID, c.Kind, orDash(c.Name), orDash(c.Account), c.Made.Local().Format(time.DateTime))
		}
		fmt.Fprintf(w, "\nwho may issue for the node's names, by CAA:\n")
		if len(reply.Issue) == 0 {
			fmt.Fprintf(w, "nobody\n")
		}
		for _, value := range reply.Issue {
			fmt.Fprintf(w, "%s\n", value)
		}
		if n := len(reply.Suspended); n > 0 {
			fmt.Fprintf(w, "any account: that of %d of the credentials is not known\n", n)
		}
	})
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
