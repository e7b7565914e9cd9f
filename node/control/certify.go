package control

import (
	"context"
	"io"
	"net/http"
)

// The paths of the tailnet's own CA.
const (
	pathCertify = "/v1/ca/certify"
	pathRoot    = "/v1/ca/root"
)

// certifyRequest asks the tailnet's CA for a certificate. Its answer, and that to a question for the root, is a chain.
type certifyRequest struct {
	CSR []byte `json:"csr"` // DER
}

type chainAnswer struct {
	PEM []byte `json:"pem"`
}

// Certify asks the gateway's CA for a certificate of the node's names, and returns its chain as PEM.
func (c *Client) Certify(ctx context.Context, csr []byte) (chainPEM []byte, err error) {
	var answer chainAnswer
	err = c.call(ctx, pathCertify, certifyRequest{csr}, &answer)
	return answer.PEM, err
}

// Root asks for the root of the gateway's CA, as PEM.
func (c *Client) Root(ctx context.Context) (rootPEM []byte, err error) {
	var answer chainAnswer
	err = c.call(ctx, pathRoot, struct{}{}, &answer)
	return answer.PEM, err
}

func (s *Server) certify(ctx context.Context, name string, body io.Reader) (any, error) {
	var req certifyRequest
	if err := decode(body, &req); err != nil {
		return nil, err
	}
	if s.cfg.Certify == nil {
		return nil, noCA()
	}
	chain, err := s.cfg.Certify(ctx, name, req.CSR)
	if err != nil {
		return nil, err
	}
	s.log.Info("a certificate of the tailnet's CA", "node", name)
	return chainAnswer{chain}, nil
}

func (s *Server) root(ctx context.Context, _ string, _ io.Reader) (any, error) {
	if s.cfg.Root == nil {
		return nil, noCA()
	}
	root, err := s.cfg.Root(ctx)
	return chainAnswer{root}, err
}

func noCA() error {
	return refuse(http.StatusNotFound, codeBad, "this gateway has no CA")
}

// Refuse is what Certify returns for a request that is wrong: the message goes to whoever asked.
func (s *Server) Refuse(format string, args ...any) error {
	return refuse(http.StatusUnprocessableEntity, codeBad, format, args...)
}
