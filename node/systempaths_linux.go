package node

// systemPaths are root's.
func systemPaths(func(string) string) Paths {
	return Paths{
		Config: "/etc/meshdns/meshdns.yaml",
		Map:    "/etc/meshdns/map.yaml",
		State:  "/var/lib/meshdns",
		Socket: "/run/meshdns/meshdns.sock",
	}
}
