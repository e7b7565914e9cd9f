package node

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshdns/meshdns/certs"
	"github.com/meshdns/meshdns/node/control"
)

// The files of the tailnet's CA, below the state directory. The root's key is not needed but for the next intermediate, and
// may be kept elsewhere.
const (
	caDir            = "ca"
	caRootFile       = "root.crt"
	caRootKeyFile    = "root.key"
	caBetweenFile    = "intermediate.pem" // with its key
	caRequestFile    = "intermediate.csr" // for a root that is elsewhere
	caRequestKeyFile = "intermediate.next.key"
	caSignedFile     = "intermediate.crt" // that the root elsewhere has signed
	maxCAFile        = 64 << 10
)

// newTailnetCA is the CA of this gateway.
func (n *Node) newTailnetCA(zone string) *tailnetCA {
	return &tailnetCA{dir: filepath.Join(n.opt.Paths.State, caDir), zone: zone, now: time.Now}
}

// tailnetCA is the CA of a gateway's tailnet. It is made when it is first asked for.
type tailnetCA struct {
	dir  string
	zone string
	now  func() time.Time

	mu      sync.Mutex
	root    []byte // PEM
	between *certs.Intermediate
}

// rootAwayError says that the CA needs its root, whose key is elsewhere.
type rootAwayError struct{ dir string }

func (e *rootAwayError) Error() string {
	return "the intermediate of the tailnet's CA has to be made anew, and the root's key is not here"
}

// Hint says how to have it made.
func (e *rootAwayError) Hint() string {
	return fmt.Sprintf("where the root's key is: meshdns gateway ca sign %s; put what it prints into %s", filepath.Join(e.dir, caRequestFile), filepath.Join(e.dir, caSignedFile))
}

// rootPEM is the CA's root.
func (c *tailnetCA) rootPEM() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.openLocked()
	return c.root, err
}

// issue signs a certificate for the key of a request. The names are those of the node that asks, or some of them where the
// request has less: it can narrow, never widen.
func (c *tailnetCA) issue(csr *x509.CertificateRequest, names []string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.openLocked(); err != nil {
		return nil, err
	}
	if err := c.renewLocked(); err != nil {
		return nil, err
	}
	return c.between.Issue(csr.PublicKey, names, c.now())
}

// openLocked reads the CA's files, or makes them. A root that no intermediate is signed by yet was never used.
func (c *tailnetCA) openLocked() error {
	if c.between != nil {
		return nil
	}
	root, err := readFile(c.file(caRootFile), maxCAFile)
	if errors.Is(err, fs.ErrNotExist) {
		return c.makeLocked()
	}
	if err != nil {
		return err
	}
	if _, err := certs.CheckRoot(root); err != nil {
		return fmt.Errorf("%s: %w", c.file(caRootFile), err)
	}
	c.root = root
	both, err := readFile(c.file(caBetweenFile), maxCAFile)
	if errors.Is(err, fs.ErrNotExist) {
		return c.renewLocked()
	}
	if err != nil {
		return err
	}
	c.between, err = certs.ParseIntermediate(pick(both, "CERTIFICATE"), pick(both, "PRIVATE KEY"), root)
	if err != nil {
		return fmt.Errorf("%s: %w", c.file(caBetweenFile), err)
	}
	return nil
}

// makeLocked makes a CA. The root's certificate is written last of its two files: there is no root without a key.
func (c *tailnetCA) makeLocked() error {
	root, err := certs.NewRoot(c.zone, c.now())
	if err != nil {
		return err
	}
	cert, key, err := root.PEM()
	if err != nil {
		return err
	}
	defer clear(key)
	if err := writeFile(c.file(caRootKeyFile), key, 0o600); err != nil {
		return err
	}
	if err := writeFile(c.file(caRootFile), cert, 0o644); err != nil {
		return err
	}
	c.root = cert
	return c.renewLocked()
}

// renewLocked makes an intermediate where there is none, or one that is due. One that is still good stays in use while the
// root is away.
func (c *tailnetCA) renewLocked() error {
	if c.between != nil && !c.between.Due(c.now()) {
		return nil
	}
	if err := c.takeSigned(); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := readFile(c.file(caRootKeyFile), maxCAFile)
	if errors.Is(err, fs.ErrNotExist) {
		return c.requestLocked()
	}
	if err != nil {
		return err
	}
	defer clear(key)
	root, err := certs.ParseRoot(c.root, key)
	if err != nil {
		return fmt.Errorf("%s: %w", c.file(caRootKeyFile), err)
	}
	next, err := root.Intermediate(c.now())
	if err != nil {
		return err
	}
	return c.useLocked(next)
}

// useLocked keeps an intermediate and works with it.
func (c *tailnetCA) useLocked(next *certs.Intermediate) error {
	cert, key, err := next.PEM()
	if err != nil {
		return err
	}
	defer clear(key)
	if err := writeFile(c.file(caBetweenFile), slices.Concat(cert, key), 0o600); err != nil {
		return err
	}
	c.between = next
	return nil
}

