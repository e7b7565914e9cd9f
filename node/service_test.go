package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeService is a service on a machine of files, and what was run.
func fakeService(t *testing.T, fail string) (s *Service, ran *[]string) {
	t.Helper()
	ran = new([]string)
	s = &Service{Binary: "/usr/local/bin/meshdns", Root: true, base: t.TempDir()}
	for _, dir := range []string{"run/systemd/system", unitDir} {
		if err := os.MkdirAll(filepath.Join(s.base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.run = func(_ context.Context, args ...string) error {
		line := strings.Join(args, " ")
		*ran = append(*ran, line)
		if fail != "" && strings.Contains(line, fail) {
			return errors.New("it failed")
		}
		return nil
	}
	return s, ran
}

func (s *Service) unit(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.base, unitDir, name))
	if err != nil {
		return ""
	}
	return string(text)
}

func TestServiceIsInstalledAndRemoved(t *testing.T) {
	s, ran := fakeService(t, "")
	for range 2 { // again, as after an update
		if err := s.Install(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		daemonUnit:  "\nExecStart=/usr/local/bin/meshdns up\n",
		restoreUnit: "\nExecStart=/usr/local/bin/meshdns dns restore\n",
	} {
		if text := s.unit(t, name); !strings.Contains(text, want) || strings.Contains(text, "BINARY") {
			t.Errorf("%s is\n%s", name, text)
		}
	}
	want := []string{"systemctl daemon-reload", "systemctl enable meshdns-restore.service meshdns.service", "systemctl restart meshdns.service"}
	if !slices.Equal(*ran, slices.Concat(want, want)) {
		t.Errorf("ran %q", *ran)
	}
	*ran = nil
	if err := s.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	want = []string{"systemctl disable --now meshdns.service", "systemctl disable --now meshdns-restore.service", "systemctl daemon-reload"}
	if !slices.Equal(*ran, want) || s.unit(t, daemonUnit)+s.unit(t, restoreUnit) != "" {
		t.Errorf("ran %q; units left: %q", *ran, s.unit(t, daemonUnit)+s.unit(t, restoreUnit))
	}
	*ran = nil
	if err := s.Uninstall(t.Context()); err != nil || !slices.Equal(*ran, want[2:]) {
		t.Errorf("a second time: %v, ran %q", err, *ran)
	}
}

func TestUninstallGoesOnAfterAFailure(t *testing.T) {
	s, _ := fakeService(t, "disable --now meshdns.service")
	if err := s.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Uninstall(t.Context()); err == nil {
		t.Error("the failure is not told")
	}
	if s.unit(t, daemonUnit)+s.unit(t, restoreUnit) != "" {
		t.Error("a unit is left")
	}
}

func TestServiceThatDoesNotStartSaysWhereToLook(t *testing.T) {
	s, _ := fakeService(t, "restart")
	if err := s.Install(t.Context()); err == nil || !strings.Contains(hintOf(err), "journalctl") {
		t.Errorf("got %v (hint: %s)", err, hintOf(err))
	}
}

func TestServiceIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Service){
		"a home":       func(s *Service) { s.Binary = "/home/x/meshdns" },
		"root's home":  func(s *Service) { s.Binary = "/root/meshdns" },
		"a build":      func(s *Service) { s.Binary = "/tmp/go-build1/meshdns" },
		"a bare name":  func(s *Service) { s.Binary = "meshdns" },
		"a space":      func(s *Service) { s.Binary = "/opt/my programs/meshdns" },
		"a new line":   func(s *Service) { s.Binary = "/opt/x\nExecStart=/bin/sh" },
		"a specifier":  func(s *Service) { s.Binary = "/opt/%n/meshdns" },
		"not root":     func(s *Service) { s.Root = false },
		"no systemd":   func(s *Service) { os.RemoveAll(filepath.Join(s.base, "run")) },
		"no directory": func(s *Service) { s.base = filepath.Join(s.base, "nowhere") },
	} {
		t.Run(name, func(t *testing.T) {
			s, ran := fakeService(t, "")
			change(s)
			if err := s.Install(t.Context()); err == nil {
				t.Error("not refused")
			}
			if len(*ran) > 0 || s.unit(t, daemonUnit) != "" {
				t.Errorf("ran %q, wrote %q", *ran, s.unit(t, daemonUnit))
			}
		})
	}
}

func TestServiceTexts(t *testing.T) {
	for system, want := range map[string]string{
		"systemd": "ExecStopPost=-/usr/bin/meshdns dns restore",
		"openrc":  "#!/sbin/openrc-run",
		"runit":   "exec /usr/bin/meshdns up",
	} {
		text, err := ServiceText(system, "/usr/bin/meshdns")
		if err != nil || !strings.Contains(text, want) || strings.Contains(text, "BINARY") {
			t.Errorf("%s: %v\n%s", system, err, text)
		}
	}
	if _, err := ServiceText("launchd", "/usr/bin/meshdns"); !errors.Is(err, ErrBadRequest) || hintOf(err) == "" {
		t.Errorf("launchd: got %v", err)
	}
}

func TestWatchdogTime(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "30000000": 30 * time.Second, "1": time.Microsecond} {
		if got, err := watchdogTime(text); got != want || err != nil {
			t.Errorf("%q: got %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "-1", "soon", "99999999999999999999"} {
		if _, err := watchdogTime(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
