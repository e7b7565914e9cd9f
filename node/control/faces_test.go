package control

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// serveFaces has the faces answer as well.
func (r *rig) serveFaces() (acmeURL, updates string) {
	r.t.Helper()
	r.serve(func(c *ServerConfig) {
		c.Query = func(query []byte, _ netip.Addr, _ bool) []byte {
			m := new(dns.Msg)
			if m.Unpack(query) != nil {
				return nil
			}
			return packed(new(dns.Msg).SetReply(m))
		}
	})
	web, err := net.Listen("tcp4", "127.80.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	udp, tcp, err := bothOn("127.80.0.1")
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- r.server.ServeACMEDNS(ctx, web) }()
	go func() { done <- r.server.ServeUpdates(ctx, udp, tcp) }()
	r.t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				r.t.Error(err)
			}
		}
	})
	return "http://" + web.Addr().String(), udp.LocalAddr().String()
}

// bothOn listens on one port for datagrams and connections.
func bothOn(host string) (net.PacketConn, net.Listener, error) {
	var err error
	for range 20 {
		var tcp net.Listener
		if tcp, err = net.Listen("tcp4", host+":0"); err != nil {
			return nil, nil, err
		}
		var udp net.PacketConn
		if udp, err = net.ListenPacket("udp4", tcp.Addr().String()); err == nil {
			return udp, tcp, nil
		}
		tcp.Close()
	}
	return nil, nil, err
}

func (r *rig) credential(node, name string, tsig bool) newCredential {
	r.t.Helper()
	c, err := r.registry.AddCredential(r.t.Context(), node, name, "", tsig)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// acmeCall makes a call of acme-dns from an address.
func acmeCall(t *testing.T, from netip.Addr, url string, c newCredential, body string) (int, string) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	transport := &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-User", c.ID)
	req.Header.Set("X-Api-Key", c.Password)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(data))
}

func TestProgramsThatSpeakACMEDNSPublish(t *testing.T) {
	r := newRig(t)
	url, _ := r.serveFaces()
	nas, tv := r.join("nas"), r.join("tv")
	c := r.credential("nas", "", false)
	other := r.credential("tv", "", false)
	if c.Name != "nas."+testZone || len(c.Password) != 40 || len(c.ID) != 36 || len(c.Sub) != 36 {
		t.Fatalf("%#v", []string{c.Name, c.ID, c.Sub})
	}
	from := nas.Addresses[0]
	body := func(sub string, n int) string { return fmt.Sprintf(`{"subdomain": %q, "txt": %q}`, sub, digest(n)) }
	status, answer := acmeCall(t, from, url+"/update", c, body(c.Sub, 1))
	if status != 200 || answer != `{"txt":"`+digest(1)+`"}` || !slices.Equal(r.texts(), []string{"_acme-challenge.nas=" + digest(1)}) {
		t.Fatalf("%d %s %v", status, answer, r.texts())
	}
	if r.registry.Unsure(nasChallenge) {
		t.Error("the node was not heard")
	}
	wrong := c
	wrong.Password = other.Password
	nobody := newCredential{}
	key := r.credential("nas", "", true) // another protocol's
	for what, row := range map[string]struct {
		from   netip.Addr
		path   string
		as     newCredential
		body   string
		status int
		answer string
	}{
		"another node's address":  {tv.Addresses[0], "/update", c, body(c.Sub, 2), 401, `{"error":"forbidden"}`},
		"nobody's address":        {addr("127.80.9.9"), "/update", c, body(c.Sub, 2), 401, `{"error":"forbidden"}`},
		"another password":        {from, "/update", wrong, body(c.Sub, 2), 401, `{"error":"forbidden"}`},
		"another user's":          {from, "/update", other, body(other.Sub, 2), 401, `{"error":"forbidden"}`},
		"nobody":                  {from, "/update", nobody, body(c.Sub, 2), 401, `{"error":"forbidden"}`},
		"a key of TSIG":           {from, "/update", key, body(c.Sub, 2), 401, `{"error":"forbidden"}`},
		"another subdomain":       {from, "/update", c, body(other.Sub, 2), 401, `{"error":"forbidden"}`},
		"no subdomain":            {from, "/update", c, body("", 2), 401, `{"error":"forbidden"}`},
		"no digest":               {from, "/update", c, `{"subdomain": "` + c.Sub + `", "txt": "v=spf1"}`, 400, `{"error":"bad_txt"}`},
		"no JSON":                 {from, "/update", c, "x", 400, `{"error":"malformed_json_payload"}`},
		"more than there may be":  {from, "/update", c, `{"x":"` + strings.Repeat("x", 5000) + `"}`, 400, `{"error":"malformed_json_payload"}`},
		"a user of one's own":     {from, "/register", c, `{}`, 403, `{"error":"forbidden"}`},
		"something of the node's": {from, "/v1/acme/txt", c, `{}`, 404, "404 page not found"},
	} {
		status, answer := acmeCall(t, row.from, url+row.path, row.as, row.body)
		if status != row.status || row.answer != "" && answer != row.answer || len(r.texts()) != 1 {
			t.Errorf("%s: %d %s %v", what, status, answer, r.texts())
		}
	}
	// The ninth value takes the oldest one's place.
	for n := 2; n <= 9; n++ {
		r.pass(time.Second)
		if status, answer := acmeCall(t, from, url+"/update", c, body(c.Sub, n)); status != 200 {
			t.Fatalf("%d: %d %s", n, status, answer)
		}
	}
	if got := r.texts(); len(got) != maxTextsName || strings.Contains(fmt.Sprint(got), digest(1)) {
		t.Error(got)
	}
	if err := r.registry.SetCredential(t.Context(), "nas", c.ID, "", true); err != nil || len(r.texts()) != 0 {
		t.Errorf("%v, %v stays of a credential that has ended", err, r.texts())
	}
	if status, _ := acmeCall(t, from, url+"/update", c, body(c.Sub, 3)); status != 401 {
		t.Errorf("it is good still: %d", status)
	}
}

