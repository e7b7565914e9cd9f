package node

import "testing"

func TestHolderOfALinkIsRead(t *testing.T) {
	info := []byte("pos:\t0\nflags:\t0104002\nmnt_id:\t23\nino:\t5\niff:\ttun0\n")
	if !holdsTUN(info, "tun0") || holdsTUN(info, "tun") || holdsTUN(info, "") || holdsTUN([]byte("iff tun0"), "tun0") {
		t.Error("the link of an open TUN is not read right")
	}
	if got := tunHolder("no-such-link"); got != "" {
		t.Errorf("a link that is not there is held by %q", got)
	}
}
