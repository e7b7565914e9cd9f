package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/meshdns/meshdns/node"
)

func TestLearntRoutesShareALineAndChosenOnesDoNot(t *testing.T) {
	var s node.DNSStatus
	err := json.Unmarshal([]byte(`{"routes": [
		{"suffix": "corp.example", "upstreams": ["10.0.0.53:53"], "source": "config"},
		{"suffix": "lab.example", "upstreams": ["10.0.0.53:53"], "source": "map"},
		{"suffix": "lan", "upstreams": ["192.168.1.1:53", "8.8.8.8:53"], "source": "learnt"},
		{"suffix": "home.arpa", "upstreams": ["192.168.1.1:53"], "source": "learnt"},
		{"suffix": "10.in-addr.arpa", "upstreams": ["192.168.1.1:53"], "source": "learnt"},
		{"suffix": "c.f.ip6.arpa", "upstreams": ["192.168.1.1:53"], "source": "learnt"}]}`), &s)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	writeRoutes(&out, s)
	want := "route\tcorp.example: 10.0.0.53:53 (config)\n" +
		"route\tlab.example: 10.0.0.53:53 (map)\n" +
		"learnt\tlan: 192.168.1.1:53 8.8.8.8:53\n" +
		"learnt\thome.arpa, 2 reverse zones: 192.168.1.1:53\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestTakeoverLineSaysWhatIsKnown(t *testing.T) {
	soon := time.Now().Add(20*time.Second + 400*time.Millisecond)
	tests := []struct {
		name     string
		takeover node.Takeover
		want     string
	}{
		{"off", node.Takeover{State: "off", Reason: "dns.os is off"}, "off: dns.os is off"},
		{"on", node.Takeover{State: "on", Mode: "direct"}, "on (direct)"},
		{"refused", node.Takeover{State: "refused", Mode: "direct", Reason: "read-only"}, "refused (direct): read-only"},
		{"pending", node.Takeover{State: "pending", Mode: "direct", Until: &soon}, "pending (direct); undone in 20s unless confirmed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := takeoverLine(tt.takeover); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
