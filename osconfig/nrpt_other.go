//go:build !windows

package osconfig

import (
	"context"
	"errors"
)

// edge is no Windows.
func edge() windowsEdge {
	return windowsEdge{
		registry: noRegistry{},
		links:    func() ([]string, error) { return nil, errors.ErrUnsupported },
		notify:   func(context.Context, bool) error { return errors.ErrUnsupported },
	}
}

type noRegistry struct{}

func (noRegistry) keys(string) ([]string, error)        { return nil, errors.ErrUnsupported }
func (noRegistry) get(string, string) (regValue, error) { return regValue{}, errors.ErrUnsupported }
func (noRegistry) set(string, string, regValue) error   { return errors.ErrUnsupported }
func (noRegistry) removeKey(string) error               { return errors.ErrUnsupported }
