package node

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
)

func gatewayState(t *testing.T) Paths {
	t.Helper()
	p := Paths{State: t.TempDir(), work: 10}
	s, err := loadSecrets(p.State)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.save(p.State); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(p.State, caDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range backupFiles() {
		if name == secretsFile {
			continue
		}
		if err := os.WriteFile(filepath.Join(p.State, name), []byte("marked "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestABackupComesBackWhole(t *testing.T) {
	from := gatewayState(t)
	file := filepath.Join(t.TempDir(), "backup")
	if err := from.BackupGateway(t.Context(), Client{}, file, "short", false); err == nil {
		t.Error("a short passphrase is taken")
	}
	if err := from.BackupGateway(t.Context(), Client{}, file, "correct horse", false); err != nil {
		t.Fatal(err)
	}
	if err := from.BackupGateway(t.Context(), Client{}, file, "correct horse", false); err == nil {
		t.Error("a file is replaced")
	}
	if err := from.BackupGateway(t.Context(), Client{}, file, "correct horse", true); err != nil {
		t.Errorf("with force: %v", err)
	}
	sealed, err := os.ReadFile(file)
	if err != nil || bytes.Contains(sealed, []byte("marked")) {
		t.Fatalf("the backup can be read without its passphrase (%v)", err)
	}
	to := Paths{State: filepath.Join(t.TempDir(), "new")}
	if _, err := to.RestoreGateway(file, "another horse", false); err == nil {
		t.Error("another passphrase opens it")
	}
	if _, err := to.RestoreGateway(file, "correct horse", false); err != nil {
		t.Fatal(err)
	}
	for _, name := range backupFiles() {
		want, err := os.ReadFile(filepath.Join(from.State, name))
		got, gotErr := os.ReadFile(filepath.Join(to.State, name))
		if err != nil || gotErr != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %q (%v), want %q (%v)", name, got, gotErr, want, err)
		}
	}
	if _, err := to.RestoreGateway(file, "correct horse", false); err == nil {
		t.Error("a gateway is replaced without force")
	}
	if _, err := to.RestoreGateway(file, "correct horse", true); err != nil {
		t.Error(err)
	}
}

// A CA is there once it was asked for, and its root's key may be elsewhere. What the gateway that is replaced had of it goes.
func TestABackupOfAGatewayWithoutACA(t *testing.T) {
	from := gatewayState(t)
	if err := os.RemoveAll(filepath.Join(from.State, caDir)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup")
	if err := from.BackupGateway(t.Context(), Client{}, file, "correct horse", false); err != nil {
		t.Fatal(err)
	}
	to := gatewayState(t)
	if _, err := to.RestoreGateway(file, "correct horse", true); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(to.State, caDir, "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("there is %q, %v", left, err)
	}
}

func TestADamagedBackupChangesNothing(t *testing.T) {
	from := gatewayState(t)
	file := filepath.Join(t.TempDir(), "backup")
	if err := from.BackupGateway(t.Context(), Client{}, file, "correct horse", false); err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"short": sealed[:len(sealed)-1],
		"other": append(bytes.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1),
		"empty": nil,
	} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		to := Paths{State: t.TempDir()}
		if _, err := to.RestoreGateway(file, "correct horse", true); err == nil {
			t.Errorf("%s: it is taken", name)
		}
		if left, err := os.ReadDir(to.State); err != nil || len(left) > 1 || len(left) == 1 && left[0].Name() != "lock" {
			t.Errorf("%s: it left %v (%v)", name, left, err)
		}
	}
}

// A gateway that runs is backed up as of one moment, while nodes come and go, and another machine goes on as it.
func TestAGatewayThatRunsIsBackedUp(t *testing.T) {
	g := startGateway(t)
	if _, err := g.Invite(t.Context(), "before", nil, 0, false); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for range 10 {
			_, err := g.Invite(t.Context(), "other", nil, 0, false)
			if err == nil {
				err = g.RemoveNode(t.Context(), "other")
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	file := filepath.Join(t.TempDir(), "backup")
	cheap := g.paths
	cheap.work = 10
	if err := cheap.BackupGateway(t.Context(), g.Client, file, "correct horse", false); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	key, err := g.paths.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.end(); err != nil {
		t.Fatal(err)
	}
	paths := testPaths(t)
	if _, err := paths.RestoreGateway(file, "correct horse", false); err != nil {
		t.Fatal(err)
	}
	next := startGatewayWith(t, g.cfg, paths)
	nodes, err := next.Nodes(t.Context())
	if err != nil || !slices.ContainsFunc(nodes.Nodes, func(n gatewayPeer) bool { return n.Name == "before" && n.State == "invited" }) {
		t.Errorf("%+v, %v", nodes, err)
	}
	if got, err := paths.Keys(); err != nil || got != key {
		t.Errorf("keys %+v (%v), want %+v", got, err, key)
	}
}

// An earlier backup stays whole when the next one cannot be written.
func TestABackupThatFailsLeavesTheEarlierOne(t *testing.T) {
	from := gatewayState(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "backup")
	if err := from.BackupGateway(t.Context(), Client{}, file, "correct horse", false); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(){
		"the keys are damaged": func() { writeAll(t, filepath.Join(from.State, secretsFile), "nonsense") },
		"the registry is gone": func() { os.Remove(filepath.Join(from.State, registryFile)) },
	} {
		spoil()
		if err := from.BackupGateway(t.Context(), Client{}, file, "correct horse", true); err == nil {
			t.Errorf("%s: no error", name)
		}
		if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, before) {
			t.Errorf("%s: the earlier backup is another one now (%v)", name, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%s: left %v (%v)", name, left, err)
		}
	}
}

func writeAll(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A file that asks for more memory than ours is refused before it gets any.
func TestABackupMayNotAskForMuchWork(t *testing.T) {
	to, err := age.NewScryptRecipient("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	to.SetWorkFactor(10)
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	greedy := bytes.Replace(b.Bytes(), []byte(" 10\n"), []byte(" 30\n"), 1)
	if _, err := openBackup(greedy, "correct horse"); err == nil {
		t.Error("it is opened")
	}
}

// FuzzOpenBackup gives what was decrypted, and files that were not, to what opens backups. What is taken has all its parts, and
// names of no other file.
func FuzzOpenBackup(f *testing.F) {
	s, err := newSecrets()
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	if err := s.save(dir); err != nil {
		f.Fatal(err)
	}
	keys, err := fs.ReadFile(os.DirFS(dir), secretsFile)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(backupText{Schema: backupSchema, Files: map[string][]byte{secretsFile: keys, "ranges.json": []byte("{}"), registryFile: []byte("x")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"schema":"meshdns.gateway.backup/v1","files":{"../node.key":"AA==","ranges.json":"AA==","registry.db":"AA=="}}`))
	f.Add([]byte("age-encryption.org/v1\n-> scrypt AAAAAAAAAAAAAAAAAAAAAA 9\nAAAA\n--- AAAA\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if text, err := readBackup(data); err == nil {
			for name, content := range text.Files {
				if !slices.Contains(backupFiles(), name) || len(content) == 0 {
					t.Errorf("it has %q with %d bytes", name, len(content))
				}
			}
		}
		if strings.Contains(string(data), "-> scrypt") && !strings.Contains(string(data), " 9\n") {
			return // each such try costs what a passphrase has to
		}
		if _, err := openBackup(data, "correct horse"); err == nil {
			t.Error("a backup under a passphrase that nobody gave")
		}
	})
}

// What only a gateway answers, only root and its own user may ask for: a backup is its keys.
func TestTheGatewaysCallsAreTheOperatorsAlone(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range (&Node{}).gatewayEndpoints() {
		_, path, _ := strings.Cut(e.pattern, " ")
		seen[path] = true
		if !e.operator {
			t.Errorf("%s is for everybody", e.pattern)
		}
	}
	for _, path := range []string{pathBackup, pathInvite, pathRemove} {
		if !seen[path] {
			t.Errorf("%s is not among them", path)
		}
	}
}
