package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// signTimeout is how long a node may take to bring signatures to its gateway: a call each for some hundreds of them.
const signTimeout = time.Minute

// lockCommand is the tree below "lock".
func (a *app) lockCommand() *cobra.Command {
	cmd := a.group("lock", "Sign the nodes of a tailnet as its owner", a.lockInitCommand(), a.lockSignCommand())
	cmd.Long = "Sign the nodes of a tailnet as its owner. A gateway hands out the keys of nodes, and one that was broken into could hand out others.\n" +
		"Nodes with a lock: in their configuration speak only to nodes whose name, addresses and keys the owner has signed, with a key\n" +
		"that the gateway does not have."
	return cmd
}

// lockInitCommand makes the owner's key.
func (a *app) lockInitCommand() *cobra.Command {
	var file, from string
	var plain bool
	cmd := a.leaf("init", "Make the owner's key", func(ctx context.Context, _ []string) error {
		paths, err := a.places(false)
		if err != nil {
			return err
		}
		if file == "" {
			file = paths.LockFile()
		}
		passphrase := ""
		switch {
		case plain && from != "":
			return &usageError{errors.New("--plain and --passphrase-file"), "meshdns lock init"}
		case !plain:
			if passphrase, err = a.passphrase(ctx, from, true); err != nil {
				return err
			}
			if passphrase == "" {
				return &usageError{errors.New("the passphrase is empty; --plain does without"), "meshdns lock init"}
			}
		}
		made, err := paths.InitLock(file, passphrase)
		if err != nil {
			return err
		}
		a.say("the key is in %s; keep a copy where no gateway is", made.File)
		a.say("next: write the line into the configuration of the gateway and of each node, start them anew, and: meshdns lock sign")
		return a.print(made, func(w io.Writer) { fmt.Fprintf(w, "lock: [%q]\n", made.Key) })
	})
	cmd.Long = "Make the owner's key, on the owner's own machine, which needs no node and had better be no gateway. Printed is the line that each\n" +
		"node's configuration gets. The key is encrypted with a passphrase (age), unless --plain leaves that to the file's mode."
	cmd.Flags().StringVar(&file, "file", "", "`file` for the key (lock.key beside the configuration)")
	cmd.Flags().StringVar(&from, "passphrase-file", "", "`file` whose first line is the passphrase")
	cmd.Flags().BoolVar(&plain, "plain", false, "do not encrypt the key")
	return withJSON(cmd)
}

// lockSigner is one run of lock sign.
type lockSigner struct {
	key, passphrase string // files
	only            []string
	yes             bool
}

// lockSignCommand signs what is not signed yet.
func (a *app) lockSignCommand() *cobra.Command {
	var s lockSigner
	cmd := a.leaf("sign [FILE]", "Sign nodes that are not signed yet", func(ctx context.Context, args []string) error {
		return a.lockSign(ctx, strings.Join(args, ""), s)
	})
	cmd.Long = "Show the nodes that the owner's key has not signed as they are, ask for each, and sign. Compare a node's keys with what\n" +
		"`meshdns key show` prints on it. On a machine of the tailnet the node that runs there tells them, and brings the signatures to the\n" +
		"gateway. On another machine FILE holds what `meshdns gateway nodes --json` printed (- is stdin), and the signatures go to\n" +
		"stdout, for `meshdns gateway sign`."
	cmd.Flags().StringVar(&s.key, "key", "", "`file` of the owner's key (lock.key beside the configuration)")
	cmd.Flags().StringVar(&s.passphrase, "passphrase-file", "", "`file` whose first line is the key's passphrase")
	cmd.Flags().StringSliceVar(&s.only, "node", nil, "only this `node` (repeatable)")
	cmd.Flags().BoolVar(&s.yes, "yes", false, "sign all of them without a question")
	cmd.ValidArgsFunction = nil // files
	return withJSON(cmd)
}

// lockSign signs what is in a file, or what this machine's node knows.
func (a *app) lockSign(ctx context.Context, file string, s lockSigner) error {
	if file == "-" && !s.yes {
		return &usageError{errors.New("with the nodes on stdin nobody can be asked: --yes signs them all"), "meshdns lock sign"}
	}
	paths, err := a.places(false)
	if err != nil {
		return err
	}
	from, err := a.read(file)
	if err != nil {
		return err
	}
	records, err := a.client().LockRecords(ctx, from)
	if err != nil {
		return err
	}
	lock, err := paths.OpenLock(cmp.Or(s.key, paths.LockFile()), func() (string, error) { return a.passphrase(ctx, s.passphrase, false) })
	if err != nil {
		return err
	}
	input := bufio.NewReader(a.stdin)
	signed, err := lock.Sign(records, s.only, func(name string, lines []string) bool { return a.mayBeSigned(name, lines, s.yes, input) })
	if err != nil {
		return err
	}
	if file != "" {
		a.say("next, on the gateway: meshdns gateway sign FILE, with what is on stdout")
		a.json = true // it has no other form
		return a.print(signed, nil)
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	if err := a.client().BringSignatures(ctx, signed); err != nil {
		return err
	}
	return a.print(signed, func(w io.Writer) {
		for _, name := range slices.Sorted(maps.Keys(signed.Signatures)) {
			fmt.Fprintf(w, "%s is signed\n", name)
		}
		if len(signed.Signatures) == 0 {
			fmt.Fprintln(w, "nothing to sign")
		}
	})
}

// mayBeSigned shows a record and asks.
func (a *app) mayBeSigned(name string, lines []string, yes bool, input *bufio.Reader) bool {
	a.say("%s", name)
	for _, line := range lines {
		a.say("  %s", line)
	}
	if yes {
		return true
	}
	fmt.Fprintf(a.stderr, "meshdns: sign %s? [y/N] ", name)
	line, err := input.ReadString('\n')
	if err != nil || !isTerminal(a.stdin) {
		fmt.Fprintln(a.stderr)
	}
	word := strings.ToLower(strings.TrimSpace(line))
	return word == "y" || word == "yes"
}

// gatewaySignCommand takes what the owner has signed.
func (a *app) gatewaySignCommand() *cobra.Command {
	cmd := a.leaf("sign [FILE]", "Take what the owner has signed", func(ctx context.Context, args []string) error {
		from, err := a.read(cmp.Or(strings.Join(args, ""), "-"))
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, signTimeout)
		defer cancel()
		taken, err := a.client().TakeSignatures(ctx, from)
		if err != nil {
			return err
		}
		a.say("%s taken", count(taken, "signature", "signatures"))
		return nil
	})
	cmd.Long = "Take the signatures that `meshdns lock sign FILE` printed, from FILE or from stdin."
	cmd.ValidArgsFunction = nil // files
	return cmd
}

// maxSignFile bounds what is read of nodes and signatures.
const maxSignFile = 64 << 20

// read is a file's content, or stdin for "-"; nil for none.
func (a *app) read(file string) (io.Reader, error) {
	switch file {
	case "":
		return nil, nil
	case "-":
		return a.stdin, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSignFile))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return bytes.NewReader(data), nil
}
