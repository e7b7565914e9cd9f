//go:build !unix

package node

import "os"

// mayNameCommands is false: who may write a file cannot be told from its mode here.
func mayNameCommands(os.FileInfo, int) bool { return false }

// onlyOurs cannot tell: modes say nothing here.
func onlyOurs(os.FileInfo) bool { return true }
