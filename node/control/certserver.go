package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"slices"
	"time"
)

// maxCertBody bounds a call about certificates, in bytes.
const maxCertBody = 4 << 10

// textRequest asks for a value to be published, or to go.
type textRequest struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	Lease int    `json:"lease_s,omitempty"` // 0: ten minutes; more than fifteen are fifteen
}

// textAnswer says until when a value is served.
type textAnswer struct {
	Expires time.Time `json:"expires"`
}

// accountRequest names an account at a CA.
type accountRequest struct {
	URI string `json:"uri"`
}

// publishedAnswer is what a node has published with a gateway.
type publishedAnswer struct {
	Texts       []textLease       `json:"texts"`
	Accounts    []string          `json:"accounts"`    // that may issue for the node's names, by CAA
	Suspended   []string          `json:"suspended"`   // credentials of programs whose accounts are not known: while there is one, any account of a CA may
	Issue       []string          `json:"issue"`       // the values of the names' CAA records; none: nobody may issue
	Credentials []credentialState `json:"credentials"` // of programs on the node
}

// credentialState is what may be told of a credential.
type credentialState struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"` // acme-dns or tsig
	Name    string    `json:"name,omitempty"`
	Account string    `json:"account,omitempty"`
	Made    time.Time `json:"made"`
}

// certRoutes are the calls that certificates need.
func (s *Server) certRoutes(mux *http.ServeMux) {
	for pattern, do := range map[string]nodeCall{
		"PUT " + pathText:       s.putText,
		"DELETE " + pathText:    s.deleteText,
		"GET " + pathText:       s.published,
		"PUT " + pathAccount:    s.account(false),
		"DELETE " + pathAccount: s.account(true),
		"POST " + pathTurn:      s.turn,
	} {
		mux.HandleFunc(pattern, s.asNodeWithin(maxCertBody, do))
	}
}

func (s *Server) putText(ctx context.Context, node string, body io.Reader) (any, error) {
	var in textRequest
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	lease := time.Duration(min(in.Lease, int(maxLeaseTime/time.Second))) * time.Second
	until, err := s.publish(ctx, node, "", textChange{Name: in.Name, Value: in.Value, Lease: lease})
	return textAnswer{until}, err
}

func (s *Server) deleteText(ctx context.Context, node string, body io.Reader) (any, error) {
	var in textRequest
	if err := decode(body, &in); err != nil {
		return nil, err
	}
	if in.Value == "" {
		return nil, refuse(http.StatusBadRequest, codeBad, "which value is to go is not said")
	}
	until, err := s.publish(ctx, node, "", textChange{Name: in.Name, Value: in.Value, Drop: true})
	return textAnswer{until}, err
}

// publish makes a node's changes, and returns once the public name server answers so. Whatever comes of it is written down:
// by these values certificates are issued. The values themselves are not: a reader of the log could tell orders apart.
func (s *Server) publish(ctx context.Context, node, by string, list ...textChange) (time.Time, error) {
	until, err := s.cfg.Registry.changeTexts(ctx, node, by, list...)
	if err == nil {
		err = s.serveTexts(ctx, node, by, list)
	}
	result := "done"
	if err != nil {
		result = err.Error()
	}
	for _, c := range list {
		sum := sha256.Sum256([]byte(c.Value))
		s.log.Info("a value for a CA", "node", node, "name", printable(c.Name), "drop", c.Drop, "value_sha256", hex.EncodeToString(sum[:6]),
			"by", by, "result", result)
	}
	if err != nil {
		return time.Time{}, err
	}
	s.cfg.Registry.hear(node)
	s.tellTexts(node)
	return until, nil
}

// serveTexts has the public name server answer what the registry holds. What it cannot serve is not held.
func (s *Server) serveTexts(ctx context.Context, node, by string, list []textChange) error {
	err := s.cfg.Publish()
	if err == nil {
		return nil
	}
	back := slices.DeleteFunc(slices.Clone(list), func(c textChange) bool { return c.Drop })
	for i := range back {
		back[i].Drop = true
	}
	if _, undo := s.cfg.Registry.changeTexts(ctx, node, by, back...); undo != nil {
		s.log.Error("a value that is not served stays in the registry until it ends", "node", node, "err", undo)
	}
	return errors.Join(refuse(http.StatusServiceUnavailable, codeBusy, "the public name server does not take the value"), err)
}