// requestLocked writes a request for a root that is elsewhere, once.
func (c *tailnetCA) requestLocked() error {
	if _, err := os.Stat(c.file(caRequestFile)); errors.Is(err, fs.ErrNotExist) {
		request, key, err := certs.NewIntermediateRequest()
		if err != nil {
			return err
		}
		defer clear(key)
		if err := writeFile(c.file(caRequestKeyFile), key, 0o600); err != nil {
			return err
		}
		if err := writeFile(c.file(caRequestFile), request, 0o644); err != nil {
			return err
		}
	}
	if c.between != nil && c.now().Before(c.between.End()) {
		return nil
	}
	return &rootAwayError{c.dir}
}

// takeSigned takes the intermediate that the root has signed elsewhere.
func (c *tailnetCA) takeSigned() error {
	path := c.file(caSignedFile)
	cert, err := readFile(path, maxCAFile)
	if err != nil {
		return err
	}
	key, err := readFile(c.file(caRequestKeyFile), maxCAFile)
	if err != nil {
		return err
	}
	defer clear(key)
	next, err := certs.ParseIntermediate(cert, key, c.root)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if next.Due(c.now()) {
		return fs.ErrNotExist // that of last time
	}
	if err := c.useLocked(next); err != nil {
		return err
	}
	for _, name := range []string{caRequestFile, caSignedFile, caRequestKeyFile} {
		if err := os.Remove(c.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (c *tailnetCA) file(name string) string { return filepath.Join(c.dir, name) }

// pick is the first PEM block of a kind, as PEM.
func pick(text []byte, kind string) []byte {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == kind {
			return pem.EncodeToMemory(block)
		}
	}
	return nil
}

// certifyNode has the CA answer a node's request: of the names in it none may be another's, and none means all of the node's.
func (n *Node) certifyNode(_ context.Context, name string, der []byte) ([]byte, error) {
	refuse := n.gateway.server.Refuse
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, refuse("the certificate request cannot be read: %v", err)
	}
	m, _ := n.gateway.registry.Map()
	i := slices.IndexFunc(m.Nodes, func(c control.Node) bool { return c.Name == name })
	if i < 0 {
		return nil, refuse("no node has the name %s", name)
	}
	own := certifiable(m.Nodes[i], m.Zone)
	names := own
	if len(csr.DNSNames) > 0 {
		names = slices.Clone(csr.DNSNames)
	}
	for _, asked := range names {
		if !slices.Contains(own, asked) {
			return nil, refuse("%s is not a name of %s: it has %s", asked, name, strings.Join(own, ", "))
		}
	}
	chain, err := n.gateway.ca.issue(csr, names)
	var away *rootAwayError
	if errors.As(err, &away) {
		n.log.Warn("the tailnet's CA cannot issue", "err", err, "hint", away.Hint())
		return nil, refuse("%v", err)
	}
	return chain, err
}

// certifiable are the names that a node may have certificates for: its own, its service names, and all beneath each.
func certifiable(c control.Node, zone string) []string {
	var names []string
	for _, label := range append([]string{c.Name}, c.Names...) {
		name := label + "." + zone
		names = append(names, name, "*."+name)
	}
	return names
}

// enrolment is the tailnet's CA as a node sees it: a certs.Issuer.
type enrolment struct{ n *Node }

// Issue asks the gateway, or the CA itself where this node is the gateway.
func (e enrolment) Issue(ctx context.Context, csr *x509.CertificateRequest) ([]byte, error) {
	n := e.n
	var chain []byte
	err := errors.New("this machine has not joined a tailnet with a gateway")
	switch client := n.member.caller(); {
	case n.gateway.registry != nil:
		chain, err = n.certifyNode(ctx, hostLabel(n.host()), csr.Raw)
	case client != nil:
		chain, err = client.Certify(ctx, csr.Raw)
	}
	if err != nil {
		return nil, &certs.StepError{Stage: "issued", CA: "local", Err: err}
	}
	return chain, nil
}

// tailnetRoot is the root of the tailnet's CA, which is checked before anybody believes it.
func (n *Node) tailnetRoot(ctx context.Context) ([]byte, error) {
	if n.gateway.registry != nil {
		return n.gateway.ca.rootPEM()
	}
	client := n.member.caller()
	if client == nil {
		return nil, hinted(nil, errors.New("this machine has not joined a tailnet with a gateway"), "see: meshdns join --help")
	}
	root, err := client.Root(ctx)
	if err != nil {
		return nil, err
	}
	cert, err := certs.CheckRoot(root)
	if err != nil {
		return nil, err
	}
	if m, _ := n.tailnet.current(); cert.PermittedDNSDomains[0] != m.Zone() {
		return nil, fmt.Errorf("the root %q is for the zone %s, and this tailnet is %s", cert.Subject.CommonName, cert.PermittedDNSDomains[0], m.Zone())
	}
	return root, nil
}

// end is when the intermediate in use is over.
func (c *tailnetCA) end() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.between == nil {
		return time.Time{}
	}
	return c.between.End()
}
