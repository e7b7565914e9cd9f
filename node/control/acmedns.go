package control

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// acmeUpdate is a call of acme-dns (github.com/joohoi/acme-dns), whose wire format this is.
type acmeUpdate struct {
	Subdomain string `json:"subdomain"`
	TXT       string `json:"txt"`
}

// The words in which acme-dns refuses.
const (
	acmeMalformed = "malformed_json_payload"
	acmeForbidden = "forbidden"
	acmeBadTXT    = "bad_txt"
)

// ServeACMEDNS answers clients of acme-dns on ln, at a tailnet address, until ctx ends. It is plain HTTP inside the tunnel.
func (s *Server) ServeACMEDNS(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("POST /update", s.acmeUpdate)
	mux.HandleFunc("POST /register", func(w http.ResponseWriter, _ *http.Request) {
		// Credentials are made by who runs the gateway, on it.
		s.acmeAnswer(w, http.StatusForbidden, "error", acmeForbidden)
	})
	server := &http.Server{
		Handler: mux, ReadTimeout: callTimeout, WriteTimeout: writeTime, IdleTimeout: pingInterval, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err := server.Serve(limitListener(ln))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// acmeUpdate publishes one value.
func (s *Server) acmeUpdate(w http.ResponseWriter, r *http.Request) {
	source := sourceOf(addrOf(r))
	if !s.limit.allow(source, time.Now()) {
		s.acmeAnswer(w, http.StatusTooManyRequests, "error", codeBusy)
		return
	}
	node, one, known := s.cfg.Registry.credentialOf(acmeDNSCredential, r.Header.Get("X-Api-User"), source)
	if subtle.ConstantTimeCompare(one.Hash, hashOf(r.Header.Get("X-Api-Key"))) != 1 || !known {
		s.log.Warn("a program that publishes values for a CA was refused", "node", s.cfg.Registry.nodeAt(source))
		s.acmeAnswer(w, http.StatusUnauthorized, "error", acmeForbidden)
		return
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCertBody))
	in, problem := parseACMEUpdate(data)
	switch {
	case err != nil || problem != "":
		s.acmeAnswer(w, http.StatusBadRequest, "error", problem)
		return
	case in.Subdomain != one.Sub:
		s.acmeAnswer(w, http.StatusUnauthorized, "error", acmeForbidden)
		return
	}
	_, err = s.publish(r.Context(), node, one.ID, textChange{Name: challengePrefix + one.Name, Value: in.TXT, Roll: true})
	if err != nil {
		var refused *RefusedError
		status, code := http.StatusServiceUnavailable, codeBusy
		if errors.As(err, &refused) {
			status, code = refused.Status, refused.Code
		}
		s.acmeAnswer(w, status, "error", code)
		return
	}
	s.acmeAnswer(w, http.StatusOK, "txt", in.TXT)
}

// parseACMEUpdate reads a call. problem is acme-dns's word for what is wrong with it; empty: nothing is.
func parseACMEUpdate(data []byte) (in acmeUpdate, problem string) {
	if len(data) > maxCertBody || json.Unmarshal(data, &in) != nil {
		return acmeUpdate{}, acmeMalformed
	}
	if !isDigest(in.TXT) {
		return acmeUpdate{}, acmeBadTXT
	}
	return in, ""
}

func (s *Server) acmeAnswer(w http.ResponseWriter, status int, key, value string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(map[string]string{key: value}); err != nil {
		s.log.Debug("an answer was not taken", "err", err)
	}
}
