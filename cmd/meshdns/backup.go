package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// backupTime is how long a node may take for a backup: most of it goes into making a key of the passphrase.
const backupTime = 2 * time.Minute

// backupCommand writes what makes the gateway into one encrypted file.
func (a *app) backupCommand() *cobra.Command {
	var from string
	var force bool
	cmd := a.leaf("backup FILE", "Write the gateway's registry and keys into one encrypted file", func(ctx context.Context, args []string) error {
		paths, err := a.places(false)
		if err != nil {
			return err
		}
		passphrase, err := a.passphrase(ctx, from, true)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, backupTime)
		defer cancel()
		if err := paths.BackupGateway(ctx, a.client(), args[0], passphrase, force); err != nil {
			return err
		}
		a.say("%s holds the gateway, encrypted with the passphrase (age)", args[0])
		return nil
	})
	cmd.Long = "Write the gateway's registry and keys into one encrypted file, while the node runs or not. The passphrase is asked for on\n" +
		"the terminal, twice, or read from --passphrase-file."
	cmd.Flags().StringVar(&from, "passphrase-file", "", "`file` whose first line is the passphrase")
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it exists, once the new backup is whole")
	cmd.ValidArgsFunction = nil // files
	return cmd
}

// restoreGatewayCommand is the way back.
func (a *app) restoreGatewayCommand() *cobra.Command {
	var from string
	var force bool
	cmd := a.leaf("restore FILE", "Make this machine the gateway that a backup is of", func(ctx context.Context, args []string) error {
		paths, err := a.places(false)
		if err != nil {
			return err
		}
		passphrase, err := a.passphrase(ctx, from, false)
		if err != nil {
			return err
		}
		made, err := paths.RestoreGateway(args[0], passphrase, force)
		if err != nil {
			return err
		}
		a.say("restored, as it was at %s; next: meshdns up", made.Local().Format(time.DateTime))
		a.say("nodes that were removed since then are in it again, and those that joined since then have to join anew: look at meshdns gateway nodes")
		return nil
	})
	cmd.Long = "Make this machine the gateway that a backup is of. No node may run meanwhile: end it with `meshdns down`. The passphrase\n" +
		"is asked for on the terminal, or read from --passphrase-file."
	cmd.Flags().StringVar(&from, "passphrase-file", "", "`file` whose first line is the passphrase")
	cmd.Flags().BoolVar(&force, "force", false, "replace the gateway that is there")
	cmd.ValidArgsFunction = nil // files
	return cmd
}

// passphrase reads a passphrase from a file or from the terminal, there twice if it is a new one. It has no flag: a command line
// can be read by others.
func (a *app) passphrase(ctx context.Context, from string, fresh bool) (string, error) {
	if from != "" {
		return readPassphrase(from)
	}
	tty, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(tty.Fd())) {
		return "", &usageError{errors.New("--passphrase-file is missing, and there is no terminal to ask on"), "meshdns gateway"}
	}
	first, err := a.askSecret(ctx, tty, "passphrase: ")
	if err != nil || !fresh {
		return first, err
	}
	again, err := a.askSecret(ctx, tty, "again: ")
	if err == nil && again != first {
		err = errors.New("the second passphrase is another one: nothing was done")
	}
	return first, err
}

// askSecret asks on a terminal that shows nothing of what is typed. Whatever ends it, the terminal is as before.
func (a *app) askSecret(ctx context.Context, tty *os.File, prompt string) (string, error) {
	before, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return "", fmt.Errorf("asking for the passphrase: %w", err)
	}
	type line struct {
		text []byte
		err  error
	}
	read := make(chan line, 1) // what reads a terminal cannot be stopped; the process ends soon
	fmt.Fprint(a.stderr, prompt)
	go func() {
		text, err := term.ReadPassword(int(tty.Fd()))
		read <- line{text, err}
	}()
	defer fmt.Fprintln(a.stderr)
	select {
	case <-ctx.Done():
		return "", errors.Join(ctx.Err(), term.Restore(int(tty.Fd()), before))
	case got := <-read:
		if got.err != nil {
			return "", fmt.Errorf("asking for the passphrase: %w", got.err)
		}
		return string(bytes.TrimRight(got.text, "\r")), nil
	}
}

// readPassphrase reads a file's first line.
func readPassphrase(from string) (string, error) {
	f, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return firstLine(f, from)
}

// firstLine reads the first line of what has that name.
func firstLine(from io.Reader, name string) (string, error) {
	data, err := io.ReadAll(io.LimitReader(from, 4096))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}
