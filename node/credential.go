package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/meshdns/meshdns/node/control"
)

// The paths of the calls for credentials of programs on nodes.
const (
	pathCredential  = "/v1/gateway/credential"
	pathCredentials = "/v1/gateway/credentials"
	pathRegister    = "/register" // as acme-dns has it
)

// credentialRequest asks for a credential, or with ID changes one.
type credentialRequest struct {
	Node    string `json:"node"`
	Name    string `json:"name"`    // one of the node's; empty: its own
	Account string `json:"account"` // of the program at a CA; empty: not known
	TSIG    bool   `json:"tsig"`
	ID      string `json:"id"`
	End     bool   `json:"end"`
}

// credentialReply is a credential, which is a secret.
type credentialReply struct {
	Schema  string       `json:"schema"` // meshdns.gateway.credential/v1
	Node    string       `json:"node"`
	Kind    string       `json:"kind"` // acme-dns or tsig
	ID      string       `json:"id"`
	Server  string       `json:"server"` // where it is used, on the node alone
	Name    string       `json:"name"`   // that it is for
	Account string       `json:"account"`
	ACMEDNS *acmeAccount `json:"acme_dns,omitempty"`
	TSIG    *tsigKey     `json:"tsig,omitempty"`
}

// acmeAccount is an account in the form that clients of acme-dns keep.
type acmeAccount struct {
	FullDomain string   `json:"fulldomain"`
	SubDomain  string   `json:"subdomain"`
	Username   string   `json:"username"`
	Password   string   `json:"password"`
	ServerURL  string   `json:"server_url,omitempty"`
	AllowFrom  []string `json:"allowfrom,omitempty"`
}

// tsigKey is a key in the words of RFC 8945.
type tsigKey struct {
	Name      string `json:"name"`
	Algorithm string `json:"algorithm"`
	Secret    string `json:"secret"`
}

// credentialsReply is what a node has published for CAs, and its programs' credentials.
type credentialsReply struct {
	Schema      string           `json:"schema"` // meshdns.gateway.credentials/v1
	Node        string           `json:"node"`
	Credentials []credentialInfo `json:"credentials"`
	Accounts    []string         `json:"accounts"`  // at CAs, that may issue for the node's names
	Suspended   []string         `json:"suspended"` // credentials of programs whose accounts are not known: while there is one, any account may
	Issue       []string         `json:"issue"`     // what CAA says; none: nobody may issue
}

type credentialInfo struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Name    string    `json:"name"`
	Account string    `json:"account"`
	Made    time.Time `json:"made"`
}

// credentialEndpoints are the calls for credentials.
func (n *Node) credentialEndpoints() []endpoint {
	return []endpoint{
		{pattern: "POST " + pathCredential, operator: true, serve: n.asGateway(n.serveCredential)},
		{pattern: "GET " + pathCredentials, operator: true, serve: n.asGateway(n.serveCredentials)},
		{pattern: "GET " + pathPinned, operator: true, serve: n.asGateway(n.servePinned)},
		{pattern: "POST " + pathRegister, operator: true, stream: http.HandlerFunc(n.serveRegister)},
	}
}

// serveCredential makes a credential, or changes one.
func (n *Node) serveCredential(r *http.Request) (any, error) {
	var in credentialRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if in.ID == "" {
		return n.makeCredential(r.Context(), in)
	}
	if err := n.gateway.registry.SetCredential(r.Context(), in.Node, in.ID, in.Account, in.End); err != nil {
		return nil, err
	}
	n.log.Info("a credential for values for CAs has changed", "node", in.Node, "id", in.ID, "ended", in.End)
	if err := n.publish(); err != nil {
		return nil, err
	}
	return credentialReply{Schema: "meshdns.gateway.credential/v1", Node: in.Node, ID: in.ID, Account: in.Account}, nil
}

// makeCredential makes a credential.
func (n *Node) makeCredential(ctx context.Context, in credentialRequest) (credentialReply, error) {
	g := &n.gateway
	m, _ := g.registry.Map()
	name := strings.ToLower(strings.TrimSuffix(in.Name, "."))
	if name != "" && !within(name, m.Zone) {
		name += "." + m.Zone
	}
	made, err := g.registry.AddCredential(ctx, in.Node, name, in.Account, in.TSIG)
	if err == nil {
		err = n.publish() // who may issue is another question now
	}
	if err != nil {
		return credentialReply{}, err
	}
	n.log.Info("a credential for values for CAs was made", "node", in.Node, "id", made.ID, "kind", made.Kind)
	reply := credentialReply{
		Schema: "meshdns.gateway.credential/v1", Node: in.Node, Kind: made.Kind, ID: made.ID, Name: made.Name, Account: in.Account,
	}
	at := m.Ranges[0].Addr().Next()
	if in.TSIG {
		reply.Server = netip.AddrPortFrom(at, portUpdates).String()
		reply.TSIG = &tsigKey{Name: made.ID, Algorithm: "hmac-sha256", Secret: made.Password}
		return reply, nil
	}
	reply.Server = "http://" + netip.AddrPortFrom(at, portACMEDNS).String()
	reply.ACMEDNS = &acmeAccount{
		FullDomain: "_acme-challenge." + made.Name, SubDomain: made.Sub, Username: made.ID, Password: made.Password, ServerURL: reply.Server,
	}
	return reply, nil
}

