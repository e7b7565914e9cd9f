package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshdns/meshdns/certs"
)

// The paths of the calls for certificates.
const (
	pathCertGet    = "/v1/cert/get"
	pathCertList   = "/v1/cert/list"
	pathCertRevoke = "/v1/cert/revoke"
	pathCertRemove = "/v1/cert/rm"
	pathCertKeep   = "/v1/cert/keep"
	pathCertCheck  = "/v1/cert/check"
)

// certTime is how long a certificate may take: the CA's own bound, at two CAs.
const certTime = 25 * time.Minute

// certRequest asks for a certificate.
type certRequest struct {
	Names       []string      `json:"names"`        // empty: this node's
	Wildcard    bool          `json:"wildcard"`     // with what is below the first one
	CA          string        `json:"ca"`           // empty: as it was, or by preference
	Key         string        `json:"key"`          // kind of key; empty: as it was
	MinValidity time.Duration `json:"min_validity"` // renewed first if less is left
	Force       bool          `json:"force"`        // renewed in any case
	Renew       bool          `json:"renew"`        // only one that there is
}

// certStep is one step to a certificate.
type certStep struct {
	Step   string `json:"step"`
	Name   string `json:"name,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// certReply is a certificate with its key, which is a secret.
type certReply struct {
	Schema   string    `json:"schema"` // meshdns.cert/v1
	Name     string    `json:"name"`
	Names    []string  `json:"names"`
	CA       string    `json:"ca"`
	Issued   bool      `json:"issued"` // it is new
	NotAfter time.Time `json:"notAfter"`
	Chain    string    `json:"chain"` // PEM
	Key      string    `json:"key"`   // PEM
}

// Format prints nothing of the key.
func (r certReply) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "(certificate and key of "+r.Name+")")
}

// certLine is one line of the answer to a request for a certificate: a step, or the end.
type certLine struct {
	Step   *certStep  `json:"step,omitempty"`
	Result *certReply `json:"result,omitempty"`
	Error  *problem   `json:"error,omitempty"`
}

// certListReply lists the certificates.
type certListReply struct {
	Schema       string       `json:"schema"` // meshdns.cert.list/v1
	Certificates []certs.Info `json:"certificates"`
}

// certCheckReply says what is wrong.
type certCheckReply struct {
	Schema   string    `json:"schema"` // meshdns.cert.check/v1
	State    string    `json:"state"`
	Findings []finding `json:"findings"`
}

type certNameRequest struct {
	Name   string `json:"name"`
	Reason string `json:"reason,omitempty"`
}

type certKeepRequest struct {
	Name string `json:"name"`
	Cert string `json:"cert"`
	Key  string `json:"key"`

	PasswordFile string `json:"password_file"`
}

// certEndpoints are the calls of the control API for certificates. Keys and changes are the operator's alone.
func (n *Node) certEndpoints() []endpoint {
	return []endpoint{
		{pattern: "POST " + pathCertGet, operator: true, stream: http.HandlerFunc(n.serveCertGet)},
		{pattern: "GET " + pathCertList, serve: n.withCerts(n.serveCertList)},
		{pattern: "GET " + pathCertCheck, serve: n.withCerts(n.serveCertCheck)},
		{pattern: "POST " + pathCertRevoke, operator: true, serve: n.withCerts(n.serveCertRevoke)},
		{pattern: "POST " + pathCertRemove, operator: true, serve: n.withCerts(n.serveCertRemove)},
		{pattern: "POST " + pathCertKeep, operator: true, serve: n.withCerts(n.serveCertKeep)},
	}
}

// withCerts answers where there can be certificates.
func (n *Node) withCerts(serve func(*http.Request, *certs.Manager) (any, error)) func(*http.Request, caller) (any, error) {
	return func(r *http.Request, _ caller) (any, error) {
		m, err := n.certs.open()
		if err != nil {
			return nil, err
		}
		answer, err := serve(r, m)
		return answer, certError(err)
	}
}

// open is the manager, or why there is none.
func (c *certificates) open() (*certs.Manager, error) {
	state := c.state()
	if state.manager == nil {
		return nil, hinted(nil, fmt.Errorf("there are no certificates: %w", state.reason), hintOf(state.reason))
	}
	return state.manager, nil
}

// certError gives an error of package certs its kind.
func certError(err error) error {
	var later *certs.LaterError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &later):
		hint := hintOf(err)
		if hint == "" {
			hint = "the daemon tries again by itself once that is over"
		}
		return hinted(ErrTimeout, err, hint)
	case errors.Is(err, fs.ErrNotExist):
		return hinted(ErrNotFound, err, hintOf(err))
	}
	return err
}

// serveCertGet gets a certificate. The answer is a line of JSON for each step, as it is taken, and one with the end.
func (n *Node) serveCertGet(w http.ResponseWriter, r *http.Request) {
	var in certRequest
	m, err := n.certs.open()
	if err == nil {
		err = decode(r, &in)
	}
	if err != nil {
		n.control.fail(w, err)
		return
	}
	names, err := n.certNames(in.Names, in.Wildcard)
	if err == nil && in.Renew && !slices.ContainsFunc(m.List(), func(i certs.Info) bool { return i.Name == names[0] }) {
		err = hinted(ErrNotFound, fmt.Errorf("there is no certificate of %s", names[0]), "see: meshdns cert list")
	}
	if err != nil {
		n.control.fail(w, err)
		return
	}
	control := http.NewResponseController(w)
	if err := errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Now().Add(certTime))); err != nil {
		n.control.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	ctx, cancel := context.WithTimeout(r.Context(), certTime)
	defer cancel()
	stop := context.AfterFunc(n.services.ctx, cancel)
	defer stop()
	var mu sync.Mutex
	say := func(line certLine) {
		mu.Lock()
		defer mu.Unlock()
		// The caller may have gone; the certificate is of use all the same.
		_ = json.NewEncoder(w).Encode(line)
		_ = control.Flush()
	}
	c, issued, err := m.Get(ctx, certs.Request{
		Names: names, Exact: len(in.Names) == 0, Own: len(in.Names) == 0, CA: caName(in.CA), Key: in.Key, MinValidity: in.MinValidity, Force: in.Force,
		Steps: func(s certs.Step) { say(certLine{Step: &certStep{Step: s.Stage, Name: s.Name, Detail: s.Detail}}) },
	})
	if err != nil {
		p, _ := describeError(certError(err))
		say(certLine{Error: &p})
		return
	}
	say(certLine{Result: &certReply{
		Schema: "meshdns.cert/v1", Name: c.Name, Names: notNil(c.Leaf.DNSNames), CA: c.CA, Issued: issued,
		NotAfter: c.Leaf.NotAfter.UTC(), Chain: string(c.ChainPEM), Key: string(c.KeyPEM),
	}})
}

func (n *Node) serveCertList(_ *http.Request, m *certs.Manager) (any, error) {
	return certListReply{Schema: "meshdns.cert.list/v1", Certificates: notNil(m.List())}, nil
}

func (n *Node) serveCertRevoke(r *http.Request, m *certs.Manager) (any, error) {
	in, err := n.certNamed(r)
	if err != nil {
		return nil, err
	}
	return struct{}{}, m.Revoke(r.Context(), in.Name, in.Reason)
}

func (n *Node) serveCertRemove(r *http.Request, m *certs.Manager) (any, error) {
	in, err := n.certNamed(r)
	if err != nil {
		return nil, err
	}
	return struct{}{}, m.Remove(r.Context(), in.Name)
}

// certNamed reads a request about one certificate.
func (n *Node) certNamed(r *http.Request) (certNameRequest, error) {
	var in certNameRequest
	if err := decode(r, &in); err != nil {
		return in, err
	}
	m, _ := n.tailnet.current()
	var err error
	in.Name, err = n.certName(m, in.Name)
	return in, err
}

// serveCertKeep has files kept up to date. They belong to who asks, who is root or the daemon's own user (S20).
func (n *Node) serveCertKeep(r *http.Request, m *certs.Manager) (any, error) {
	var in certKeepRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	return struct{}{}, m.Keep(r.Context(), in.Name, certs.Target{Cert: in.Cert, Key: in.Key, PasswordFile: in.PasswordFile})
}

// serveCertCheck looks at everything that certificates depend on.
func (n *Node) serveCertCheck(r *http.Request, m *certs.Manager) (any, error) {
	reply := certCheckReply{Schema: "meshdns.cert.check/v1", State: findingOK, Findings: []finding{}}
	add := func(f finding) {
		if gravity(f.State) > gravity(reply.State) {
			reply.State = f.State
		}
		reply.Findings = append(reply.Findings, f)
	}
	for name, err := range m.Check(r.Context()) {
		if err != nil {
			add(wrong("CA "+name, hintOf(err), "%v", err))
			continue
		}
		add(fine("CA "+name, "answers"))
	}
	if f, ok := n.turnsLeft(r.Context()); ok {
		add(f)
	}
	if f, ok := n.trustFacts(r.Context()).judge(); ok {
		add(f)
	}
	for _, info := range m.List() {
		for _, f := range judgeCert(info) {
			add(f)
		}
	}
	return reply, nil
}

// judgeCerts says how the certificates are that are as they should be; the node's problems tell of the others.
func judgeCerts(f doctorFacts) []finding {
	if !f.running() || len(f.status.Certs) == 0 {
		return nil
	}
	valid := 0
	for _, c := range f.status.Certs {
		if c.State == "valid" {
			valid++
		}
	}
	if valid < len(f.status.Certs) {
		return []finding{warn("certificates", "meshdns cert check", "%d of %d are as they should be", valid, len(f.status.Certs))}
	}
	return []finding{fine("certificates", "%s, renewed by themselves", plural(valid, "certificate"))}
}

// judgeCert says how one certificate is.
func judgeCert(info certs.Info) []finding {
	day := func(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }
	var list []finding
	switch {
	case info.State == "missing" && info.Trouble != nil:
		list = append(list, wrong(info.Name, info.Trouble.Hint, "not issued: %s; tried again at %s", info.Trouble.Error, day(info.Renewal)))
	case info.State == "missing":
		list = append(list, warn(info.Name, "", "not issued yet"))
	case info.Trouble != nil && info.State != "valid":
		list = append(list, wrong(info.Name, info.Trouble.Hint, "%s, ends at %s: %s", info.State, day(info.NotAfter), info.Trouble.Error))
	case info.State != "valid":
		list = append(list, wrong(info.Name, "meshdns cert renew "+info.Name, "%s, ends at %s", info.State, day(info.NotAfter)))
	case info.Trouble != nil:
		list = append(list, warn(info.Name, info.Trouble.Hint, "valid until %s, but not renewed: %s", day(info.NotAfter), info.Trouble.Error))
	default:
		list = append(list, fine(info.Name, "valid until %s, signed by %s, renewed at %s", day(info.NotAfter), info.CA, day(info.Renewal)))
	}
	if info.CAGone {
		list = append(list, warn(info.Name, "meshdns cert renew --force "+info.Name, "%s is not among certs.ca any more: another CA signs when it is renewed", info.CA))
	}
	if len(info.Lacks) > 0 {
		list = append(list, warn(info.Name, "meshdns cert", "lacks %s, which this node has got since: tried for at %s", strings.Join(info.Lacks, ", "), day(info.GrowsAt)))
	}
	for _, t := range info.Targets {
		if t.State == "failed" {
			list = append(list, wrong(info.Name, "", "not deployed to %s: %s; tried again at %s", targetWord(t.Target), t.Error, day(t.Retry)))
		}
	}
	return list
}

// CertRequest is a request for a certificate with these names, or with all of the node's.
func (c Client) CertRequest(names ...string) certRequest { return certRequest{Names: notNil(names)} }

// Certificate gets a certificate, and tells of each step.
func (c Client) Certificate(ctx context.Context, req certRequest, told func(step, name, detail string)) (certReply, error) {
	var end certReply
	body, err := json.Marshal(req)
	if err != nil {
		return end, fmt.Errorf("encoding the request: %w", err)
	}
	done := false
	var failed error
	err = c.do(ctx, http.MethodPost, pathCertGet, bytes.NewReader(body), func(reply io.Reader) error {
		d := json.NewDecoder(reply)
		for {
			var line certLine
			if err := d.Decode(&line); err != nil {
				return err
			}
			switch {
			case line.Step != nil:
				told(line.Step.Step, line.Step.Name, line.Step.Detail)
			case line.Error != nil:
				failed = line.Error.err()
				return nil
			case line.Result != nil:
				end, done = *line.Result, true
				return nil
			}
		}
	})
	if err == nil {
		err = failed
	}
	if err == nil && !done {
		err = errors.New("asking the daemon: it said nothing of the certificate")
	}
	return end, err
}

// Certificates lists the certificates that there are or should be.
func (c Client) Certificates(ctx context.Context) (certListReply, error) {
	return get[certListReply](ctx, c, pathCertList, nil)
}

// CheckCertificates looks at everything that certificates depend on.
func (c Client) CheckCertificates(ctx context.Context) (certCheckReply, error) {
	return get[certCheckReply](ctx, c, pathCertCheck, nil)
}

// RevokeCertificate has the CA revoke a certificate, and removes it.
func (c Client) RevokeCertificate(ctx context.Context, name, reason string) error {
	_, err := post[struct{}](ctx, c, pathCertRevoke, certNameRequest{Name: name, Reason: reason})
	return err
}

// RemoveCertificate forgets a certificate and its key.
func (c Client) RemoveCertificate(ctx context.Context, name string) error {
	_, err := post[struct{}](ctx, c, pathCertRemove, certNameRequest{Name: name})
	return err
}

// KeepCertificate has the daemon keep files that Save has written up to date. It says why it cannot.
func (c Client) KeepCertificate(ctx context.Context, name, cert, key, passwordFile string) error {
	_, err := post[struct{}](ctx, c, pathCertKeep, certKeepRequest{Name: name, Cert: cert, Key: key, PasswordFile: passwordFile})
	return err
}

// Save writes the certificate to files for other programs, all or none; the same path twice is one file with both. changed says
// that they did not hold it yet.
func (r certReply) Save(cert, key, passwordFile string) (changed bool, err error) {
	c, err := certs.ParseCertificate(r.Name, []byte(r.Chain), []byte(r.Key))
	if err != nil {
		return false, err
	}
	return certs.Target{Cert: cert, Key: key, PasswordFile: passwordFile}.Write(c)
}