// S18, S21: what lies in the registry opens nothing, and nothing of a credential is printed.
func TestSecretsOfCredentials(t *testing.T) {
	r := newRig(t)
	r.join("nas")
	c, key := r.credential("nas", "app.nas."+testZone, false), r.credential("nas", "", true)
	all, err := r.store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all.List {
		if bytes.Contains(one.Value, []byte(c.Password)) {
			t.Error("the password is kept")
		}
	}
	shown := fmt.Sprintf("%v %+v %#v %s", c, key, r.registry.certs["nas"].Credentials, key)
	raw, err := base64.StdEncoding.DecodeString(key.Password)
	if err != nil || len(raw) != 32 {
		t.Fatal(err)
	}
	mine, err := json.Marshal(r.registry.Published("nas"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{c.Password, key.Password, fmt.Sprint(raw), base64.StdEncoding.EncodeToString(hashOf(c.Password))} {
		if strings.Contains(shown+string(mine), secret) {
			t.Errorf("%s tells %s", shown, secret)
		}
	}
	for name, code := range map[string]string{"tv." + testZone: codeNotYours, testZone: codeNotYours, "_acme-challenge.nas." + testZone: codeNotYours} {
		_, err := r.registry.AddCredential(t.Context(), "nas", name, "", false)
		wantCode(t, err, code)
	}
	_, err = r.registry.AddCredential(t.Context(), "nobody", "", "", false)
	wantCode(t, err, codeUnknownNode)
	for range maxCredentials - 2 {
		r.credential("nas", "", true)
	}
	_, err = r.registry.AddCredential(t.Context(), "nas", "", "", true)
	wantCode(t, err, codeFull)
}

// updater sends updates as a program on a node does.
type updater struct {
	t        *testing.T
	from     netip.Addr
	to       string
	key      newCredential
	protocol string
	last     []byte // the message that was sent
	conn     net.Conn
}

// message is an update of records in zone syntax; "-" before one removes it, "--" the set.
func (u *updater) message(lines ...string) *dns.Msg {
	m := new(dns.Msg).SetUpdate(testZone + ".")
	for _, line := range lines {
		rr, err := dns.NewRR(strings.TrimLeft(line, "-"))
		if err != nil {
			u.t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(line, "--"):
			m.RemoveRRset([]dns.RR{rr})
		case strings.HasPrefix(line, "-"):
			m.Remove([]dns.RR{rr})
		default:
			m.Insert([]dns.RR{rr})
		}
	}
	return m
}

// send signs a message and sends it. rcode is the answer's; of a refused signature it is TSIG's.
func (u *updater) send(m *dns.Msg, at time.Time) (rcode int) {
	u.t.Helper()
	raw, err := base64.StdEncoding.DecodeString(u.key.Password)
	if err != nil {
		u.t.Fatal(err)
	}
	if m.IsTsig() == nil {
		m.SetTsig(u.key.ID+".", dns.HmacSHA256, 300, at.Unix())
	}
	var mac string
	u.last, mac, err = dns.TsigGenerateWithProvider(m, testKey(raw), "", false)
	if err != nil {
		u.t.Fatal(err)
	}
	return u.exchange(u.last, testKey(raw), mac)
}

// testKey signs with whatever algorithm is asked for.
type testKey []byte

func (k testKey) Generate(msg []byte, t *dns.TSIG) ([]byte, error) {
	if hmacOf(t.Algorithm) == nil {
		return []byte("0123456789012345"), nil
	}
	return hmacKey(k).Generate(msg, t)
}

func (k testKey) Verify(msg []byte, t *dns.TSIG) error { return hmacKey(k).Verify(msg, t) }

// exchange sends bytes, and checks the answer's signature where it has one.
func (u *updater) exchange(raw []byte, key testKey, mac string) int {
	u.t.Helper()
	if u.conn == nil {
		protocol := u.protocol
		if protocol == "" {
			protocol = "udp"
		}
		dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(u.from, 0))}
		if protocol == "tcp" {
			dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(u.from, 0))
		}
		conn, err := dialer.DialContext(u.t.Context(), protocol, u.to)
		if err != nil {
			u.t.Fatal(err)
		}
		u.t.Cleanup(func() { conn.Close() })
		u.conn = conn
	}
	c := &dns.Conn{Conn: u.conn, UDPSize: 4096}
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		u.t.Fatal(err)
	}
	if _, err := c.Write(raw); err != nil {
		u.t.Fatal(err)
	}
	reply, err := c.ReadMsgHeader(nil)
	if err != nil {
		u.t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		u.t.Fatal(err)
	}
	if t := m.IsTsig(); t != nil && t.Error != 0 {
		if m.Rcode != dns.RcodeNotAuth {
			u.t.Errorf("rcode %d", m.Rcode)
		}
		return int(t.Error)
	} else if t == nil && (m.Rcode == dns.RcodeSuccess && len(raw) > 100) {
		u.t.Error("the answer is not signed")
	} else if t != nil && key != nil && m.Rcode != dns.RcodeNotAuth { // which the codec takes for a bad signature
		if err := dns.TsigVerifyWithProvider(reply, key, mac, false); err != nil && err != dns.ErrTime { // the rig has a clock of its own
			u.t.Errorf("the answer's signature: %v", err)
		}
	}
	return m.Rcode
}

