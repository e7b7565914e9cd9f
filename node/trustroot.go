package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/meshdns/meshdns/certs"
)

// The paths of the calls about the tailnet's CA.
const (
	pathCARoot = "/v1/ca/root"
	pathCA     = "/v1/gateway/ca"
)

// The files that say which root this machine was told to believe.
const (
	trustedFile  = "trusted.crt"  // written before the system's store is changed, and removed after
	commandsFile = "keychain.crt" // for systems whose store is changed by commands alone
)

// rootReply is the root of the tailnet's CA.
type rootReply struct {
	Schema      string    `json:"schema"` // meshdns.ca.root/v1
	Zone        string    `json:"zone"`   // what it may certify names of, and nothing else
	Fingerprint string    `json:"fingerprint"`
	Until       time.Time `json:"until"`
	PEM         string    `json:"pem"`
}

// caReply is how the gateway's CA is.
type caReply struct {
	Schema       string    `json:"schema"` // meshdns.gateway.ca/v1
	Zone         string    `json:"zone"`
	Directory    string    `json:"directory"`
	Fingerprint  string    `json:"fingerprint"`
	Until        time.Time `json:"until"`
	Intermediate time.Time `json:"intermediate_until"` // when the intermediate in use ends
	RootKey      bool      `json:"root_key"`           // it is on this machine
	Request      string    `json:"request"`            // the file that waits for the root's signature; empty: none
}

// trustEndpoints are the calls about the tailnet's CA.
func (n *Node) trustEndpoints() []endpoint {
	return []endpoint{
		{pattern: "GET " + pathCARoot, serve: n.serveCARoot},
		{pattern: "GET " + pathCA, operator: true, serve: n.asGateway(n.serveCA)},
	}
}

// CARoot asks for the root of the tailnet's CA, which its names and constraints were checked of.
func (c Client) CARoot(ctx context.Context) (rootReply, error) {
	return get[rootReply](ctx, c, pathCARoot, nil)
}

// TailnetCA asks a gateway how its CA is.
func (c Client) TailnetCA(ctx context.Context) (caReply, error) {
	return get[caReply](ctx, c, pathCA, nil)
}

func (n *Node) serveCARoot(r *http.Request, _ caller) (any, error) {
	root, err := n.tailnetRoot(r.Context())
	if err != nil {
		return nil, err
	}
	return describeRoot(root)
}

func describeRoot(root []byte) (rootReply, error) {
	cert, err := certs.CheckRoot(root)
	if err != nil {
		return rootReply{}, err
	}
	return rootReply{
		Schema: "meshdns.ca.root/v1", Zone: cert.PermittedDNSDomains[0], Fingerprint: certs.Fingerprint(cert), Until: cert.NotAfter, PEM: string(root),
	}, nil
}

func (n *Node) serveCA(*http.Request) (any, error) {
	ca := n.gateway.ca
	root, err := ca.rootPEM()
	if err != nil {
		return nil, err
	}
	seen, err := describeRoot(root)
	if err != nil {
		return nil, err
	}
	reply := caReply{
		Schema: "meshdns.gateway.ca/v1", Zone: seen.Zone, Directory: ca.dir, Fingerprint: seen.Fingerprint, Until: seen.Until,
		Intermediate: ca.end(), RootKey: exists(ca.file(caRootKeyFile)),
	}
	if exists(ca.file(caRequestFile)) {
		reply.Request = ca.file(caRequestFile)
	}
	return reply, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// trust is the machine's store of roots.
func (p Paths) trust() certs.TrustStore {
	return certs.TrustStore{Keep: filepath.Join(p.State, caDir, commandsFile)}
}

// TrustRoot has this machine's programs believe the root of the tailnet's CA, PEM. One that they were told before is
// taken back first. It needs root.
func (p Paths) TrustRoot(ctx context.Context, root string) (where string, err error) {
	if _, err := certs.CheckRoot([]byte(root)); err != nil {
		return "", err
	}
	if _, err := p.DistrustRoot(ctx); err != nil {
		return "", err
	}
	note := filepath.Join(p.State, caDir, trustedFile)
	if err := writeFile(note, []byte(root), 0o644); err != nil {
		return "", err
	}
	if where, err = p.trust().Install(ctx, []byte(root)); err != nil {
		return "", errors.Join(needsRoot(err), os.Remove(note))
	}
	return where, nil
}

// trustFacts are what is known of whether this machine's programs believe the tailnet's CA.
type trustFacts struct {
	local bool  // certificates are asked of it
	told  bool  // cert trust was run, and not taken back
	there bool  // the system's store has what was told
	same  bool  // that is the CA's root of today
	err   error // why one of these is not known
}

// trustFacts gathers them.
func (n *Node) trustFacts(ctx context.Context) trustFacts {
	f := trustFacts{local: slices.Contains(n.cfg.Certs.CA, caLocal)}
	told, err := readFile(filepath.Join(n.opt.Paths.State, caDir, trustedFile), maxCAFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f
	case err != nil:
		f.err = err
		return f
	}
	f.told = true
	if f.there, f.err = n.opt.Paths.trust().Installed(told); f.err != nil {
		return f
	}
	root, err := n.tailnetRoot(ctx)
	if err != nil {
		f.err = fmt.Errorf("asking for the CA's root: %w", err)
		return f
	}
	f.same = bytes.Equal(bytes.TrimSpace(root), bytes.TrimSpace(told))
	return f
}

// judge says how it is; ok is false where nobody wants to know.
func (f trustFacts) judge() (_ finding, ok bool) {
	const what, mend = "trust", "sudo meshdns cert trust"
	switch {
	case f.told && f.err == nil && !f.there:
		return wrong(what, mend, "the root of the tailnet's CA was installed, and is not in the system's store any more"), true
	case f.told && f.err == nil && !f.same:
		return wrong(what, mend, "the system's store has an older root of the tailnet's CA"), true
	case f.err != nil:
		return warn(what, "", "whether this machine's programs believe the tailnet's CA is not known: %v", f.err), true
	case f.told:
		return fine(what, "this machine's programs believe the tailnet's CA"), true
	case f.local:
		return fine(what, "this machine's programs do not believe the tailnet's CA; they do after %s", mend), true
	}
	return finding{}, false
}

// DistrustRoot has them believe it no longer. It needs no daemon. was reports whether there was one.
func (p Paths) DistrustRoot(ctx context.Context) (was bool, err error) {
	note := filepath.Join(p.State, caDir, trustedFile)
	root, err := readFile(note, maxCAFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = p.trust().Remove(ctx, root)
	}
	if err != nil {
		return true, needsRoot(err)
	}
	return true, os.Remove(note)
}

// needsRoot has an error that root would not have met say so.
func needsRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return hinted(ErrNotPermitted, err, "the system's roots are root's: run this with sudo")
	}
	return err
}

// SignIntermediate signs the request of a gateway's CA with the root in dir, which holds root.crt and root.key. The
// result is PEM.
func (p Paths) SignIntermediate(request, dir string) ([]byte, error) {
	if dir == "" {
		dir = filepath.Join(p.State, caDir)
	}
	var texts [3][]byte
	for i, path := range []string{request, filepath.Join(dir, caRootFile), filepath.Join(dir, caRootKeyFile)} {
		var err error
		if texts[i], err = readFile(path, maxCAFile); err != nil {
			return nil, err
		}
	}
	defer clear(texts[2])
	root, err := certs.ParseRoot(texts[1], texts[2])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	signed, err := root.Sign(texts[0], time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", request, err)
	}
	return signed, nil
}
