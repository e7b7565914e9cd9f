package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshdns/meshdns/node"
)

// backupCommand writes what makes the gateway into one encrypted file.
func (a *app) backupCommand() *cobra.Command {
	return a.withPassphrase("backup FILE", "Write the gateway's registry and keys into one encrypted file", func(paths node.Paths, file, passphrase string) error {
		if err := paths.BackupGateway(file, passphrase); err != nil {
			return err
		}
		a.say("%s holds the gateway, encrypted with the passphrase (age)", file)
		return nil
	})
}

// restoreGatewayCommand is the way back.
func (a *app) restoreGatewayCommand() *cobra.Command {
	var force bool
	cmd := a.withPassphrase("restore FILE", "Make this machine the gateway that a backup is of", func(paths node.Paths, file, passphrase string) error {
		if err := paths.RestoreGateway(file, passphrase, force); err != nil {
			return err
		}
		a.say("restored; next: meshdns up")
		return nil
	})
	cmd.Flags().BoolVar(&force, "force", false, "replace the gateway that is there")
	return cmd
}

// withPassphrase is a command on a file that a passphrase protects, while no node runs.
func (a *app) withPassphrase(use, short string, do func(paths node.Paths, file, passphrase string) error) *cobra.Command {
	var from string
	cmd := a.leaf(use, short, func(_ context.Context, args []string) error {
		paths, err := a.places(false)
		if err != nil {
			return err
		}
		passphrase, err := readPassphrase(from)
		if err != nil {
			return err
		}
		return do(paths, args[0], passphrase)
	})
	cmd.Long = short + ". No node may run meanwhile: end it with `meshdns down`."
	cmd.Flags().StringVar(&from, "passphrase-file", "", "`file` whose first line is the passphrase")
	cmd.ValidArgsFunction = nil // files
	return cmd
}

// readPassphrase reads a file's first line.
func readPassphrase(from string) (string, error) {
	if from == "" {
		return "", &usageError{errors.New("--passphrase-file is missing"), "meshdns gateway"}
	}
	f, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", from, err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}
