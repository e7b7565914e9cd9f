package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// checkGatewayCommand looks at a gateway from where it runs. What it finds is a result, and a failure among it exit code 6.
func (a *app) checkGatewayCommand() *cobra.Command {
	var zone, resolver string
	var public []string
	cmd := a.leaf("check [ZONE]", "Find out what keeps the world from a gateway, and how to mend it", func(ctx context.Context, args []string) error {
		if len(args) > 0 && zone != "" {
			return &usageError{errors.New("ZONE and --zone"), "meshdns gateway check"}
		}
		return a.checkGateway(ctx, zone+strings.Join(args, ""), public, resolver)
	})
	cmd.Long = "Find out what keeps the world from a gateway, and how to mend it: the delegation of its zone, glue and DS records,\n" +
		"each name server over UDP and TCP, its ports, its clock. It changes nothing, takes at most 40 seconds, and ends with\n" +
		"6 if something fails. On the gateway and on its nodes it knows which zone is meant; on others name it. A firewall in\n" +
		"front of the gateway is seen from elsewhere only."
	cmd.Flags().StringVar(&zone, "zone", "", "the `zone`, instead of ZONE")
	cmd.Flags().StringSliceVar(&public, "public", nil, "public `address` that the gateway is to have (repeatable)")
	cmd.Flags().StringVar(&resolver, "resolver", "", "`address` of a resolver to ask where the zone above is, instead of the root servers")
	return withJSON(cmd)
}

func (a *app) checkGateway(ctx context.Context, zone string, public []string, resolver string) error {
	cfg, options, err := a.load(false)
	if err != nil {
		return err
	}
	reply, err := options.Paths.CheckGateway(ctx, cfg, zone, public, resolver)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	err = a.print(reply, func(w io.Writer) {
		for _, f := range reply.Findings {
			a.writeFinding(w, f.State, f.Name, f.Detail)
			if f.Hint != "" {
				a.writeFinding(w, "", "", "hint: "+f.Hint)
			}
			for _, r := range f.Records {
				a.writeFinding(w, "", "", fmt.Sprintf("record: %s %s %s", r.Name, r.Type, r.Data))
			}
		}
	})
	if err == nil && reply.State == "fail" {
		return errDegraded
	}
	return err
}
