//go:build !unix

package node

// syncDir does nothing: directories cannot be synced here.
func syncDir(string) error { return nil }
