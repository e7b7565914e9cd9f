package funnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// authority makes certificates for servers and clients of tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

// issue is a certificate for names.
func (a *authority) issue(t *testing.T, names ...string) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key, Leaf: leaf}
}

// world is a Server with listeners, and clients for it.
type world struct {
	t      *testing.T
	server *Server
	ca     *authority
	caller Caller // of the tailnet
	stop   func() // ends all listeners and waits for them
	ctx    context.Context
	ended  []chan error
}

// visitorAddr is where visitors from the world come from.
var visitorAddr = netip.MustParseAddrPort("198.51.100.7:40000")

// newWorld has a certificate for every name in example.
func newWorld(t *testing.T, change ...func(*ServerConfig)) *world {
	t.Helper()
	w := &world{t: t, ca: newAuthority(t), caller: Caller{
		Node: "laptop.example", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.9"), netip.MustParseAddr("fd7a::9")},
		Tags: []string{"admin", "web"}, Owner: true,
	}}
	certificate := w.ca.issue(t, "a.example", "b.example", "*.wild.example", "public.example")
	cfg := ServerConfig{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil },
		Identify:       func(net.Conn) Caller { return w.caller },
		Drain:          100 * time.Millisecond, // net/http lets a second pass before it closes an HTTP/2 connection
	}
	for _, c := range change {
		c(&cfg)
	}
	w.server = NewServer(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	w.ctx = ctx
	w.stop = func() {
		cancel()
		for _, ended := range w.ended {
			select {
			case err := <-ended:
				if err != nil {
					t.Error("Serve: ", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("Serve does not end")
			}
		}
		w.ended = nil
	}
	t.Cleanup(w.stop)
	return w
}

func (w *world) set(entries ...Entry) {
	w.t.Helper()
	if err := w.server.Set(entries); err != nil {
		w.t.Fatal(err)
	}
}

// visits is a listener whose connections come from the world.
type visits struct {
	net.Listener

	name string
	port uint16
	kind string
}

func (v *visits) Accept() (net.Conn, error) {
	conn, err := v.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &Visit{Conn: conn, Visitor: visitorAddr, Name: v.name, Port: v.port, Kind: v.kind}, nil
}

// tailnet listens for the tailnet, as if at port.
func (w *world) tailnet(port uint16) (addr string) {
	ln := listenTest(w.t)
	w.serve(ln, port, false)
	return ln.Addr().String()
}

// public listens for visitors from the world, whom a gateway has passed on for a name and a port.
func (w *world) public(name string, port uint16, kind string) (addr string) {
	ln := listenTest(w.t)
	w.serve(&visits{ln, name, port, kind}, 0, true)
	return ln.Addr().String()
}

func (w *world) serve(ln net.Listener, port uint16, public bool) {
	ended := make(chan error, 1)
	w.ended = append(w.ended, ended)
	go func() { ended <- w.server.Serve(w.ctx, ln, port, public) }()
}

// listenTest is a listener on loopback.
func listenTest(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// client speaks to addr, whatever host a URL has.
func (w *world) client(addr string, protocols func(*http.Protocols)) *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
		TLSClientConfig: &tls.Config{RootCAs: w.ca.pool},
		Protocols:       new(http.Protocols),
	}
	protocols(transport.Protocols)
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func http1(p *http.Protocols) { p.SetHTTP1(true) }
func http2(p *http.Protocols) { p.SetHTTP2(true) }
func h2c(p *http.Protocols)   { p.SetUnencryptedHTTP2(true) }

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
	proto  string
}

func (w *world) get(c *http.Client, url string, change ...func(*http.Request)) answer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.do(c, r, change...)
}

func (w *world) do(c *http.Client, r *http.Request, change ...func(*http.Request)) answer {
	w.t.Helper()
	for _, f := range change {
		f(r)
	}
	res, err := c.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(body), res.Proto}
}

// backend is a target that answers with the request as it came.
func backend(t *testing.T, h http.HandlerFunc) (address string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// mirror shows the request.
func mirror(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s %s\nHost: %s\n", r.Method, r.RequestURI, r.Proto, r.Host)
	_ = r.Header.Write(&b)
	_, _ = io.Copy(&b, r.Body)
	_, _ = b.WriteTo(w)
}

// site is an entry with one mount at /.
func site(kind, name string, port uint16, public bool, target string) Entry {
	return Entry{Kind: kind, Name: name, Port: port, Public: public, Mounts: []Mount{{Path: "/", Target: target}}}
}

func TestWhatIsServedIsReached(t *testing.T) {
	w := newWorld(t)
	to := backend(t, mirror)
	w.set(site("https", "a.example", 443, false, to), site("http", "a.example", 80, false, to),
		site("https", "public.example", 443, true, to))
	secure, plain, public := w.tailnet(443), w.tailnet(80), w.public("public.example", 443, "https")
	for name, test := range map[string]struct {
		addr, url string
		protocols func(*http.Protocols)
		proto     string
	}{
		"https, HTTP/1.1": {secure, "https://a.example/x?y=1;2", http1, "HTTP/1.1"},
		"https, HTTP/2":   {secure, "https://a.example/x?y=1;2", http2, "HTTP/2.0"},
		"http, HTTP/1.1":  {plain, "http://a.example/x?y=1;2", http1, "HTTP/1.1"},
		"http, HTTP/2":    {plain, "http://a.example/x?y=1;2", h2c, "HTTP/2.0"},
		"funnel":          {public, "https://public.example/x?y=1;2", http2, "HTTP/2.0"},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.get(w.client(test.addr, test.protocols), test.url)
			host := strings.Split(test.url, "/")[2]
			if got.status != 200 || got.proto != test.proto || !strings.HasPrefix(got.body, "GET /x?y=1;2 HTTP/1.1\nHost: "+host+"\n") {
				t.Errorf("%+v", got)
			}
		})
	}
}
