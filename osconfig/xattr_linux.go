package osconfig

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// maxXattrs bounds a file's attributes and each of their values; the kernel's own bound for both is 64 KiB.
const maxXattrs = 64 << 10

// readXattrs reads a file's or a link's own extended attributes: ACLs, security labels, and whatever else. A file
// system without them has none.
func readXattrs(path string) (map[string][]byte, error) {
	names := make([]byte, maxXattrs)
	n, err := unix.Llistxattr(path, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var xattrs map[string][]byte
	value := make([]byte, maxXattrs)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue // gone meanwhile, or listed by one layer of the system and unknown to the next
		}
		if err != nil {
			return nil, err
		}
		if xattrs == nil {
			xattrs = map[string][]byte{}
		}
		xattrs[name] = append([]byte{}, value[:n]...)
	}
	return xattrs, nil
}

func setXattr(path, name string, value []byte) error {
	return unix.Lsetxattr(path, name, value, 0)
}
