package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// gatewayCommand is the tree below "gateway".
func (a *app) gatewayCommand() *cobra.Command {
	return a.group("gateway", "Make a gateway, and keep its nodes",
		a.gatewaySignCommand(),
		a.gatewayInitCommand(), a.inviteCommand(), a.nodesCommand(), a.removeCommand(), a.renameCommand(),
		a.credentialCommand(), a.checkGatewayCommand(), a.backupCommand(), a.restoreGatewayCommand(), a.gatewayCACommand())
}

// gatewayInitCommand makes this machine a gateway from its next start on.
func (a *app) gatewayInitCommand() *cobra.Command {
	var zone string
	var public []string
	cmd := a.leaf("init", "Make this machine the gateway of a zone", func(context.Context, []string) error {
		return a.initGateway(zone, public)
	})
	cmd.Long = "Make this machine the gateway of a zone, from the next `meshdns up` on: add that to the configuration, make the keys, and\n" +
		"print the DNS records and the ports that it needs. Nothing that the configuration says is changed."
	cmd.Flags().StringVar(&zone, "zone", "", "the `zone`: a name below a domain of yours")
	cmd.Flags().StringSliceVar(&public, "public", nil, "public `address` of this machine (repeatable)")
	return withJSON(cmd)
}

func (a *app) initGateway(zone string, public []string) error {
	paths, err := a.places(false)
	if err != nil {
		return err
	}
	made, err := paths.InitGateway(zone, public)
	if err != nil {
		return err
	}
	for _, h := range made.Held {
		a.say("%s is held by %s", h.Address, h.Holder)
		a.hint("end it, have it listen elsewhere, or set gateway.listen to an address that is free")
	}
	err = a.print(made, func(w io.Writer) {
		state := "has the gateway already"
		if made.Written {
			state = "gateway added"
		}
		fmt.Fprintf(w, "%s: %s\n", made.Config, state)
		if made.Parent != "" {
			fmt.Fprintf(w, "\nadd to the zone %s, at its DNS provider:\n", made.Parent)
		}
		for _, r := range made.Records {
			fmt.Fprintf(w, "%s\t%s\t%s\n", r.Name, r.Type, r.Data)
		}
		fmt.Fprintf(w, "\nopen in the firewall:\n")
		for _, p := range made.Ports {
			fmt.Fprintf(w, "%d/%s\t%s\n", p.Port, p.Protocol, p.Use)
		}
	})
	if err == nil {
		a.say("next: meshdns up, then: meshdns gateway invite NAME")
	}
	return err
}

// inviteCommand prints an invite alone on stdout, so that it can be piped to where it is needed.
func (a *app) inviteCommand() *cobra.Command {
	var reusable bool
	var life time.Duration
	var tags []string
	cmd := a.leaf("invite [NAME]", "Invite a machine to the tailnet", func(ctx context.Context, args []string) error {
		name := strings.Join(args, "")
		switch {
		case name == "" && !reusable:
			return &usageError{fmt.Errorf("NAME is missing: only a reusable invite has none"), "meshdns gateway invite"}
		case life < time.Second:
			return &usageError{fmt.Errorf("--ttl is at least 1s"), "meshdns gateway invite"}
		}
		made, err := ask(ctx, func(ctx context.Context) (any, error) {
			reply, err := a.client().Invite(ctx, name, tags, life, reusable)
			if err == nil && !a.json {
				_, err = fmt.Fprintln(a.stdout, reply.Invite)
				a.say("good until %s; on the machine to join: meshdns join", reply.Expires.Local().Format(time.DateTime))
				if isTerminal(a.stderr) {
					writeQR(a.stderr, reply.Invite)
				}
			}
			return reply, err
		})
		if err != nil || !a.json {
			return err
		}
		return a.print(made, nil)
	})
	cmd.Long = "Invite a machine to the tailnet: print one word, which is a secret, and on a terminal a QR code of it. `meshdns join` takes\n" +
		"it on the machine that is to join, once. It ends with that, after --ttl, and with `meshdns gateway remove NAME`."
	cmd.Flags().BoolVar(&reusable, "reusable", false, "for any number of machines, which name themselves")
	cmd.Flags().DurationVar(&life, "ttl", time.Hour, "how `long` it can be used")
	cmd.Flags().StringSliceVar(&tags, "tag", nil, "`tag` of the machine, for the policy (repeatable)")
	return withJSON(cmd)
}

