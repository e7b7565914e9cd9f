package funnel

import (
	"net/url"
	"slices"
	"strings"
	"unicode"
)

const (
	struck       = "[struck]"
	maxLogPath   = 1024
	maxLogField  = 512
	longSecret   = 20 // signs from which on a value with letters and digits may be a key
	longPathPart = 32
)

// strikePath is a request's path and query without what opens doors, bounded. Of the query, values of keys that name
// secrets are struck, and all that look like keys; of the path, tokens of our own links, and what looks like a key.
func strikePath(u *url.URL) string {
	p := u.EscapedPath()
	if p == "" {
		p = u.Opaque
	}
	p = strikeParts(bounded(p, maxLogPath))
	if u.RawQuery == "" {
		return p
	}
	return bounded(p+"?"+strikeQuery(bounded(u.RawQuery, maxLogPath)), maxLogPath)
}

// strikeParts strikes parts of a path.
func strikeParts(p string) string {
	parts := strings.Split(p, "/")
	ours, share := false, false
	for i, part := range parts {
		name, parameters, _ := strings.Cut(part, ";")
		switch plain := unescaped(part); {
		case share && part != "", isKeyLike(plain, longPathPart):
			parts[i] = struck
		case strings.Contains(parameters, "="):
			parts[i] = name + ";" + struck // ;jsessionid=…
		default:
			ours = ours || plain == ".meshdns"
			share = ours && plain == "share"
		}
	}
	return strings.Join(parts, "/")
}

func strikeQuery(query string) string {
	var b strings.Builder
	for pair := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		key, value, has := strings.Cut(pair, "=")
		switch {
		case has && (isSecretKey(key) || isKeyLike(unescaped(value), longSecret)):
			b.WriteString(bounded(key, maxWord) + "=" + struck)
		case isKeyLike(unescaped(key), longSecret):
			b.WriteString(struck)
		default:
			b.WriteString(pair)
		}
	}
	return b.String()
}

// secretKeys are in the names of what must not be read by others. One letter too many struck is no harm.
var secretKeys = []string{
	"code", "state", "token", "secret", "pass", "pwd", "key", "auth", "sig", "session", "sid", "jwt", "ticket", "nonce",
	"otp", "pin", "credential", "cookie", "assertion", "saml", "signature", "invite", "share", "hash", "csrf", "xsrf",
}

func isSecretKey(key string) bool {
	key = strings.ToLower(unescaped(key))
	return slices.ContainsFunc(secretKeys, func(word string) bool { return strings.Contains(key, word) })
}

// unescaped is s without escapes, however many times it was escaped.
func unescaped(s string) string {
	for range 3 {
		plain, err := url.QueryUnescape(s)
		if err != nil || plain == s {
			break
		}
		s = plain
	}
	return s
}

// isKeyLike says whether s is long and has the signs of keys, letters and digits mixed, as people do not write.
func isKeyLike(s string, long int) bool {
	if strings.HasPrefix(s, "eyJ") {
		return true // a JSON Web Token
	}
	if len(s) < long {
		return false
	}
	var letters, digits, run, longest int
	for _, r := range s {
		switch {
		case r >= '0' && r <= '9':
			digits, run = digits+1, run+1
		case r < unicode.MaxASCII && unicode.IsLetter(r):
			letters, run = letters+1, run+1
		case strings.ContainsRune("-_~+/=.", r):
			run = 0
		default:
			return false
		}
		longest = max(longest, run)
	}
	return digits >= 2 && letters >= 2 && longest >= 12
}

// strikeReferer is where a visitor came from: the site and the path, and nothing of its query.
func strikeReferer(referer string) string {
	if referer == "" || len(referer) > maxSealed {
		return ""
	}
	u, err := url.Parse(referer)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	return bounded(u.Scheme+"://"+u.Host+strikeParts(u.EscapedPath()), maxLogField)
}

// bounded is s, cut off after n bytes, with a sign that it was.
func bounded(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len("…")], "") + "…"
}
