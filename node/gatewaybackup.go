package node

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"filippo.io/age"
)

// backupFiles are what makes a gateway, in the state directory: with them another machine goes on as this one. The registry
// comes last: what is written before is no gateway without it.
func backupFiles() []string {
	ca := []string{caRootKeyFile, caRootFile, caBetweenFile}
	for i, name := range ca {
		ca[i] = filepath.Join(caDir, name)
	}
	return append(ca, secretsFile, "ranges.json", registryFile)
}

// maybeLacking tells of a file whether a gateway may be without it: a CA is made when it is first asked for, and its root's key
// may be elsewhere.
func maybeLacking(name string) bool { return filepath.Dir(name) == caDir }

// Bounds on a backup: a registry of 1,000 nodes has some hundred KiB. Work is the logarithm of scrypt's N, and what a file may ask for:
// 256 MiB of memory for a second.
const (
	maxBackup     = 256 << 20
	minPassphrase = 8
	backupWork    = 18
)

const backupSchema = "meshdns.gateway.backup/v1"

// backupText is what is encrypted.
type backupText struct {
	Schema string            `json:"schema"`
	Made   time.Time         `json:"made"`
	Files  map[string][]byte `json:"files"`
}

// BackupGateway writes the gateway's registry and keys into one file, encrypted with a passphrase (age, scrypt). A node that runs
// here is asked for them through c, and goes on meanwhile. An existing file is replaced only with force, in one step, once the new
// one is whole.
func (p Paths) BackupGateway(ctx context.Context, c Client, file, passphrase string, force bool) error {
	if _, err := os.Lstat(file); !force && !errors.Is(err, fs.ErrNotExist) {
		return hinted(nil, fmt.Errorf("writing %s: it exists", file), "take another name, or replace it: --force")
	}
	if err := checkPassphrase(passphrase); err != nil {
		return err
	}
	text, err := p.collectBackup()
	if errors.Is(err, errRunning) {
		text, err = get[backupText](ctx, c, pathBackup, nil)
	}
	if err != nil {
		return err
	}
	plain, err := json.Marshal(text)
	if err == nil {
		defer clear(plain)
		_, err = readBackup(plain) // what could not be restored is no backup
	}
	var sealed []byte
	if err == nil {
		sealed, err = seal(plain, passphrase, cmp.Or(p.work, backupWork))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return writeFile(file, sealed, 0o600)
}

// collectBackup is for a gateway that does not run.
func (p Paths) collectBackup() (backupText, error) {
	unlock, err := lockState(p.State)
	if err != nil {
		return backupText{}, err
	}
	defer unlock()
	return collectFiles(p.State, func(w io.Writer) error {
		data, err := readFile(filepath.Join(p.State, registryFile), maxBackup/4)
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	})
}

// serveBackup gives out what makes the gateway that runs, its registry as of one moment. Only root and the daemon's own user may
// call, who can read the files as well. Encrypting is left to the caller: it takes 256 MiB for a moment.
func (n *Node) serveBackup(*http.Request) (any, error) {
	return collectFiles(n.opt.Paths.State, n.gateway.registry.Snapshot)
}

// collectFiles reads what makes a gateway; registry writes its own part.
func collectFiles(state string, registry func(io.Writer) error) (backupText, error) {
	text := backupText{Schema: backupSchema, Made: time.Now().UTC().Truncate(time.Second), Files: map[string][]byte{}}
	for _, name := range backupFiles() {
		var data []byte
		var err error
		if name == registryFile {
			var b bytes.Buffer
			err = registry(&b)
			data = b.Bytes()
		} else {
			data, err = readFile(filepath.Join(state, name), maxBackup/4)
		}
		if errors.Is(err, fs.ErrNotExist) && maybeLacking(name) {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			return backupText{}, hinted(ErrNotFound, fmt.Errorf("this machine is no gateway yet: %w", err), "run this on the gateway, or make one: meshdns gateway init; then: meshdns up")
		}
		if err != nil {
			return backupText{}, err
		}
		text.Files[name] = data
	}
	return text, nil
}

// checkPassphrase refuses what whoever has the file would find soon.
func checkPassphrase(passphrase string) error {
	if len(passphrase) < minPassphrase {
		return hinted(ErrBadRequest, fmt.Errorf("the passphrase is shorter than %d characters", minPassphrase), "whoever has the file may try them all")
	}
	return nil
}

// RestoreGateway makes this machine the gateway that a backup is of. What is there already is replaced only with force.
// No node may run meanwhile. It returns when the backup was made: what was removed since then is back in the registry, and what
// joined is not in it.
func (p Paths) RestoreGateway(file, passphrase string, force bool) (made time.Time, err error) {
	unlock, err := lockState(p.State) // before the passphrase costs a second
	if err != nil {
		return made, err
	}
	defer unlock()
	for _, name := range backupFiles() {
		if _, err := os.Lstat(filepath.Join(p.State, name)); !force && !errors.Is(err, fs.ErrNotExist) {
			return made, hinted(nil, fmt.Errorf("restoring: %s has %s already", p.State, name), "replace it and all that it stands for: --force")
		}
	}
	sealed, err := readFile(file, maxBackup)
	if err != nil {
		return made, err
	}
	text, err := openBackup(sealed, passphrase)
	if err != nil {
		return made, fmt.Errorf("reading %s: %w", file, err)
	}
	return text.Made, p.putBack(text.Files)
}

// putBack writes all files beside where they belong before the first is moved there: a full disk changes nothing.
func (p Paths) putBack(files map[string][]byte) error {
	staged, err := os.MkdirTemp(p.State, ".restore-*")
	if err != nil {
		return fmt.Errorf("restoring: %w", err)
	}
	defer os.RemoveAll(staged)
	for name, data := range files {
		if err := writeFile(filepath.Join(staged, name), data, 0o600); err != nil {
			return fmt.Errorf("restoring: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(p.State, caDir), 0o700); err != nil {
		return fmt.Errorf("restoring: %w", err)
	}
	for _, name := range backupFiles() {
		to := filepath.Join(p.State, name)
		if files[name] == nil {
			err = os.RemoveAll(to) // of a gateway that is replaced
		} else {
			err = os.Rename(filepath.Join(staged, name), to)
		}
		if err != nil {
			return fmt.Errorf("restoring: %w", err)
		}
	}
	return errors.Join(syncDir(filepath.Join(p.State, caDir)), syncDir(p.State))
}

// seal encrypts a backup.
func seal(plain []byte, passphrase string, work int) ([]byte, error) {
	if err := checkPassphrase(passphrase); err != nil {
		return nil, err
	}
	to, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, err
	}
	to.SetWorkFactor(work)
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	return sealed.Bytes(), err
}

// unseal decrypts what seal made.
func unseal(sealed []byte, passphrase string, limit int64) ([]byte, error) {
	by, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, hinted(ErrBadRequest, err, "")
	}
	by.SetMaxWorkFactor(backupWork)
	r, err := age.Decrypt(bytes.NewReader(sealed), by)
	if err != nil {
		return nil, errors.New("another passphrase, or another kind of file")
	}
	plain, err := readBounded(r, limit)
	if err != nil {
		return nil, errors.New("it is damaged")
	}
	return plain, nil
}

// openBackup decrypts a backup and checks that it is whole.
func openBackup(sealed []byte, passphrase string) (backupText, error) {
	plain, err := unseal(sealed, passphrase, maxBackup)
	if err != nil {
		return backupText{}, err
	}
	defer clear(plain)
	return readBackup(plain)
}

// readBackup reads what was encrypted.
func readBackup(plain []byte) (backupText, error) {
	var text backupText
	if err := json.Unmarshal(plain, &text); err != nil || text.Schema != backupSchema {
		return backupText{}, errors.New("not a backup of a gateway that this version knows")
	}
	for name := range text.Files {
		if !slices.Contains(backupFiles(), name) {
			return backupText{}, errors.New("not a backup of a gateway that this version knows")
		}
	}
	lacking := slices.ContainsFunc(backupFiles(), func(name string) bool {
		data, has := text.Files[name]
		return len(data) == 0 && (has || !maybeLacking(name))
	})
	if _, err := parseSecrets(text.Files[secretsFile]); err != nil || lacking {
		return backupText{}, errors.New("the backup is damaged")
	}
	return text, nil
}
