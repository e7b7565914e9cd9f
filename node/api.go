package node

import (
	"net/netip"
	"time"
)

// The paths of the control API. A change that an old client could misread gets a new version.
const (
	pathStatus    = "/v1/status"
	pathDNSStatus = "/v1/dns/status"
	pathQuery     = "/v1/dns/query"
	pathExplain   = "/v1/dns/explain"
	pathFlush     = "/v1/dns/flush"
	pathPlan      = "/v1/dns/plan"
	pathApply     = "/v1/dns/apply"
	pathConfirm   = "/v1/dns/confirm"
	pathRestore   = "/v1/dns/restore"
	pathDown      = "/v1/down"
	pathMetrics   = "/v1/metrics"
	pathConfig    = "/v1/config"
)

// Status says how a node is. Lists are empty, never null; the same holds for every type below.
type Status struct {
	Schema   string       `json:"schema"` // meshdns.status/v1
	Version  string       `json:"version"`
	PID      int          `json:"pid"`
	Started  time.Time    `json:"started"`
	State    string       `json:"state"`    // ok or degraded
	Problems []string     `json:"problems"` // why it is degraded
	Node     string       `json:"node"`     // this machine's full name
	Zone     string       `json:"zone"`
	Map      mapStatus    `json:"map"`
	Nodes    []nodeStatus `json:"nodes"`
	Tunnel   tunnelStatus `json:"tunnel"`
	DNS      DNSStatus    `json:"dns"`
	Proxy    string       `json:"proxy"` // where programs reach the tailnet by SOCKS5 or HTTP CONNECT; empty: nowhere
	Certs    []certStatus `json:"certs"` // certificates, without their keys
	VPNs     []vpnStatus  `json:"vpns"`  // other private networks on this machine, while its DNS is to be ours

	Funnels []funnelStatus `json:"funnels"` // what is shown to the world: on a gateway by all nodes, elsewhere by this one
}

// certStatus is one certificate; meshdns cert list tells more.
type certStatus struct {
	Name     string     `json:"name"`
	State    string     `json:"state"` // missing, valid, expiring or expired
	NotAfter *time.Time `json:"not_after"`
	Renewal  *time.Time `json:"renewal"` // when it is tried next
}

// mapStatus says which map is in use and what is wrong with the one that is not.
type mapStatus struct {
	Source   string    `json:"source"`  // its file, or what it was made from
	Version  uint64    `json:"version"` // as its owner numbers it
	Loaded   time.Time `json:"loaded"`
	Nodes    int       `json:"nodes"`
	Records  int       `json:"records"`
	Problems []string  `json:"problems"` // of the newest map, which is not in use because of them
}

// nodeStatus is one node of the map.
type nodeStatus struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Names     []string     `json:"names"` // service names
	Self      bool         `json:"self"`
	Doubt     string       `json:"doubt,omitempty"` // why it is not spoken to: unsigned, changed, removed or dropped; empty: it is
}

// DNSStatus says what the resolver and the takeover of the machine's DNS are doing.
type DNSStatus struct {
	Schema     string           `json:"schema"` // meshdns.dns.status/v1
	Zone       string           `json:"zone"`
	Search     []string         `json:"search"`
	Stub       string           `json:"stub"`   // where programs ask, address and port
	Listen     []string         `json:"listen"` // further addresses
	Takeover   Takeover         `json:"takeover"`
	Base       []string         `json:"base"` // where everything without a route goes
	Portal     portalStatus     `json:"portal"`
	Containers containersStatus `json:"containers"`
	Routes     []routeStatus    `json:"routes"`
	Upstreams  []upstreamStatus `json:"upstreams"`
	Cache      cacheStatus      `json:"cache"`
	Queries    uint64           `json:"queries"` // answered since the start
}

// The states of a takeover.
const (
	takeoverOff     = "off"     // not wanted
	takeoverOn      = "on"      // the machine asks us
	takeoverPending = "pending" // on, and undone soon unless confirmed
	takeoverRefused = "refused" // wanted, and not possible
)

