package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// containersStatus says what this machine's containers are answered, and what their engines tell them to ask.
type containersStatus struct {
	Answers  string          `json:"answers"`  // all, forward or off
	Service  string          `json:"service"`  // the address at which they are answered; empty: none
	Networks []string        `json:"networks"` // of the bridges that are answered
	Copies   []containerCopy `json:"copies"`
	Problem  string          `json:"problem,omitempty"` // why there is no address although it is wanted
}

// containerCopy is what an engine makes of the machine's resolv.conf for a container that it starts now.
type containerCopy struct {
	Engine  string   `json:"engine"`
	Servers []string `json:"servers"`
	Mend    string   `json:"mend,omitempty"` // what has it name the service address; empty: it does
}

// Where engines look.
const (
	resolvedUplinks = "/run/systemd/resolve/resolv.conf"
	nmUplinks       = "/run/NetworkManager/no-stub-resolv.conf"
	dockerConfig    = "/etc/docker/daemon.json"
	podmanConfig    = "/etc/containers/containers.conf"
	podmanDropIn    = "/etc/containers/containers.conf.d/meshdns.conf"
)

// copiedServers are the nameservers that an engine's containers get: those of its own configuration, or those of the
// machine that are no loopback addresses. Where the machine names only systemd-resolved's stub, or for Podman also
// NetworkManager's, the engine goes by the file in which that one keeps its upstreams. Docker gives public servers where
// none are left.
func copiedServers(engine string, read func(path string) []byte) []netip.Addr {
	if set := configuredServers(engine, read); len(set) > 0 {
		return set
	}
	servers := parseConf(read(systemConf)).servers
	if len(servers) == 1 {
		behind := ""
		switch servers[0] {
		case netip.AddrFrom4([4]byte{127, 0, 0, 53}):
			behind = resolvedUplinks
		case netip.AddrFrom4([4]byte{127, 0, 0, 1}):
			if engine == enginePodman {
				behind = nmUplinks
			}
		}
		if data := read(behind); behind != "" && data != nil {
			servers = parseConf(data).servers
		}
	}
	servers = slices.DeleteFunc(servers, netip.Addr.IsLoopback)
	if len(servers) == 0 {
		return []netip.Addr{netip.AddrFrom4([4]byte{8, 8, 8, 8}), netip.AddrFrom4([4]byte{8, 8, 4, 4})}
	}
	return servers
}

// podmanServers matches the setting of containers.conf(5).
var podmanServers = regexp.MustCompile(`(?m)^\s*dns_servers\s*=\s*\[([^\]]*)\]`)

// configuredServers are the servers that an engine was told to give to all containers.
func configuredServers(engine string, read func(path string) []byte) []netip.Addr {
	var words []string
	switch engine {
	case engineDocker:
		var c struct {
			DNS []string `json:"dns"`
		}
		if json.Unmarshal(read(dockerConfig), &c) == nil {
			words = c.DNS
		}
	case enginePodman:
		for _, path := range []string{podmanDropIn, podmanConfig} {
			if m := podmanServers.FindSubmatch(read(path)); m != nil {
				words = strings.FieldsFunc(string(m[1]), func(r rune) bool { return strings.ContainsRune(`", '`, r) })
				break
			}
		}
	}
	var list []netip.Addr
	for _, word := range words {
		if a, err := netip.ParseAddr(word); err == nil {
			list = append(list, a)
		}
	}
	return list
}

// copyOf says what an engine's containers get, and how they would get the service address if they do not.
func copyOf(engine string, service netip.Addr, read func(path string) []byte) containerCopy {
	c := containerCopy{Engine: engine, Servers: []string{}}
	servers := copiedServers(engine, read)
	for _, a := range servers {
		c.Servers = append(c.Servers, a.String())
	}
	switch {
	case !service.IsValid() || servers[0] == service:
	case engine == enginePodman:
		c.Mend = fmt.Sprintf(`printf '[containers]\ndns_servers = ["%s"]\n' | sudo tee %s`, service, podmanDropIn)
	case read(dockerConfig) != nil:
		c.Mend = fmt.Sprintf(`put "dns": ["%s"] into %s, then: sudo systemctl restart docker`, service, dockerConfig)
	default:
		c.Mend = fmt.Sprintf(`echo '{"dns": ["%s"]}' | sudo tee %s && sudo systemctl restart docker`, service, dockerConfig)
	}
	return c
}

// status is what containers are answered and told now.
func (c *containers) status() containersStatus {
	s := containersStatus{Answers: containersOff, Networks: []string{}, Copies: []containerCopy{}}
	if c.node == nil || !c.node.wantsContainers() {
		return s
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Answers = c.node.cfg.DNS.Containers
	s.Problem = faultText(c.fault)
	if c.open == nil {
		return s
	}
	s.Service, s.Networks = c.open.addr.String(), describeNets(c.nets)
	for _, engine := range c.engines {
		if engine == engineDocker || engine == enginePodman {
			s.Copies = append(s.Copies, copyOf(engine, c.open.addr, readSmall))
		}
	}
	return s
}

// problem is why containers are not answered although they should be; "" if they are.
func (c *containers) problem() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return faultText(c.fault)
}

func faultText(fault error) string {
	switch hint := hintOf(fault); {
	case fault == nil:
		return ""
	case hint == "":
		return "containers are not answered: " + fault.Error()
	default:
		return "containers are not answered: " + fault.Error() + "; " + hint
	}
}

// readSmall is a small file; nil if it cannot be read.
func readSmall(path string) []byte {
	data, err := readFile(path, maxConf)
	if err != nil {
		return nil
	}
	return data
}

// judgeContainers says whether containers find what they should, and of which engine they do not.
func judgeContainers(f doctorFacts) []finding {
	const name = "containers"
	s := f.status.DNS.Containers
	switch {
	case !f.running():
		return nil
	case s.Service == "":
		return nil // a problem of that is one of the node's
	}
	what := "names of the tailnet and from outside"
	if s.Answers == containersForward {
		what = "names from outside alone"
	}
	where := "no bridge of an engine's is up"
	if len(s.Networks) > 0 {
		where = "on " + strings.Join(s.Networks, ", ")
	}
	list := []finding{fine(name, "%s answers them %s; %s", s.Service, what, where)}
	for _, c := range s.Copies {
		if c.Mend != "" {
			list = append(list, warn(name, c.Mend, "those of %s are told to ask %s, which do not know the tailnet's names", c.Engine, strings.Join(c.Servers, " ")))
		}
	}
	return list
}