func TestProgramsThatSendUpdatesPublish(t *testing.T) {
	r := newRig(t)
	_, to := r.serveFaces()
	nas := r.join("nas")
	key := r.credential("nas", "", true)
	txt := func(n int) string { return nasChallenge + ". 60 TXT " + digest(n) }
	for _, protocol := range []string{"udp", "tcp"} {
		u := &updater{t: t, from: nas.Addresses[0], to: to, key: key, protocol: protocol}
		r.pass(time.Minute) // so that no message is that of the other protocol
		if rcode := u.send(u.message(txt(1), txt(2), "_ACME-challenge.app.NAS."+testZone+". 60 TXT "+digest(3)), r.now); rcode != 0 || len(r.texts()) != 3 {
			t.Fatalf("%s: %d %v", protocol, rcode, r.texts())
		}
		if rcode := u.send(u.message("-"+txt(1)), r.now); rcode != 0 || len(r.texts()) != 2 {
			t.Errorf("%s: one goes: %d %v", protocol, rcode, r.texts())
		}
		// What the node itself publishes there is another order's.
		if _, err := r.registry.changeTexts(t.Context(), "nas", "", textChange{Name: nasChallenge, Value: digest(9)}); err != nil {
			t.Fatal(err)
		}
		if rcode := u.send(u.message("--"+txt(1), txt(4)), r.now); rcode != 0 || !strings.Contains(fmt.Sprint(r.texts()), digest(9)) || len(r.texts()) != 3 {
			t.Errorf("%s: the set: %d %v", protocol, rcode, r.texts())
		}
		clean := u.message("--"+txt(1), "--_acme-challenge.app.nas."+testZone+". 0 TXT x", "-"+txt(9))
		if rcode := u.send(clean, r.now); rcode != 0 || len(r.texts()) != 0 {
			t.Errorf("%s: all: %d %v", protocol, rcode, r.texts())
		}
		for _, algorithm := range []string{dns.HmacSHA384, dns.HmacSHA512} {
			m := u.message(txt(5))
			m.SetTsig(key.ID+".", algorithm, 300, r.now.Unix())
			if rcode := u.send(m, r.now); rcode != 0 {
				t.Errorf("%s: %d", algorithm, rcode)
			}
		}
		if rcode := u.send(u.message("-"+txt(5)), r.now); rcode != 0 {
			t.Error(rcode)
		}
		// Clients look where the zone begins.
		query := packed(new(dns.Msg).SetQuestion(nasChallenge+".", dns.TypeSOA))
		if rcode := u.exchange(query, nil, ""); rcode != 0 {
			t.Errorf("a query: %d", rcode)
		}
	}
}

