package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/meshdns/meshdns/node"
)

// serviceCommand is the tree below "service".
func (a *app) serviceCommand() *cobra.Command {
	return a.group("service", "Have the node start with the machine",
		a.serviceInstallCommand(), a.serviceUninstallCommand(), a.servicePrintCommand())
}

func (a *app) serviceInstallCommand() *cobra.Command {
	cmd := a.leaf("install", "Install the node as a service of systemd, and start it", func(ctx context.Context, _ []string) error {
		return a.service(ctx, (*node.Service).Install)
	})
	cmd.Long = "Install the node as a service of systemd, and start it. It can be run again after an update.\n" +
		"A second unit gives the machine's DNS back before the network comes up, should the power have failed."
	return cmd
}

func (a *app) serviceUninstallCommand() *cobra.Command {
	return a.leaf("uninstall", "End the service, give the machine's DNS back, and remove it", func(ctx context.Context, _ []string) error {
		return a.service(ctx, (*node.Service).Uninstall)
	})
}

// service does something to the service as root.
func (a *app) service(ctx context.Context, do func(*node.Service, context.Context) error) error {
	binary, err := thisProgram()
	if err != nil {
		return err
	}
	return do(&node.Service{Binary: binary, Root: a.root, Report: func(line string) { a.say("%s", line) }}, ctx)
}

func (a *app) servicePrintCommand() *cobra.Command {
	cmd := a.leaf("print SYSTEM", "Print what a service manager needs: systemd, openrc, runit", func(_ context.Context, args []string) error {
		binary, err := thisProgram()
		if err != nil {
			return err
		}
		text, err := node.ServiceText(args[0], binary)
		if errors.Is(err, node.ErrBadRequest) {
			return &usageError{err: err, command: "meshdns service print"}
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(a.stdout, text)
		return err
	})
	cmd.ValidArgs = []string{"systemd", "openrc", "runit"}
	cmd.ValidArgsFunction = nil
	return cmd
}

// thisProgram is where the program that runs is, links resolved: a link in a user's home could lead anywhere later.
func thisProgram() (string, error) {
	path, err := os.Executable()
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("finding this program: %w", err)
	}
	return path, nil
}
