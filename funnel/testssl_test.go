package funnel

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// finding is one line of what testssl.sh has found.
type finding struct {
	ID       string `json:"id"`
	Severity string `json:"severity"`
	Text     string `json:"finding"`
}

// findings is what testssl.sh finds about name at addr, all but how simulated clients fare.
func (w *world) findings(t *testing.T, addr, name string) (all []finding) {
	t.Helper()
	program, err := exec.LookPath("testssl")
	if err != nil {
		t.Skip("NOT PROVEN: there is no testssl: ", err)
	}
	ip, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "findings.json")
	cmd := exec.CommandContext(t.Context(), program, "--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none", "--ip", ip, "--add-ca", w.ca.file(t),
		"--jsonfile", file, "-p", "-s", "-f", "-P", "-E", "-S", "-h", "-g", "-U", name+":"+port)
	cmd.Dir = dir
	said, err := cmd.CombinedOutput()
	t.Logf("testssl.sh: %v\n%s", err, said)
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// vulnerabilities is all that testssl.sh looks for, by its names.
var vulnerabilities = []string{
	"heartbleed", "CCS", "ticketbleed", "ROBOT", "secure_renego", "secure_client_renego", "CRIME_TLS", "BREACH", "POODLE_SSL",
	"fallback_SCSV", "SWEET32", "FREAK", "DROWN", "LOGJAM", "BEAST", "LUCKY13", "RC4",
}

func TestTestsslFindsNothing(t *testing.T) {
	slow(t)
	w := newWorld(t)
	to := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
		_, _ = io.WriteString(w, "an answer")
	})
	w.set(site("https", "public.example", 443, true, to))
	addr := w.public("public.example", 443, "https")
	if renegotiates(t, addr, "public.example") {
		t.Error("keys are agreed on anew, as often as a visitor likes")
	}
	all := w.findings(t, addr, "public.example")
	found := map[string]finding{}
	for _, f := range all {
		found[f.ID] = f
		if f.Severity != "OK" && f.Severity != "INFO" && !ofTheTest(f.ID) {
			t.Errorf("%s: %s: %s", f.ID, f.Severity, f.Text)
		}
	}
	for _, id := range vulnerabilities {
		if f := found[id]; !ofTheTest(id) && f.Severity != "OK" && f.Severity != "INFO" {
			t.Errorf("%s: %+v", id, f)
		}
	}
	var protocols, ciphers []string
	for _, id := range []string{"SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3"} {
		if f := found[id]; strings.HasPrefix(f.Text, "offered") {
			protocols = append(protocols, id)
		}
	}
	if want := []string{"TLS1_2", "TLS1_3"}; !slices.Equal(protocols, want) {
		t.Errorf("protocols: %v, want %v", protocols, want)
	}
	for _, f := range all {
		if strings.HasPrefix(f.ID, "cipher-tls") {
			words := strings.Fields(f.Text)
			ciphers = append(ciphers, words[len(words)-1])
		}
	}
	slices.Sort(ciphers)
	// With a key for ECDSA, as certs makes them, whose suites of RSA nobody is offered.
	if want := []string{
		"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
		"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
	}; !slices.Equal(ciphers, want) {
		t.Errorf("cipher suites: %v, want %v", ciphers, want)
	}
	if got := gradeOf(protocols, ciphers, found["HSTS_time"].Severity == "OK"); got != "A+" {
		t.Errorf("grade %s", got)
	}
	if got := gradeOf(protocols, ciphers, false); got != "A" {
		t.Errorf("grade %s of a site that does not ask for TLS", got)
	}
	t.Logf("grade A, and A+ with Strict-Transport-Security; %v; %v", protocols, ciphers)
}

// ofTheTest says whether a finding is not about what is served: each has its reason.
func ofTheTest(id string) bool {
	switch id {
	case "OCSP_stapling", "DNS_CAArecord": // the test's certificate and name have neither
	case "security_headers": // they are the site's to send
	case "engine_problem": // the machine's openssl has none for GOST
	case "TLS_session_ticket": // it is one of TLS 1.3, which agrees on a new key as a session resumes; in 1.2 there is none
	case "secure_renego": // asked without a server's name, for whom there is nothing: renegotiates asks with one
	default:
		return strings.HasPrefix(id, "cert_") // of a CA of the test, for two hours
	}
	return true
}

// renegotiates says whether somebody who has shaken hands in TLS 1.2 may do it again.
func renegotiates(t *testing.T, addr, name string) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", "s_client", "-tls1_2", "-servername", name, "-connect", addr)
	cmd.Stdin = strings.NewReader("R\n")
	said, err := cmd.CombinedOutput()
	if !strings.Contains(string(said), "Secure Renegotiation IS supported") || !strings.Contains(string(said), "RENEGOTIATING") {
		t.Fatalf("openssl: %v\n%s", err, said)
	}
	return err == nil
}

// gradeOf is the grade by SSL Labs' rating guide (2009q) for what has no fault that takes from it: of protocols, a key of
// P-256 and cipher suites. Debian 12's testssl.sh gives none.
func gradeOf(protocols, ciphers []string, strict bool) string {
	between := func(of []string, score func(string) int) int {
		low, high := 100, 0
		for _, one := range of {
			low, high = min(low, score(one)), max(high, score(one))
		}
		return (low + high) / 2
	}
	protocol := between(protocols, func(name string) int {
		return map[string]int{"SSLv3": 80, "TLS1": 90, "TLS1_1": 95, "TLS1_2": 100, "TLS1_3": 100}[name]
	})
	const key = 90 // as RSA of 3072 bits
	cipher := between(ciphers, func(name string) int {
		switch {
		case strings.Contains(name, "_256_"), strings.Contains(name, "_CHACHA20_"):
			return 100
		case strings.Contains(name, "_128_"):
			return 80
		}
		return 0
	})
	switch score := (3*protocol + 3*key + 4*cipher) / 10; {
	case protocol == 0 || cipher == 0 || score < 80:
		return "B at most"
	case strict && slices.Contains(protocols, "TLS1_3"):
		return "A+"
	}
	return "A"
}
