package node

import (
	"net/netip"
	"regexp"
	"slices"
)

// containerNet is a bridge of a container engine, with the networks that containers on it have their addresses in.
type containerNet struct {
	name     string
	index    int
	prefixes []netip.Prefix // IPv4, masked
}

func (c containerNet) equal(other containerNet) bool {
	return c.name == other.name && c.index == other.index && slices.Equal(c.prefixes, other.prefixes)
}

// bridge is what the kernel says of one bridge.
type bridge struct {
	name  string
	index int
	addrs []netip.Prefix // of the bridge itself, not masked
	ports []string       // the kind of each link in it: veth, tuntap, device, …
}

// Bounds of the filter that is made of them.
const (
	maxContainerNets    = 128
	maxContainerSubnets = 4 // of one bridge
)

// engineBridge matches the names that container engines give their bridges: Docker and nerdctl (docker0,
// docker_gwbridge, nerdctl0, br- and the first 12 digits of the network's ID), Podman (podman0, cni-podman0),
// Kubernetes' CNI (cni0), Incus, LXD and LXC. libvirt's virbr0 is none: its guests ask libvirt's own dnsmasq.
var engineBridge = regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12}|nerdctl[0-9]+|podman[0-9]+|cni-podman[0-9]+|cni[0-9]+|incusbr[0-9]+|lxdbr[0-9]+|lxcbr[0-9]+)$`)

// findContainerNets are the bridges whose containers are answered: those with an engine's name and those in more. A
// bridge with a port that no container is behind joins other machines to it, so their addresses lie in its networks too:
// it counts only if somebody says so.
func findContainerNets(bridges []bridge, more []string) []containerNet {
	var nets []containerNet
	for _, b := range bridges {
		named := slices.Contains(more, b.name)
		if !named && !(engineBridge.MatchString(b.name) && !slices.ContainsFunc(b.ports, leadsOut)) {
			continue
		}
		n := containerNet{name: b.name, index: b.index}
		for _, a := range b.addrs {
			p := a.Masked()
			if a.Addr().Is4() && p.Bits() >= shortestV4 && p.Bits() < 32 && !slices.Contains(n.prefixes, p) && len(n.prefixes) < maxContainerSubnets {
				n.prefixes = append(n.prefixes, p)
			}
		}
		if len(n.prefixes) > 0 && len(nets) < maxContainerNets {
			nets = append(nets, n)
		}
	}
	return nets
}

// leadsOut reports whether a port of this kind may have more behind it than a container.
func leadsOut(kind string) bool {
	return !slices.Contains([]string{"veth", "tuntap", "dummy"}, kind)
}

// containerEngines are the container engines that this machine has, by what they put on it.
func containerEngines(exists func(path string) bool) []string {
	var list []string
	for _, engine := range []struct {
		name  string
		signs []string
	}{
		{engineDocker, []string{"/run/docker.sock", "/var/run/docker.sock"}},
		// It has no daemon, and its bridge comes with the first container, which has its copy by then.
		{enginePodman, []string{"/usr/bin/podman", "/usr/local/bin/podman", "/run/podman/podman.sock"}},
		{"k3s", []string{"/run/k3s/containerd/containerd.sock"}},
		{"nerdctl", []string{"/usr/local/bin/nerdctl", "/usr/bin/nerdctl"}},
	} {
		if slices.ContainsFunc(engine.signs, exists) {
			list = append(list, engine.name)
		}
	}
	return list
}

// The engines whose copies of resolv.conf are known.
const (
	engineDocker = "docker"
	enginePodman = "podman"
)
