//go:build !unix && !windows

package node

import (
	"errors"
	"os"
)

// lockFile cannot tell here whether another process holds f.
func lockFile(*os.File) (held bool, err error) { return false, errors.ErrUnsupported }
