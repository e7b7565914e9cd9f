package node

import (
	"net/netip"
	"strings"
	"testing"
)

func TestCopiesAreWhatEnginesMakeOfTheMachinesFile(t *testing.T) {
	const stub, uplinks = "nameserver 127.0.0.53\n", "nameserver 127.0.0.77\nnameserver 192.0.2.53\n"
	service := netip.MustParseAddr("10.8.0.254")
	for name, row := range map[string]struct {
		engine string
		files  map[string]string
		want   string
		mend   string // "": none
	}{
		"the service address":  {engineDocker, map[string]string{systemConf: "nameserver 10.8.0.254\n"}, "10.8.0.254", ""},
		"behind a loopback":    {engineDocker, map[string]string{systemConf: "nameserver 127.0.0.77\nnameserver 10.8.0.254\n"}, "10.8.0.254", ""},
		"a loopback alone":     {engineDocker, map[string]string{systemConf: "nameserver 127.0.0.77\n"}, "8.8.8.8 8.8.4.4", `echo '{"dns": ["10.8.0.254"]}'`},
		"systemd-resolved":     {engineDocker, map[string]string{systemConf: stub, resolvedUplinks: uplinks}, "192.0.2.53", "restart docker"},
		"and Podman":           {enginePodman, map[string]string{systemConf: stub, resolvedUplinks: uplinks}, "192.0.2.53", podmanDropIn},
		"a stub and another":   {engineDocker, map[string]string{systemConf: stub + "nameserver 192.0.2.1\n", resolvedUplinks: uplinks}, "192.0.2.1", "restart docker"},
		"no uplinks":           {engineDocker, map[string]string{systemConf: stub}, "8.8.8.8 8.8.4.4", "restart docker"},
		"NetworkManager":       {enginePodman, map[string]string{systemConf: "nameserver 127.0.0.1\n", nmUplinks: "nameserver 10.8.0.254\n"}, "10.8.0.254", ""},
		"which Docker ignores": {engineDocker, map[string]string{systemConf: "nameserver 127.0.0.1\n", nmUplinks: "nameserver 10.8.0.254\n"}, "8.8.8.8 8.8.4.4", "restart docker"},
		"mended":               {engineDocker, map[string]string{systemConf: stub, resolvedUplinks: uplinks, dockerConfig: `{"dns": ["10.8.0.254"]}`}, "10.8.0.254", ""},
		"configured already":   {engineDocker, map[string]string{systemConf: stub, resolvedUplinks: uplinks, dockerConfig: `{"debug": true}`}, "192.0.2.53", `put "dns"`},
		"no JSON":              {engineDocker, map[string]string{systemConf: "nameserver 10.8.0.254\n", dockerConfig: `{`}, "10.8.0.254", ""},
		"Podman, mended":       {enginePodman, map[string]string{systemConf: stub, podmanDropIn: "[containers]\ndns_servers = [\"10.8.0.254\"]\n"}, "10.8.0.254", ""},
		"Podman, otherwise":    {enginePodman, map[string]string{systemConf: "nameserver 10.8.0.254\n", podmanConfig: "  dns_servers=[ '9.9.9.9', \"x\" ]\n# dns_servers = []\n"}, "9.9.9.9", podmanDropIn},
		"no file":              {engineDocker, nil, "8.8.8.8 8.8.4.4", "restart docker"},
	} {
		read := func(path string) []byte {
			if text, ok := row.files[path]; ok {
				return []byte(text)
			}
			return nil
		}
		got := copyOf(row.engine, service, read)
		if strings.Join(got.Servers, " ") != row.want || (got.Mend == "") != (row.mend == "") || !strings.Contains(got.Mend, row.mend) {
			t.Errorf("%s: got %+v, want %s and mend it by %q", name, got, row.want, row.mend)
		}
	}
}

func FuzzCopiedServers(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\n"), []byte(`{"dns": ["10.8.0.254"]}`), []byte(`dns_servers = ["10.8.0.254"]`))
	f.Fuzz(func(t *testing.T, conf, docker, podman []byte) {
		read := func(path string) []byte {
			return map[string][]byte{systemConf: conf, resolvedUplinks: conf, dockerConfig: docker, podmanConfig: podman}[path]
		}
		for _, engine := range []string{engineDocker, enginePodman} {
			if got := copiedServers(engine, read); len(got) == 0 || !got[0].IsValid() {
				t.Errorf("%s gives containers %v", engine, got)
			}
		}
	})
}

func TestDoctorTellsWhatContainersFind(t *testing.T) {
	good := containersStatus{Answers: containersAll, Service: "10.8.0.254", Networks: []string{"docker0 172.17.0.0/16"}, Copies: []containerCopy{{Engine: engineDocker, Servers: []string{"10.8.0.254"}}}}
	bad := good
	bad.Copies = []containerCopy{{Engine: engineDocker, Servers: []string{"192.0.2.53"}, Mend: "do this"}}
	forward := good
	forward.Answers, forward.Networks = containersForward, nil
	for name, row := range map[string]struct {
		status containersStatus
		want   []string // state and words of each finding
	}{
		"none":    {containersStatus{Answers: containersOff}, nil},
		"good":    {good, []string{"ok 10.8.0.254 answers them names of the tailnet and from outside; on docker0 172.17.0.0/16"}},
		"bad":     {bad, []string{"ok 10.8.0.254", "warning those of docker are told to ask 192.0.2.53"}},
		"forward": {forward, []string{"ok 10.8.0.254 answers them names from outside alone; no bridge"}},
	} {
		var f doctorFacts
		f.status.DNS.Containers = row.status
		got := judgeContainers(f)
		if len(got) != len(row.want) {
			t.Errorf("%s: got %+v", name, got)
			continue
		}
		for i, want := range row.want {
			if text := got[i].State + " " + got[i].Detail; !strings.HasPrefix(text, want) || (got[i].State == findingOK) != (got[i].Mend == "") {
				t.Errorf("%s: got %+v, want %s", name, got[i], want)
			}
		}
	}
	// A file that names the service address is one that asks the node.
	f := doctorFacts{conf: confFile{servers: []netip.Addr{netip.MustParseAddr("10.8.0.254")}}}
	f.status.DNS.Takeover.Mode, f.status.DNS.Containers = "direct", good
	if f.overwritten() {
		t.Error("the service address in resolv.conf is taken for another program's work")
	}
}

func TestStatusSaysWhyContainersAreNotAnswered(t *testing.T) {
	n, _ := apiNode(t, testConfig(), &fakeSystem{})
	n.cfg.DNS.OS, n.opt.Root, n.containers.node = "auto", true, n
	if got := n.dnsStatus().Containers; got.Answers != containersAll || got.Service != "" || got.Problem != "" || got.Copies == nil {
		t.Errorf("got %+v", got)
	}
	n.containers.fault = &heldError{addr: netip.MustParseAddrPort("10.8.0.254:53"), holder: "dnsmasq (pid 7)"}
	want := "containers are not answered: listening on 10.8.0.254:53: dnsmasq (pid 7) holds it; end that program"
	if got := strings.Join(n.status().Problems, "\n"); !strings.Contains(got, want) {
		t.Errorf("problems: %q", got)
	}
	if got := n.dnsStatus().Containers.Problem; !strings.HasPrefix(got, want) {
		t.Errorf("got %q", got)
	}
}
