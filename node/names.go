package node

import (
	"strings"

	"golang.org/x/net/idna"
)

// defaultZone is the zone of a machine that nobody gave one: "internal" is reserved for private use by ICANN.
const defaultZone = "mesh.internal"

// maxLabel and maxName bound a label and a name in presentation form (RFC 1035, 2.3.4).
const (
	maxLabel = 63
	maxName  = 253
)

// checkLabel makes a label canonical: lower case, as an A-label. The message says what is wrong with it, or is empty.
// Letters, digits and hyphens only (RFC 1123, 2.1); other letters by IDNA2008 as for looking names up (UTS 46).
func checkLabel(s string) (label, msg string) {
	switch {
	case s == "":
		return "", "empty"
	case strings.Contains(s, "."):
		return "", "one label is wanted, without dots"
	case strings.HasPrefix(s, "_"):
		return "", "labels that start with _ are for records, not for machines"
	}
	label = strings.ToLower(s)
	if international, encoded := !isASCII(s), strings.HasPrefix(label, "xn--"); international || encoded {
		ascii, err := idna.Lookup.ToASCII(s)
		if err != nil || international && encoded || hasReservedHyphens(ascii) {
			return "", "not a valid international label (IDNA2008)"
		}
		label = ascii
	}
	return label, checkLDH(label)
}

// hasReservedHyphens reports whether what an A-label stands for has hyphens in the third and fourth place, which the
// lookup profile lets pass (RFC 5891, 4.2.3.1).
func hasReservedHyphens(ascii string) bool {
	u, err := idna.Lookup.ToUnicode(ascii)
	runes := []rune(u)
	return err != nil || len(runes) >= 4 && runes[2] == '-' && runes[3] == '-'
}

// checkLDH says what is wrong with a lower-case ASCII label, or nothing.
func checkLDH(label string) string {
	for _, c := range []byte(label) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return "not a valid label: only letters, digits and hyphens"
		}
	}
	switch {
	case label == "":
		return "empty"
	case len(label) > maxLabel:
		return "longer than 63 characters"
	case label[0] == '-' || label[len(label)-1] == '-':
		return "not a valid label: starts or ends with a hyphen"
	case len(label) >= 4 && label[2:4] == "--" && !strings.HasPrefix(label, "xn--"):
		return "not a valid label: hyphens in the third and fourth place are reserved (RFC 5891, 4.2.3.1)"
	}
	return ""
}

// checkDomain makes a domain name canonical: lower case, A-labels, no final dot. The message says what is wrong with
// it, or is empty. Labels may start with an underscore, as those of services do.
func checkDomain(s string) (domain, msg string) {
	trimmed := strings.TrimSuffix(s, ".")
	if trimmed == "" {
		return "", "empty"
	}
	labels := strings.Split(trimmed, ".")
	for i, l := range labels {
		service := strings.TrimPrefix(l, "_")
		label, msg := checkLabel(service)
		if msg != "" {
			return "", "not a valid name: " + labelProblem(l, msg)
		}
		labels[i] = l[:len(l)-len(service)] + label
	}
	domain = strings.Join(labels, ".")
	if len(domain) > maxName {
		return "", "not a valid name: longer than 253 characters"
	}
	return domain, ""
}

func labelProblem(label, msg string) string {
	if label == "" {
		return "an empty label"
	}
	return "label " + shownValue(label) + ": " + strings.TrimPrefix(msg, "not a valid label: ")
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// foldName brings a name to the form in which names are compared, without judging it.
func foldName(s string) string {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if isASCII(s) {
		return s
	}
	if ascii, err := idna.Lookup.ToASCII(s); err == nil {
		return ascii
	}
	return s
}

// within reports whether name is domain or lies below it; both canonical.
func within(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}