func TestUpdatesThatAreRefused(t *testing.T) {
	r := newRig(t)
	_, to := r.serveFaces()
	nas, tv := r.join("nas"), r.join("tv")
	key := r.credential("nas", "", true)
	r.pass(time.Hour)
	if _, err := r.registry.changeTexts(t.Context(), "nas", "", textChange{Name: nasChallenge, Value: digest(1)}); err != nil {
		t.Fatal(err)
	}
	good := nasChallenge + ". 60 TXT " + digest(2)
	base := updater{t: t, from: nas.Addresses[0], to: to, key: key}
	for what, row := range map[string]struct {
		lines []string
		edit  func(*dns.Msg, *updater)
		want  int
	}{
		"another node's name":        {[]string{"_acme-challenge.tv." + testZone + ". 60 TXT " + digest(2)}, nil, dns.RcodeRefused},
		"one good and one bad":       {[]string{good, "_acme-challenge.tv." + testZone + ". 60 TXT " + digest(2)}, nil, dns.RcodeRefused},
		"the zone's top":             {[]string{"_acme-challenge." + testZone + ". 60 TXT " + digest(2)}, nil, dns.RcodeRefused},
		"_acme-challenge twice":      {[]string{"_acme-challenge._acme-challenge.nas." + testZone + ". 60 TXT " + digest(2)}, nil, dns.RcodeRefused},
		"the name itself":            {[]string{"nas." + testZone + ". 60 TXT " + digest(2)}, nil, dns.RcodeRefused},
		"a value that is no digest":  {[]string{nasChallenge + ". 60 TXT v=spf1"}, nil, dns.RcodeRefused},
		"an address":                 {[]string{"nas." + testZone + ". 60 A 192.0.2.1"}, nil, dns.RcodeRefused},
		"an alias to itself":         {[]string{nasChallenge + ". 60 CNAME " + nasChallenge + "."}, nil, dns.RcodeRefused},
		"aliases in a loop":          {[]string{nasChallenge + ". 60 CNAME _acme-challenge.app.nas." + testZone + ".", "_acme-challenge.app.nas." + testZone + ". 60 CNAME " + nasChallenge + "."}, nil, dns.RcodeRefused},
		"CAA":                        {[]string{"nas." + testZone + `. 60 CAA 0 issue "evil.example"`}, nil, dns.RcodeRefused},
		"a set that is not TXT":      {[]string{"--nas." + testZone + ". 60 A 192.0.2.1"}, nil, dns.RcodeRefused},
		"another's set":              {[]string{"--_acme-challenge.tv." + testZone + ". 60 TXT x"}, nil, dns.RcodeRefused},
		"another zone":               {[]string{good}, func(m *dns.Msg, _ *updater) { m.Question[0].Name = "example.org." }, dns.RcodeNotAuth},
		"outside the zone":           {[]string{"_acme-challenge.nas.example.com. 60 TXT " + digest(2)}, nil, dns.RcodeNotZone},
		"a prerequisite":             {[]string{good}, func(m *dns.Msg, _ *updater) { m.Answer = m.Ns }, dns.RcodeNotImplemented},
		"another node's address":     {[]string{good}, func(_ *dns.Msg, u *updater) { u.from = tv.Addresses[0] }, dns.RcodeBadKey},
		"nobody's address":           {[]string{good}, func(_ *dns.Msg, u *updater) { u.from = addr("127.80.9.9") }, dns.RcodeBadKey},
		"an unknown key":             {[]string{good}, func(_ *dns.Msg, u *updater) { u.key.ID = "nas" }, dns.RcodeBadKey},
		"another secret":             {[]string{good}, func(_ *dns.Msg, u *updater) { u.key.Password = base64.StdEncoding.EncodeToString(make([]byte, 32)) }, dns.RcodeBadSig},
		"MD5":                        {[]string{good}, func(m *dns.Msg, _ *updater) { m.SetTsig(key.ID+".", dns.HmacMD5, 300, r.now.Unix()) }, dns.RcodeBadKey},
		"SHA-1":                      {[]string{good}, func(m *dns.Msg, _ *updater) { m.SetTsig(key.ID+".", dns.HmacSHA1, 300, r.now.Unix()) }, dns.RcodeBadKey},
		"signed too long ago":        {[]string{good}, func(m *dns.Msg, _ *updater) { m.SetTsig(key.ID+".", dns.HmacSHA256, 300, r.now.Unix()-301) }, dns.RcodeBadTime},
		"signed too far ahead":       {[]string{good}, func(m *dns.Msg, _ *updater) { m.SetTsig(key.ID+".", dns.HmacSHA256, 300, r.now.Unix()+301) }, dns.RcodeBadTime},
		"a fudge of hours":           {[]string{good}, func(m *dns.Msg, _ *updater) { m.SetTsig(key.ID+".", dns.HmacSHA256, 9000, r.now.Unix()-4000) }, dns.RcodeBadTime},
		"seventeen values":           {slices.Repeat([]string{good}, maxTextChange+1), nil, dns.RcodeRefused},
		"a class that is no command": {[]string{good}, func(m *dns.Msg, _ *updater) { m.Ns[0].Header().Class = dns.ClassCHAOS }, dns.RcodeFormatError},
	} {
		u := base
		m := u.message(row.lines...)
		if row.edit != nil {
			row.edit(m, &u)
		}
		if rcode := u.send(m, r.now); rcode != row.want || !slices.Equal(r.texts(), []string{"_acme-challenge.nas=" + digest(1)}) {
			t.Errorf("%s: %d, want %d; %v", what, rcode, row.want, r.texts())
		}
		r.pass(3 * time.Second)
		if _, err := r.registry.changeTexts(t.Context(), "nas", "", textChange{Name: nasChallenge, Value: digest(1)}); err != nil {
			t.Fatal(err)
		}
	}
	u := base
	if rcode := u.exchange(packed(u.message(good)), nil, ""); rcode != dns.RcodeRefused {
		t.Errorf("without a signature: %d", rcode)
	}
}

