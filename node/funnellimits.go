package node

import (
	"log/slog"
	"time"

	"github.com/meshdns/meshdns/funnel"
)

// limitsConfig bounds what a gateway passes on for visitors.
type limitsConfig struct {
	Visits uint32        `yaml:"visits" doc:"visitors at once; 16000 if 0. Above three quarters of it nodes and sources get their fair shares only"`
	Idle   time.Duration `yaml:"idle" doc:"how long a visit may be silent; 10m if 0"`
	Life   time.Duration `yaml:"life" doc:"how long a visit may last; 24h if 0"`
	Node   limitConfig   `yaml:"node" doc:"of each node"`
	Name   limitConfig   `yaml:"name" doc:"of each name or port that is shown"`
	Source limitConfig   `yaml:"source" doc:"of each visitor's address, or /64 of IPv6"`
}

// limitConfig are the limits of one of them.
type limitConfig struct {
	Connections uint32   `yaml:"connections" doc:"at once; 4000 if 0, and 256 of a source"`
	PerSecond   uint32   `yaml:"per_second" doc:"new connections a second; 400 if 0, and 100 of a source"`
	Bytes       ByteSize `yaml:"bytes" doc:"both ways together, a second; 0: any"`
	Month       ByteSize `yaml:"month" doc:"both ways together, in a calendar month of UTC; 0: any"`
}

func (l limitConfig) limits() funnel.Limits {
	return funnel.Limits{
		Connections: int(l.Connections), PerSecond: int(l.PerSecond), BytesPerSecond: int64(l.Bytes), BytesPerMonth: int64(l.Month),
	}
}

// relay is the configuration of what passes visitors on.
func (l limitsConfig) relay(log *slog.Logger) funnel.RelayConfig {
	return funnel.RelayConfig{
		MaxVisits: int(l.Visits), Idle: l.Idle, Lifetime: l.Life,
		Node: l.Node.limits(), Name: l.Name.limits(), Source: l.Source.limits(), Logger: log,
	}
}