// Takeover says who answers for the machine's DNS.
type Takeover struct {
	Schema string     `json:"schema"`          // meshdns.dns.takeover/v1
	State  string     `json:"state"`           // off, on, pending or refused
	Mode   string     `json:"mode"`            // how, in osconfig's word
	Reason string     `json:"reason"`          // why that state
	Asks   string     `json:"asks,omitempty"`  // what the machine asks the stub for: all, or split: the tailnet's names and routes
	Until  *time.Time `json:"until,omitempty"` // when a pending one is undone
	Trace  []string   `json:"trace"`           // the facts that led to the mode
	Steps  []string   `json:"steps,omitempty"` // what was done and seen when it was given back, a line each
	Left   []string   `json:"left,omitempty"`  // what somebody has to do yet, and with which command
}

// portalStatus says whether the network's DNS is asked because its captive portal is up.
type portalStatus struct {
	State  string     `json:"state"`           // off, none or up
	Since  *time.Time `json:"since,omitempty"` // of an up one
	URI    string     `json:"uri"`             // where to sign in, as the network says; empty: it does not
	Reason string     `json:"reason"`
}

// routeStatus is one split route.
type routeStatus struct {
	Suffix    string   `json:"suffix"`
	Upstreams []string `json:"upstreams"`
	Source    string   `json:"source"` // config, map or learnt
}

// upstreamStatus says how one upstream is doing.
type upstreamStatus struct {
	Upstream string   `json:"upstream"`
	Routes   []string `json:"routes"` // the suffixes that it answers for; "." is everything else
	State    string   `json:"state"`
	RTT      float64  `json:"rtt_ms"` // smoothed
	Queries  uint64   `json:"queries"`
	Failures uint64   `json:"failures"`
}

// cacheStatus counts the cache, not what is in it.
type cacheStatus struct {
	Entries int    `json:"entries"`
	Bytes   int    `json:"bytes"`
	Hits    uint64 `json:"hits"`
	Misses  uint64 `json:"misses"`
}

// QueryResult is the answer to one question.
type QueryResult struct {
	Schema   string         `json:"schema"` // meshdns.dns.query/v1
	Name     string         `json:"name"`   // as asked, after the search list
	Type     string         `json:"type"`
	Rcode    string         `json:"rcode"`
	Source   string         `json:"source"` // what answered; empty where only the wire was seen
	Server   string         `json:"server"`
	Answer   []answerRecord `json:"answer"`
	Elapsed  float64        `json:"elapsed_ms"`
	Extended string         `json:"extended_error,omitempty"` // the server's reason (RFC 8914)
}

// answerRecord is one record of an answer.
type answerRecord struct {
	Name string `json:"name"`
	Type string `json:"type"`
	TTL  uint32 `json:"ttl"`
	Data string `json:"data"` // as in a zone file
}

// ExplainResult says step by step what answers a question and why.
type ExplainResult struct {
	Schema string        `json:"schema"` // meshdns.dns.explain/v1
	Name   string        `json:"name"`
	Type   string        `json:"type"`
	Daemon bool          `json:"daemon"` // told by the running node, not made out from the configuration
	Steps  []explainStep `json:"steps"`
	Rcode  string        `json:"rcode"`
	Source string        `json:"source"`
	Answer []string      `json:"answer"`
}

// explainStep is one step of an explanation.
type explainStep struct {
	What   string `json:"what"`
	Detail string `json:"detail"`
}

// flushReply says what was dropped from the cache.
type flushReply struct {
	Schema  string `json:"schema"` // meshdns.dns.flush/v1
	Name    string `json:"name"`   // empty: everything
	Dropped int    `json:"dropped"`
}

// PlanResult says what taking over the machine's DNS would do, and why in that way.
type PlanResult struct {
	Schema   string   `json:"schema"` // meshdns.dns.plan/v1
	Possible bool     `json:"possible"`
	Mode     string   `json:"mode"`
	Reason   string   `json:"reason"`
	Hint     string   `json:"hint"`  // what can be done about the reason
	Trace    []string `json:"trace"` // the facts that led to the mode
	Diff     string   `json:"diff"`
}

// configReply is the running node's effective configuration.
type configReply struct {
	Schema string `json:"schema"` // meshdns.config/v1
	YAML   string `json:"yaml"`
}

// The bodies of the requests that change something.
type (
	flushRequest struct {
		Name string `json:"name"`
	}
	applyRequest struct {
		// ConfirmSeconds is after how long the takeover is undone unless it is confirmed; 0: never.
		ConfirmSeconds int `json:"confirm_seconds"`
	}
	emptyRequest struct{}
)