func TestUpdatesAreNotReplayed(t *testing.T) {
	r := newRig(t)
	_, to := r.serveFaces()
	nas := r.join("nas")
	u := &updater{t: t, from: nas.Addresses[0], to: to, key: r.credential("nas", "", true)}
	txt := nasChallenge + ". 60 TXT " + digest(1)
	r.pass(time.Minute)
	if rcode := u.send(u.message(txt), r.now); rcode != 0 {
		t.Fatal(rcode)
	}
	first := slices.Clone(u.last)
	if rcode := u.send(u.message("-"+txt), r.now.Add(time.Second)); rcode != 0 || len(r.texts()) != 0 {
		t.Fatal(rcode, r.texts())
	}
	// A client that has not heard the answer hears it again, and nothing is done again.
	if rcode := u.exchange(first, nil, ""); rcode != 0 || len(r.texts()) != 0 {
		t.Errorf("sent again: %d %v", rcode, r.texts())
	}
	again := &updater{t: t, from: u.from, to: to, key: u.key}
	if rcode := again.exchange(first, nil, ""); rcode != dns.RcodeBadTime || len(r.texts()) != 0 {
		t.Errorf("from another socket: %d %v", rcode, r.texts())
	}
	r.pass(resendTime)
	if rcode := u.exchange(first, nil, ""); rcode != dns.RcodeBadTime || len(r.texts()) != 0 {
		t.Errorf("later: %d %v", rcode, r.texts())
	}
	// A gateway that has just started does not know what was sent before.
	fresh := NewServer(ServerConfig{Registry: r.registry, Key: r.key})
	answer := new(dns.Msg)
	if err := answer.Unpack(fresh.answerUpdate(t.Context(), first, u.conn.LocalAddr(), false)); err != nil {
		t.Fatal(err)
	}
	if tsig := answer.IsTsig(); tsig == nil || tsig.Error != dns.RcodeBadTime || len(r.texts()) != 0 {
		t.Errorf("after a start: %v %v", answer, r.texts())
	}
}

