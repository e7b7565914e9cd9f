//go:build !linux

package main

import (
	"context"
	"errors"
	"io"
	"net/netip"
)

// takeoverWord is not used here.
const takeoverWord = "takeover"

func takeOverApart(context.Context, string, netip.Addr, io.Writer) (string, error) {
	return "", errors.ErrUnsupported
}

func showTakeover(context.Context, string, io.Writer) error { return errors.ErrUnsupported }
