//go:build !linux

package main

import (
	"context"
	"errors"
	"io"
)

// takeoverWord is not used here.
const takeoverWord = "takeover"

func (d *demo) takeOverApart(context.Context) (string, error) {
	return "", errors.ErrUnsupported
}

func showTakeover(context.Context, string, io.Writer) error { return errors.ErrUnsupported }
