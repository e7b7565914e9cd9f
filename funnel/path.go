package funnel

import (
	"errors"
	"path"
	"strings"
)

// checkPath refuses a path of a rule that no request can have.
func checkPath(s string) error {
	switch {
	case len(s) > maxMountPath:
		return errors.New("is too long")
	case !strings.HasPrefix(s, "/"):
		return errors.New("does not start with /")
	case ambiguous(s):
		return errors.New("can be read in two ways: write it without escapes, doubled slashes and dots")
	}
	return nil
}

// covers says whether a path of a rule holds for a request's: itself, or with all below it if it ends in a slash.
func covers(rule, requested string) bool {
	return rule == requested || strings.HasSuffix(rule, "/") && strings.HasPrefix(requested, rule)
}

// ambiguous says whether a decoded path may mean something else to who serves it than to who checks it: it is not
// clean, or becomes so when it is decoded again, when a backslash is taken for a slash, or when parameters are cut off
// its parts, as Java's servers do.
func ambiguous(p string) bool {
	if p == "" || p == "*" {
		return false // OPTIONS * and CONNECT have no path
	}
	if clean := path.Clean(p); p != clean && p != clean+"/" || p[0] != '/' {
		return true
	}
	for part := range strings.SplitSeq(p, "/") {
		name, _, _ := strings.Cut(part, ";")
		if name != part && strings.Trim(name, ".") == "" {
			return true
		}
	}
	for i := range len(p) {
		switch c := p[i]; {
		case c < ' ' || c == 0x7f || c == '\\':
			return true
		case c == '%' && i+2 < len(p) && hexDigit(p[i+1]) >= 0 && hexDigit(p[i+2]) >= 0:
			return true
		}
	}
	return false
}

// localPath is where a visitor goes on to after a login: p if it stays on this site, else otherwise. Browsers take
// //host and /\host for another site, and drop tabs and line ends before they look.
func localPath(p, otherwise string) string {
	if len(p) > maxReturn || !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") || strings.ContainsAny(p, "\\\r\n\t") {
		return otherwise
	}
	if strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return otherwise
	}
	return p
}