// FuzzACMEUpdate has a program send anything: nothing but a digest comes of it.
func FuzzACMEUpdate(f *testing.F) {
	f.Add([]byte(`{"subdomain":"8e5700ea-a4bf-41c7-8a77-e990661dcc6a","txt":"` + digest(1) + `"}`))
	f.Add([]byte(`{"txt":5}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if in, problem := parseACMEUpdate(data); problem == "" && !isDigest(in.TXT) {
			t.Errorf("%q", in)
		}
	})
}

// FuzzUpdate has a program send anything, signed or not.
func FuzzUpdate(f *testing.F) {
	for _, lines := range [][]string{{nasChallenge + ". 60 TXT " + digest(1)}, {"-" + nasChallenge + ". 60 TXT x"}, {"--" + nasChallenge + ". 60 TXT x", "nas. 1 A 192.0.2.1"}} {
		m := (&updater{}).message(lines...)
		m.SetTsig("nas-1.", dns.HmacSHA256, 300, 1)
		f.Add(packed(m))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := new(dns.Msg)
		if m.Unpack(raw) != nil {
			return
		}
		list, rcode := parseUpdate(m, testZone)
		if rcode != dns.RcodeSuccess && list != nil {
			t.Errorf("%v of a message that is refused", list)
		}
		for _, c := range list {
			if c.Name != foldName(c.Name) || strings.Contains(c.Name, " ") && checkChange(map[string]string{"nas." + testZone: "nas"}, "nas", c) == nil {
				t.Errorf("%+v", c)
			}
		}
		if reply := unsignedReply(m, dns.RcodeBadKey); reply.Rcode == dns.RcodeSuccess {
			t.Error("a refusal that is none")
		}
	})
}
