package node

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meshdns/meshdns/node/control"
)

// lego is the program, which is built once.
func lego(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("LAB_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Skip("NOT PROVEN: there is no place to build lego in: ", err)
		}
		cache = filepath.Join(dir, "meshdns-lab")
	}
	dir := filepath.Join(cache, "lego-4.25.2")
	program := filepath.Join(dir, "lego")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	source, err := filepath.Abs(filepath.Join("testdata", "lego"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Skip("NOT PROVEN: there is no place to build lego in: ", err)
	}
	built := filepath.Join(t.TempDir(), "lego")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", built, ".")
	cmd.Dir, cmd.Env = source, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("NOT PROVEN: lego cannot be built: %v\n%s", err, out)
	}
	data, err := os.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	// Somebody else may build it at the same time.
	temporary := fmt.Sprintf("%s.%d", program, os.Getpid())
	if err := os.WriteFile(temporary, data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, program); err != nil {
		t.Fatal(err)
	}
	return program
}

// legoRun is lego at work.
type legoRun struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	id             string // of its credential
}

// startLego has lego get a certificate for nas and what is below it, by a face of the gateway.
func (r *publicRig) startLego(t *testing.T, provider, directory, root string) *legoRun {
	t.Helper()
	made, err := r.node.makeCredential(t.Context(), credentialRequest{Node: "nas", TSIG: provider == "rfc2136"})
	if err != nil {
		t.Fatal(err)
	}
	l := &legoRun{id: made.ID}
	l.cmd = exec.CommandContext(t.Context(), lego(t), directory, provider, r.public, "nas."+zoneOfTests, "*.nas."+zoneOfTests)
	l.cmd.Env = []string{"HOME=" + t.TempDir(), "LEGO_CA_CERTIFICATES=" + root}
	if provider == "rfc2136" {
		l.cmd.Env = append(l.cmd.Env, "RFC2136_NAMESERVER="+r.updates, "RFC2136_TSIG_KEY="+made.TSIG.Name, "RFC2136_TSIG_SECRET="+made.TSIG.Secret,
			"RFC2136_TSIG_ALGORITHM=hmac-sha256.", "RFC2136_POLLING_INTERVAL=1", "RFC2136_SEQUENCE_INTERVAL=1")
	} else {
		made.ACMEDNS.ServerURL = r.acme
		data, err := json.Marshal(map[string]any{made.Name: made.ACMEDNS})
		if err != nil {
			t.Fatal(err)
		}
		storage := filepath.Join(t.TempDir(), "acme-dns.json")
		if err := os.WriteFile(storage, data, 0o600); err != nil {
			t.Fatal(err)
		}
		l.cmd.Env = append(l.cmd.Env, "ACME_DNS_API_BASE="+r.acme, "ACME_DNS_STORAGE_PATH="+storage)
	}
	l.cmd.Stdout, l.cmd.Stderr = &l.stdout, &l.stderr
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return l
}

// Real lego gets a certificate with a name and its wildcard by both faces, at the same time, from a real CA that asks the gateway.
func TestLegoGetsCertificates(t *testing.T) {
	key, err := control.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	lego(t)
	r := newPublicRig(t, key, rigOptions{heard: true})
	directory, root := startPebble(t, r.public)
	runs := []*legoRun{r.startLego(t, "rfc2136", directory, root), r.startLego(t, "acme-dns", directory, root)}
	for _, l := range runs {
		if err := l.cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, &l.stderr)
			continue
		}
		account, chain, _ := strings.Cut(l.stdout.String(), "\n")
		block, _ := pem.Decode([]byte(chain))
		if block == nil || !strings.HasPrefix(account, strings.TrimSuffix(directory, "dir")) {
			t.Fatalf("%s", &l.stdout)
		}
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !slices.Equal(slices.Sorted(slices.Values(leaf.DNSNames)), []string{"*.nas." + zoneOfTests, "nas." + zoneOfTests}) {
			t.Errorf("%v, %v", leaf, err)
		}
	}
	// Any account may issue, until these are known.
	g := &r.node.gateway
	if got := g.registry.Published("nas"); !slices.Equal(got.Suspended, []string{runs[0].id, runs[1].id}) {
		t.Errorf("%+v", got)
	}
	for _, text := range g.registry.Published("nas").Texts {
		if text.By == runs[0].id {
			t.Errorf("%+v stays, though its writer took it away", text) // clients of acme-dns do not
		}
	}
}

// Real nsupdate adds and removes values, and is refused everything else.
func TestNsupdatePublishes(t *testing.T) {
	program, err := exec.LookPath("nsupdate")
	if err != nil {
		t.Skip("NOT PROVEN: there is no nsupdate: .ci/deps installs it")
	}
	key, err := control.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	r := newPublicRig(t, key, rigOptions{heard: true})
	made, err := r.node.makeCredential(t.Context(), credentialRequest{Node: "nas", TSIG: true})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	text := fmt.Sprintf("key %q {\n  algorithm %s;\n  secret %q;\n};\n", made.TSIG.Name, made.TSIG.Algorithm, made.TSIG.Secret)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(r.updates)
	if err != nil {
		t.Fatal(err)
	}
	send := func(args []string, lines ...string) (string, error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, append(args, "-k", file, "-t", "30")...)
		cmd.Stdin = strings.NewReader(fmt.Sprintf("server %s %s\nzone %s\n%s\nsend\n", host, port, zoneOfTests, strings.Join(lines, "\n")))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	name := challengeOf("nas")
	for _, args := range [][]string{nil, {"-v"}} { // over UDP, and over TCP
		if out, err := send(args, "update add "+name+". 60 TXT "+testDigest(1), "update add "+name+". 60 TXT \""+testDigest(2)+"\""); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := r.texts(t, name); got != "NOERROR 1="+testDigest(1)+" 1="+testDigest(2) {
			t.Error(got)
		}
		for _, line := range []string{
			"update add _acme-challenge.tv." + zoneOfTests + ". 60 TXT " + testDigest(3),
			"update add nas." + zoneOfTests + ". 60 A 192.0.2.1",
			"update add " + name + ". 60 CNAME " + name + ".",
			"update add " + name + ". 60 TXT v=spf1",
			"update delete " + zoneOfTests + ". SOA",
			"prereq yxdomain nas." + zoneOfTests + ".\nupdate add " + name + ". 60 TXT " + testDigest(3),
		} {
			if out, err := send(args, line); err == nil || !strings.Contains(out, "REFUSED") && !strings.Contains(out, "NOTIMP") {
				t.Errorf("%s: %v %s", line, err, out)
			}
		}
		if got := r.texts(t, name); got != "NOERROR 1="+testDigest(1)+" 1="+testDigest(2) {
			t.Error(got)
		}
		if out, err := send(args, "update delete "+name+". TXT "+testDigest(1), "update delete "+name+"."); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if got := r.texts(t, name); strings.Contains(got, "=") {
			t.Error(got)
		}
	}
	if err := r.node.gateway.registry.SetCredential(t.Context(), "nas", made.ID, "", true); err != nil {
		t.Fatal(err)
	}
	if out, err := send(nil, "update add "+name+". 60 TXT "+testDigest(1)); err == nil || !strings.Contains(out, "BADKEY") {
		t.Errorf("a key that has ended: %v %s", err, out)
	}
}
