//go:build !linux

package osconfig

import "errors"

// Elsewhere the permissions are all that a resolv.conf has.

func readXattrs(path string) (map[string][]byte, error) { return nil, nil }

func setXattr(path, name string, value []byte) error { return errors.ErrUnsupported }
