package main

import (
	"bufio"
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
	cmd := a.leaf("init", "Make the owner's key", func(context.Context, []string) error {
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
			if passphrase, err = readPassphrase(from); err != nil {
				return err
			}
			if passphrase == "" {
				return &usageError{fmt.Errorf("%s has no passphrase in its first line", from), "meshdns lock init"}
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
		if len(args) == 0 {
			return a.signHere(ctx, s)
		}
		return a.signFile(args[0], s)
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

// signHere signs what this machine's node knows.
func (a *app) signHere(ctx context.Context, s lockSigner) error {
	paths, err := a.places(false)
	if err != nil {
		return err
	}
	lock, err := paths.OpenLock(s.keyFile(paths.LockFile()), func() (string, error) { return readPassphrase(s.passphrase) })
	if err != nil {
		return err
	}
	records, err := a.client().LockRecords(ctx)
	if err != nil {
		return err
	}
	unsigned := lock.Unsigned(records)
	list := unsigned[:0:0]
	input := bufio.NewReader(a.stdin)
	for _, one := range unsigned {
		if s.wants(one.Name) && a.mayBeSigned(one.Name, one.Signable(), s.yes, input) {
			list = append(list, one)
		}
	}
	if err := s.missed(len(list), len(unsigned)); err != nil {
		return err
	}
	signed := lock.Sign(records.Zone, list)
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	if err := a.client().BringSignatures(ctx, signed); err != nil {
		return err
	}
	return a.print(signed, func(w io.Writer) {
		for _, name := range slices.Sorted(maps.Keys(signed.Signatures)) {
			fmt.Fprintf(w, "%s is signed\n", name)
		}
	})
}

// signFile signs what is in a file, for a gateway that this machine does not reach.
func (a *app) signFile(file string, s lockSigner) error {
	paths, err := a.places(false)
	if err != nil {
		return err
	}
	if file == "-" && !s.yes {
		return &usageError{errors.New("with the nodes on stdin nobody can be asked: --yes signs them all"), "meshdns lock sign"}
	}
	from, done, err := a.open(file)
	if err != nil {
		return err
	}
	defer done()
	records, err := paths.ReadLockRecords(from)
	if err != nil {
		return err
	}
	lock, err := paths.OpenLock(s.keyFile(paths.LockFile()), func() (string, error) { return readPassphrase(s.passphrase) })
	if err != nil {
		return err
	}
	unsigned := lock.Unsigned(records)
	list := unsigned[:0:0]
	input := bufio.NewReader(a.stdin)
	for _, one := range unsigned {
		if s.wants(one.Name) && a.mayBeSigned(one.Name, one.Signable(), s.yes, input) {
			list = append(list, one)
		}
	}
	if err := s.missed(len(list), len(unsigned)); err != nil {
		return err
	}
	a.say("next, on the gateway: meshdns gateway sign FILE")
	a.json = true // what is signed has no other form
	return a.print(lock.Sign(records.Zone, list), nil)
}