// tellTexts says on a node's stream until when it has values here, so that it lets itself be heard.
func (s *Server) tellTexts(node string) {
	until := s.cfg.Registry.textsUntil(node)
	if until.IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[node]
	if st == nil {
		return
	}
	select {
	case <-st.texts: // which says less
	default:
	}
	select {
	case st.texts <- until:
	default:
	}
}

// textsUntil is when the last of a node's values ends; zero: it has none.
func (r *Registry) textsUntil(node string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	until := lastExpiry(r.certOfLocked(node).Texts)
	if !until.After(r.cfg.Now()) {
		return time.Time{}
	}
	return until
}

// published tells a node what it has published. A node that has values calls it all the while: it is how it is heard.
func (s *Server) published(_ context.Context, node string, _ io.Reader) (any, error) {
	s.cfg.Registry.hear(node)
	return s.cfg.Registry.Published(node), nil
}

// Published is what a node has published for CAs.
func (r *Registry) Published(node string) publishedAnswer {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.certOfLocked(node)
	known, suspended := c.accounts()
	out := publishedAnswer{
		Texts: []textLease{}, Accounts: notNil(known), Suspended: notNil(suspended), Issue: notNil(r.issueValues(c)), Credentials: []credentialState{},
	}
	for _, t := range c.Texts {
		if t.Expires.After(r.cfg.Now()) {
			out.Texts = append(out.Texts, t)
		}
	}
	for _, one := range c.Credentials {
		out.Credentials = append(out.Credentials, credentialState{one.ID, one.Kind, one.Name, one.Account, one.Made})
	}
	return out
}

func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// account takes an account into the CAA records of the node's names, or out of them.
func (s *Server) account(drop bool) nodeCall {
	return func(ctx context.Context, node string, body io.Reader) (any, error) {
		var in accountRequest
		if err := decode(body, &in); err != nil {
			return nil, err
		}
		err := s.cfg.Registry.setAccount(ctx, node, in.URI, drop)
		if err == nil {
			err = s.cfg.Publish()
		}
		s.log.Info("an account for CAA", "node", node, "account", printable(in.URI), "drop", drop, "failed", err != nil)
		if err != nil {
			return nil, err
		}
		return s.cfg.Registry.Published(node), nil
	}
}

// PutAccount takes an account of a node of this machine into the CAA records of its names.
func (s *Server) PutAccount(ctx context.Context, node, uri string) error {
	if err := s.cfg.Registry.setAccount(ctx, node, uri, false); err != nil {
		return err
	}
	return s.cfg.Publish()
}

// PutText publishes a value for a node of this machine: the gateway itself.
func (s *Server) PutText(ctx context.Context, node, name, value string) error {
	_, err := s.publish(ctx, node, "", textChange{Name: name, Value: value})
	return err
}

// DropText takes a value of PutText away again.
func (s *Server) DropText(ctx context.Context, node, name, value string) error {
	_, err := s.publish(ctx, node, "", textChange{Name: name, Value: value, Drop: true})
	return err
}

// Hear takes note that a node of this machine has told everything.
func (s *Server) Hear(node string) { s.cfg.Registry.hear(node) }

// SetText has the gateway publish a value at a name, for a while. It returns when the gateway's public name server serves it.
func (c *Client) SetText(ctx context.Context, name, value string, lease time.Duration) error {
	return c.callBy(ctx, http.MethodPut, pathText, textRequest{Name: name, Value: value, Lease: int(lease / time.Second)}, nil)
}

// ClearText takes a value away again. One that is not there is no error.
func (c *Client) ClearText(ctx context.Context, name, value string) error {
	return c.callBy(ctx, http.MethodDelete, pathText, textRequest{Name: name, Value: value}, nil)
}

// Published is what this node has published with the gateway. Asking lets the gateway know that it has all of that.
func (c *Client) Published(ctx context.Context) (publishedAnswer, error) {
	var answer publishedAnswer
	err := c.callBy(ctx, http.MethodGet, pathText, struct{}{}, &answer)
	return answer, err
}

// SetAccount names an account at a CA that may issue for this node's names, in their CAA records.
func (c *Client) SetAccount(ctx context.Context, uri string, drop bool) error {
	method := http.MethodPut
	if drop {
		method = http.MethodDelete
	}
	return c.callBy(ctx, method, pathAccount, accountRequest{uri}, nil)
}
