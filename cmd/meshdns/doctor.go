package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// doctorCommand looks for what keeps names from working. What it finds is a result, and a problem among it exit code 6.
func (a *app) doctorCommand() *cobra.Command {
	cmd := a.leaf("doctor", "Find out what keeps names from working, and how to mend it", func(ctx context.Context, _ []string) error {
		d := a.client().Diagnose(ctx, a.idleNode)
		if err := ctx.Err(); err != nil {
			return err
		}
		err := a.print(d, func(w io.Writer) {
			a.writeFinding(w, d.State, "doctor", fmt.Sprintf("%s, %s, %d ok", count(d.Count("problem"), "problem", "problems"),
				count(d.Count("warning"), "warning", "warnings"), d.Count("ok")))
			for _, f := range d.Findings {
				a.writeFinding(w, f.State, f.Name, f.Detail)
				if f.Mend != "" {
					a.writeFinding(w, "", "", "mend: "+f.Mend)
				}
				for _, fact := range f.Facts {
					a.writeFinding(w, "", "", "fact: "+fact)
				}
			}
		})
		if len(d.Unseen) > 0 {
			a.hint("root would see besides: " + strings.Join(d.Unseen, "; "))
		}
		if err == nil && d.State == "problem" {
			return errDegraded
		}
		return err
	})
	cmd.Long = "Find out what keeps names from working, and how to mend it: who owns the machine's DNS and why, the stub as\n" +
		"programs reach it, upstreams, other programs that meddle with names, clock and links. It changes nothing, works\n" +
		"with and without a running node, takes at most ten seconds, and ends with 6 if it finds a problem."
	return withJSON(cmd)
}

// writeFinding writes one row. Every first cell is painted, the empty ones too: the columns are counted in bytes, those
// of the colour included.
func (a *app) writeFinding(w io.Writer, state, name, detail string) {
	colour := map[string]string{"warning": yellow, "warn": yellow, "problem": red, "fail": red}[state]
	if colour == "" {
		colour = green
	}
	fmt.Fprintf(w, "%s\t%s\t%s\n", a.paint(a.stdout, colour, state), name, detail)
}
