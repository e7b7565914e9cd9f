package osconfig

import (
	"fmt"
	"os"
	"testing"
)

// TestMain keeps every test off the machine's own bus: those that need one start a bus of their own.
func TestMain(m *testing.M) {
	if err := os.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus"); err != nil {
		fmt.Fprintln(os.Stderr, "osconfig:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
