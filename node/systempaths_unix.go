//go:build unix && !linux

package node

// systemPaths are root's: there is no /run, and on macOS none can be made.
func systemPaths(func(string) string) Paths {
	return Paths{
		Config: "/etc/meshdns/meshdns.yaml",
		Map:    "/etc/meshdns/map.yaml",
		State:  "/var/db/meshdns",
		Socket: "/var/run/meshdns/meshdns.sock",
	}
}
