package node

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// askNas makes a request to nas over the tailnet and TLS, and returns its answer without the body.
func (n *testNode) askNas(t *testing.T, method, path string, header ...string) *http.Response {
	t.Helper()
	const name = "nas.foo-bar.example.org"
	conn := n.secure(t, n.dials(t, "nas", 443), name)
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: 0\r\n%s\r\n", method, path, name, strings.Join(append(header, ""), "\r\n"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

// A link lets one browser in, once, and a restart does not make it new.
func TestAShareLinkWorksOnce(t *testing.T) {
	g := startGateway(t)
	nas, tv := g.certified(t, "nas"), g.invited(t, "tv")
	soon(t, "names", func() bool { return tv.knows(t, "nas") })
	ask := serveShare{serveOff: serveOff{}, For: time.Hour}
	if _, err := nas.ShareServed(t.Context(), ask); !errors.Is(err, ErrNotFound) || hintOf(err) == "" {
		t.Errorf("a link to nothing: %v", err)
	}
	must(t, nas.serveDone(t, serveRequest{Target: "text:hello"}))
	if resp := tv.askNas(t, "GET", "/"); resp.StatusCode != 200 {
		t.Errorf("without a link: %s", resp.Status)
	}
	made, err := nas.ShareServed(t.Context(), ask)
	must(t, err)
	link, err := url.Parse(made.Link)
	if err != nil || link.Host != "nas.foo-bar.example.org" || strings.Contains(fmt.Sprintf("%v %+v", made, made), link.Path) {
		t.Errorf("%s, %v, %v", made.Link, made, err)
	}
	if resp := tv.askNas(t, "GET", "/"); resp.StatusCode == 200 {
		t.Errorf("once there is one: %s", resp.Status)
	}
	if resp := tv.askNas(t, "GET", link.Path); resp.StatusCode != 200 || len(resp.Cookies()) > 0 {
		t.Errorf("a look at it: %s %v", resp.Status, resp.Cookies())
	}
	taken := tv.askNas(t, "POST", link.Path, "Origin: https://nas.foo-bar.example.org")
	if taken.StatusCode != http.StatusSeeOther || len(taken.Cookies()) != 1 {
		t.Fatalf("taken: %s %v", taken.Status, taken.Cookies())
	}
	cookie := "Cookie: " + taken.Cookies()[0].Name + "=" + taken.Cookies()[0].Value
	if resp := tv.askNas(t, "GET", "/", cookie); resp.StatusCode != 200 {
		t.Errorf("its taker: %s", resp.Status)
	}
	must(t, nas.end())
	cfg := testConfig()
	cfg.Node, cfg.Tunnel, cfg.Certs.CA = "", tunnelConfig{Mode: "userspace"}, []string{caLocal}
	startNode(t, cfg, nas.paths)
	if resp := tv.askNas(t, "POST", link.Path, "Origin: https://nas.foo-bar.example.org"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("taken again, after a restart: %s", resp.Status)
	}
	if resp := tv.askNas(t, "GET", "/", cookie); resp.StatusCode != 200 {
		t.Errorf("its taker, after a restart: %s", resp.Status)
	}
}
