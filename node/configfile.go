package node

import (
	"fmt"
	"os"
)

// LoadConfigFile reads meshdns.yaml from a file. Other than LoadConfig it lets the file name commands, if it belongs
// to root, or to the user that this process runs as, and nobody else may write it (S20). A file that does not exist is
// an error that wraps fs.ErrNotExist.
func LoadConfigFile(path string) (Config, error) {
	f, err := openRegular(path)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	// Of the open file: the path may lead elsewhere by now.
	info, err := f.Stat()
	if err != nil {
		return Config{}, fmt.Errorf("reading %s: %w", path, err)
	}
	c, err := LoadConfig(f)
	if err != nil {
		return Config{}, err
	}
	c.trusted = mayNameCommands(info, os.Geteuid())
	return c, nil
}
