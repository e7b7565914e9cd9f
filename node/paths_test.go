package node

import (
	"errors"
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
			got, err := UserPaths(environment(tt.env))
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

func TestUserPathsNeedAHome(t *testing.T) {
	_, err := UserPaths(environment(nil))
	var noHome *noHomeError
	if !errors.As(err, &noHome) || noHome.Hint() == "" {
		t.Errorf("got %v, want an error with a hint", err)
	}
}

func TestTryMeetsNoOtherNode(t *testing.T) {
	user, err := UserPaths(environment(map[string]string{"HOME": "/home/ada"}))
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]Paths{"system": SystemPaths(), "user": user} {
		t.Run(name, func(t *testing.T) {
			try := p.Try()
			if try.State == p.State || try.Socket == p.Socket {
				t.Errorf("state and socket are %s and %s in both", try.State, try.Socket)
			}
			if try.Config != p.Config || try.Map != p.Map {
				t.Errorf("configuration and map are not the same: %+v, %+v", try, p)
			}
		})
	}
}
