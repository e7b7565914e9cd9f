package tunnel

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The text protocol that wireguard-go is configured with: https://www.wireguard.com/xplatform/#configuration-protocol

// uapiPeers writes the peers of a change.
func uapiPeers(changes []peerChange) []byte {
	var b bytes.Buffer
	for _, c := range changes {
		fmt.Fprintf(&b, "public_key=%x\n", c.key[:])
		if c.remove {
			b.WriteString("remove=true\n")
			continue
		}
		if !c.add {
			b.WriteString("update_only=true\n")
		}
		if c.preshared != nil {
			fmt.Fprintf(&b, "preshared_key=%x\n", c.preshared[:])
		}
		if c.endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", c.endpoint)
		}
		if c.keepalive != nil {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", *c.keepalive)
		}
		if c.allowed != nil {
			b.WriteString("replace_allowed_ips=true\n")
			for _, prefix := range *c.allowed {
				fmt.Fprintf(&b, "allowed_ip=%s\n", prefix)
			}
		}
	}
	return b.Bytes()
}

// uapiStats reads the answer to a get. Secrets in it are passed over.
func uapiStats(text []byte) ([]PeerStats, error) {
	var out []PeerStats
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			continue
		}
		if key == "public_key" {
			raw, err := hex.DecodeString(value)
			if err != nil || len(raw) != keyBytes {
				return nil, fmt.Errorf("public key %q of a peer is not hexadecimal", value)
			}
			out = append(out, PeerStats{Key: Key(raw)})
		} else if len(out) > 0 {
			if err := out[len(out)-1].set(key, value); err != nil {
				return nil, fmt.Errorf("reading %s of a peer: %w", key, err)
			}
		}
	}
	return out, nil
}

func (s *PeerStats) set(key, value string) (err error) {
	var n int64
	switch key {
	case "endpoint":
		s.Endpoint, err = netip.ParseAddrPort(value)
	case "rx_bytes":
		s.Received, err = strconv.ParseUint(value, 10, 64)
	case "tx_bytes":
		s.Sent, err = strconv.ParseUint(value, 10, 64)
	case "last_handshake_time_sec":
		if n, err = strconv.ParseInt(value, 10, 64); err == nil && n != 0 {
			s.Handshake = time.Unix(n, 0)
		}
	case "last_handshake_time_nsec":
		if n, err = strconv.ParseInt(value, 10, 64); err == nil && !s.Handshake.IsZero() {
			s.Handshake = s.Handshake.Add(time.Duration(n))
		}
	}
	return err
}
