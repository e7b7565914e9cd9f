package node

import (
	"errors"
	"fmt"
	"testing"
)

// environment is getenv of a map.
func environment(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestUserPathsFollowXDG(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		want Paths
	}{
		{"home alone", map[string]string{"HOME": "/home/ada"}, Paths{
			Config: "/home/ada/.config/meshdns/meshdns.yaml",
			Map:    "/home/ada/.config/meshdns/map.yaml",
			State:  "/home/ada/.local/state/meshdns",
			Socket: "/home/ada/.local/state/meshdns/meshdns.sock",
		}},
		{"every variable", map[string]string{
			"HOME": "/home/ada", "XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/1000",
		}, Paths{
			Config: "/c/meshdns/meshdns.yaml",
			Map:    "/c/meshdns/map.yaml",
			State:  "/s/meshdns",
			Socket: "/run/user/1000/meshdns/meshdns.sock",
		}},
		{"relative values count as unset", map[string]string{"HOME": "/home/ada", "XDG_CONFIG_HOME": "c", "XDG_RUNTIME_DIR": "r"},
			Paths{
				Config: "/home/ada/.config/meshdns/meshdns.yaml",
				Map:    "/home/ada/.config/meshdns/map.yaml",
				State:  "/home/ada/.local/state/meshdns",
				Socket: "/home/ada/.local/state/meshdns/meshdns.sock",
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := DefaultPaths(environment(tt.env), false, false)
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

func TestUserPathsNeedAHome(t *testing.T) {
	_, err := DefaultPaths(environment(nil), false, false)
	var noHome *noHomeError
	if !errors.As(err, &noHome) || noHome.Hint() == "" {
		t.Errorf("got %v, want an error with a hint", err)
	}
	if _, err := DefaultPaths(environment(nil), true, false); err != nil {
		t.Errorf("root needs no home: %v", err)
	}
}

func TestTryMeetsNoOtherNode(t *testing.T) {
	env := environment(map[string]string{"HOME": "/home/ada"})
	for _, root := range []bool{false, true} {
		t.Run(fmt.Sprintf("root %t", root), func(t *testing.T) {
			p, err := DefaultPaths(env, root, false)
			if err != nil {
				t.Fatal(err)
			}
			try, err := DefaultPaths(env, root, true)
			if err != nil {
				t.Fatal(err)
			}
			if try.State == p.State || try.Socket == p.Socket {
				t.Errorf("state and socket are %s and %s in both", try.State, try.Socket)
			}
			if try.Config != p.Config || try.Map != p.Map {
				t.Errorf("configuration and map are not the same: %+v, %+v", try, p)
			}
		})
	}
}

func TestSocketIsFoundWhereANodeAnswers(t *testing.T) {
	home := t.TempDir()
	env := environment(map[string]string{"HOME": home})
	user, err := DefaultPaths(env, false, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := findSocket(env, false); got != user.Socket && !answers(got) {
		t.Errorf("with no node: got %s, want %s", got, user.Socket)
	}
	try, err := DefaultPaths(env, false, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{try.Socket, user.Socket} {
		ln, err := listenControl(path)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if got := findSocket(env, false); got != path {
			t.Errorf("got %s, want %s", got, path)
		}
	}
}
