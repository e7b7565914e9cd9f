//go:build !linux

package tunnel

import "errors"

func errNoChecksums() error { return errors.ErrUnsupported }
