//go:build !linux

package main

import (
	"context"
	"errors"
	"io"
)

func (d *demo) takeover(context.Context) (string, error) { return noTakeover, nil }

func showTakeover(context.Context, string, io.Writer) error { return errors.ErrUnsupported }