// serveCredentials tells what a node has, and no secrets.
func (n *Node) serveCredentials(r *http.Request) (any, error) {
	node := r.URL.Query().Get("node")
	m, _ := n.gateway.registry.Map()
	if !slices.ContainsFunc(m.Nodes, func(one control.Node) bool { return one.Name == node }) {
		return nil, hinted(ErrNotFound, fmt.Errorf("there is no node %.100q", node), "see: meshdns gateway nodes")
	}
	has := n.gateway.registry.Published(node)
	reply := credentialsReply{
		Schema: "meshdns.gateway.credentials/v1", Node: node, Credentials: []credentialInfo{},
		Accounts: has.Accounts, Suspended: has.Suspended, Issue: has.Issue,
	}
	for _, c := range has.Credentials {
		reply.Credentials = append(reply.Credentials, credentialInfo{c.ID, c.Kind, c.Name, c.Account, c.Made})
	}
	return reply, nil
}

// serveRegister makes a credential in the words of acme-dns: for the node of the query, or the one whose address is the first
// that may use it.
func (n *Node) serveRegister(w http.ResponseWriter, r *http.Request) {
	var in struct {
		AllowFrom []string `json:"allowfrom"`
	}
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v) // who does not take it asks again
	}
	refuse := func(status int, word string) { answer(status, map[string]string{"error": word}) }
	if n.gateway.registry == nil {
		refuse(http.StatusNotFound, "this node is no gateway")
		return
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil && r.ContentLength != 0 {
		refuse(http.StatusBadRequest, "malformed_json_payload")
		return
	}
	node := r.URL.Query().Get("node")
	if node == "" {
		node = n.nodeAllowed(in.AllowFrom)
	}
	if node == "" {
		refuse(http.StatusBadRequest, "invalid_allowfrom_cidr")
		return
	}
	made, err := n.makeCredential(r.Context(), credentialRequest{Node: node, Name: r.URL.Query().Get("name")})
	if err != nil {
		var refused *control.RefusedError
		if !errors.As(err, &refused) {
			n.log.Error("a credential cannot be made", "err", err)
			refused = &control.RefusedError{Status: http.StatusInternalServerError, Message: "internal_error"}
		}
		refuse(refused.Status, refused.Message)
		return
	}
	m, _ := n.gateway.registry.Map()
	for _, one := range m.Nodes {
		if one.Name == node {
			for _, a := range one.Addresses {
				made.ACMEDNS.AllowFrom = append(made.ACMEDNS.AllowFrom, netip.PrefixFrom(a, a.BitLen()).String())
			}
		}
	}
	answer(http.StatusCreated, made.ACMEDNS)
}

// nodeAllowed is the node whose address is the first in a list.
func (n *Node) nodeAllowed(list []string) string {
	if len(list) == 0 {
		return ""
	}
	word, _, _ := strings.Cut(list[0], "/")
	a, err := netip.ParseAddr(word)
	if err != nil {
		return ""
	}
	m, _ := n.gateway.registry.Map()
	for _, one := range m.Nodes {
		if slices.Contains(one.Addresses, a) {
			return one.Name
		}
	}
	return ""
}

// MakeCredential has a gateway make a credential for a program on a node: of acme-dns, or a key of TSIG.
func (c Client) MakeCredential(ctx context.Context, node, name, account string, tsig bool) (credentialReply, error) {
	return post[credentialReply](ctx, c, pathCredential, credentialRequest{Node: node, Name: name, Account: account, TSIG: tsig})
}

// ChangeCredential records which account at a CA a credential's program has, or ends the credential.
func (c Client) ChangeCredential(ctx context.Context, node, id, account string, end bool) error {
	_, err := post[credentialReply](ctx, c, pathCredential, credentialRequest{Node: node, ID: id, Account: account, End: end})
	return err
}

// Credentials are the credentials of a node's programs, and who may issue for its names.
func (c Client) Credentials(ctx context.Context, node string) (credentialsReply, error) {
	return get[credentialsReply](ctx, c, pathCredentials, url.Values{"node": {node}})
}
