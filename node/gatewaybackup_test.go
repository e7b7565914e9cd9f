package node

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func gatewayState(t *testing.T) Paths {
	t.Helper()
	p := Paths{State: t.TempDir()}
	s, err := loadSecrets(p.State)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.save(p.State); err != nil {
		t.Fatal(err)
	}
	for _, name := range backupFiles()[1:] {
		if err := os.WriteFile(filepath.Join(p.State, name), []byte("marked "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestABackupComesBackWhole(t *testing.T) {
	from := gatewayState(t)
	file := filepath.Join(t.TempDir(), "backup")
	if err := from.BackupGateway(file, "short"); err == nil {
		t.Error("a short passphrase is taken")
	}
	if err := from.BackupGateway(file, "correct horse"); err != nil {
		t.Fatal(err)
	}
	if err := from.BackupGateway(file, "correct horse"); err == nil {
		t.Error("a file is replaced")
	}
	sealed, err := os.ReadFile(file)
	if err != nil || bytes.Contains(sealed, []byte("marked")) {
		t.Fatalf("the backup can be read without its passphrase (%v)", err)
	}
	to := Paths{State: filepath.Join(t.TempDir(), "new")}
	if err := to.RestoreGateway(file, "another horse", false); err == nil {
		t.Error("another passphrase opens it")
	}
	if err := to.RestoreGateway(file, "correct horse", false); err != nil {
		t.Fatal(err)
	}
	for _, name := range backupFiles() {
		want, err := os.ReadFile(filepath.Join(from.State, name))
		got, gotErr := os.ReadFile(filepath.Join(to.State, name))
		if err != nil || gotErr != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %q (%v), want %q (%v)", name, got, gotErr, want, err)
		}
	}
	if err := to.RestoreGateway(file, "correct horse", false); err == nil {
		t.Error("a gateway is replaced without force")
	}
	if err := to.RestoreGateway(file, "correct horse", true); err != nil {
		t.Error(err)
	}
}

func TestADamagedBackupChangesNothing(t *testing.T) {
	from := gatewayState(t)
	file := filepath.Join(t.TempDir(), "backup")
	if err := from.BackupGateway(file, "correct horse"); err != nil {
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
		if err := to.RestoreGateway(file, "correct horse", true); err == nil {
			t.Errorf("%s: it is taken", name)
		}
		if left, err := os.ReadDir(to.State); err != nil || len(left) > 0 {
			t.Errorf("%s: it left %v (%v)", name, left, err)
		}
	}
}
