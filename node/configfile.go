package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// LoadConfigFile reads meshdns.yaml from a file. Other than LoadConfig it lets the file name commands, if it belongs
// to root, or to the user that this process runs as, and nobody else may write it (S20), and takes the files that it
// names relative to its own directory: a daemon's working directory is nowhere in particular. A file that does not
// exist is an error that wraps fs.ErrNotExist.
func LoadConfigFile(path string) (Config, error) {
	c, problems, err := readConfigFile(path)
	if err == nil {
		err = problems.err()
	}
	if err != nil {
		return Config{}, err
	}
	return c, nil
}

// readConfigFile is LoadConfigFile for whoever wants what can be read although something cannot.
func readConfigFile(path string) (Config, Problems, error) {
	f, err := openRegular(path)
	if err != nil {
		return DefaultConfig(), nil, err
	}
	defer f.Close()
	// Of the open file: the path may lead elsewhere by now.
	info, err := f.Stat()
	if err != nil {
		return DefaultConfig(), nil, fmt.Errorf("reading %s: %w", path, err)
	}
	c, problems, err := readConfig(f)
	if err != nil {
		return c, nil, err
	}
	c.trusted = mayNameCommands(info, os.Geteuid())
	c.Map = beside(path, c.Map)
	c.Tunnel.Preshared = beside(path, c.Tunnel.Preshared)
	c.Gateway.Policy = beside(path, c.Gateway.Policy)
	c.Certs.Root = beside(path, c.Certs.Root)
	c.Certs.SettingsFile = beside(path, c.Certs.SettingsFile)
	for i := range c.Certs.Accounts {
		c.Certs.Accounts[i].KeyFile = beside(path, c.Certs.Accounts[i].KeyFile)
	}
	for i := range c.Certs.Deploy {
		c.Certs.Deploy[i].PasswordFile = beside(path, c.Certs.Deploy[i].PasswordFile)
	}
	c.AccessLog.File = beside(path, c.AccessLog.File)
	for i := range c.Serve {
		if t := c.Serve[i].Target; strings.HasPrefix(t, "./") || strings.HasPrefix(t, "../") {
			c.Serve[i].Target = beside(path, t)
		}
		c.Serve[i].at = c.where[fmt.Sprintf("serve[%d]", i)].named(path)
	}
	for i := range c.Sources {
		c.Sources[i].File = beside(path, c.Sources[i].File)
	}
	return c, problems, nil
}

// beside is a file that another one names, which may be relative to that one's directory.
func beside(path, name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(path), name)
}