// nodesCommand lists what the gateway knows.
func (a *app) nodesCommand() *cobra.Command {
	return withJSON(a.leaf("nodes", "List the nodes of the tailnet, and invites that wait", func(ctx context.Context, _ []string) error {
		reply, err := ask(ctx, a.client().Nodes)
		if err != nil {
			return err
		}
		for _, p := range reply.Nodes {
			if p.Contested != nil {
				a.say("the invite of %s was used again, by another machine, %s ago", p.Name, age(*p.Contested))
				a.hint("if " + p.Name + " is not yours: meshdns gateway remove " + p.Name)
			}
		}
		return a.print(reply, func(w io.Writer) {
			fmt.Fprintf(w, "NAME\tSTATE\tADDRESSES\tSEEN\tMAP\n")
			for _, p := range reply.Nodes {
				seen, confirmed := "-", "behind"
				switch {
				case p.State == "invited":
					seen, confirmed = "until "+p.Since.Local().Format(time.DateTime), "-"
				case p.Seen != nil:
					seen = age(*p.Seen) + " ago"
				}
				if p.Confirmed && p.State == "node" {
					confirmed = "confirmed"
				}
				name := p.Name
				if name == "" {
					name = "-"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", name, p.State, addressWords(p.Addresses), seen, confirmed)
				for _, f := range p.Funnels {
					fmt.Fprintf(w, "\tfunnel\t%s\t\t\n", f)
				}
			}
		})
	}))
}

func addressWords(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "-"
	}
	words := make([]string, len(addrs))
	for i, addr := range addrs {
		words[i] = addr.String()
	}
	return strings.Join(words, ",")
}

// changeResult is what removing or renaming a node led to.
type changeResult struct {
	Schema string   `json:"schema"` // meshdns.gateway.change/v1
	Name   string   `json:"name"`
	Behind []string `json:"behind"` // nodes that have not confirmed it
}

// behindTime is how long a change waits for the nodes.
const behindTime = 3 * time.Second

// changeNodes makes a change and says which nodes do not know of it yet.
func (a *app) changeNodes(ctx context.Context, name, done string, make func(context.Context) error) error {
	_, err := ask(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, make(ctx) })
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, behindTime)
	defer cancel()
	behind, err := a.client().Behind(wait)
	if err != nil {
		return fmt.Errorf("%s, but whether the nodes know is not known: %w", done, err)
	}
	err = a.print(changeResult{"meshdns.gateway.change/v1", name, behind}, func(w io.Writer) {
		if len(behind) == 0 {
			fmt.Fprintf(w, "%s; every node has confirmed it\n", done)
			return
		}
		fmt.Fprintf(w, "%s; not confirmed yet by %s\n", done, strings.Join(behind, ", "))
	})
	if err == nil && len(behind) > 0 {
		a.hint("a node that is away confirms when it is back: meshdns gateway nodes")
	}
	return err
}

// removeCommand ends a node's place, or the invites for it.
func (a *app) removeCommand() *cobra.Command {
	cmd := a.leaf("remove NAME", "Remove a node from the tailnet, or end an invite", func(ctx context.Context, args []string) error {
		return a.changeNodes(ctx, args[0], args[0]+" is removed", func(ctx context.Context) error { return a.client().RemoveNode(ctx, args[0]) })
	})
	cmd.Long = "Remove a node from the tailnet, and end the invites for its name. The gateway stops speaking to it at once, other nodes\n" +
		"when they have confirmed: those that have not after some seconds are named."
	return withJSON(cmd)
}

func (a *app) renameCommand() *cobra.Command {
	return withJSON(a.leaf("rename OLD NEW", "Give a node another name", func(ctx context.Context, args []string) error {
		return a.changeNodes(ctx, args[1], args[0]+" is "+args[1]+" now", func(ctx context.Context) error { return a.client().RenameNode(ctx, args[0], args[1]) })
	}))
}
