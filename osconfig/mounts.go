package osconfig

import (
	"bufio"
	"bytes"
	"strconv"
	"strings"
)

// mount is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	point    string // where it is
	kind     string // type of the file system
	source   string
	readOnly bool // the mount itself, or all of the file system
}

func (m mount) String() string {
	access := "writable"
	if m.readOnly {
		access = "read-only"
	}
	return m.kind + " from " + m.source + ", " + access
}

// parseMounts reads a mountinfo. Lines that it cannot read are left out.
func parseMounts(data []byte) []mount {
	var mounts []mount
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20) // overlays have long options
	for lines.Scan() {
		// ID parent major:minor root point options [optional ...] - type source superoptions
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(super) < 3 {
			continue
		}
		mounts = append(mounts, mount{
			point:    unescapeOctal(fields[4]),
			kind:     super[0],
			source:   unescapeOctal(super[1]),
			readOnly: hasOption(fields[5], "ro") || hasOption(super[2], "ro"),
		})
	}
	return mounts
}

func hasOption(list, option string) bool {
	for o := range strings.SplitSeq(list, ",") {
		if o == option {
			return true
		}
	}
	return false
}

// unescapeOctal undoes the kernel's \040 for spaces and the like.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountOn is the mount whose point is exactly path, of several the last, which covers the others.
func mountOn(mounts []mount, path string) *mount {
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].point == path {
			return &mounts[i]
		}
	}
	return nil
}
