package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// certFlags are the flags of getting a certificate.
type certFlags struct {
	cert, key    string
	passwordFile string
	ca, kind     string
	minValidity  time.Duration
	wildcard     bool
	once         bool
}

// certCommand is the tree below "cert". Without a word of the tree it gets a certificate, as "get" does.
func (a *app) certCommand() *cobra.Command {
	cmd := a.certGetCommand("cert [NAME...]", "Get certificates, and see to those that there are")
	cmd.AddCommand(a.certGetCommand("get NAME...", "Get a certificate, also for a name that is a word of this tree"),
		a.certListCommand(), a.certRenewCommand(), a.certRevokeCommand(), a.certRemoveCommand(), a.certCheckCommand(), a.certTrustCommand())
	return cmd
}

// certGetCommand gets a certificate and writes it to files.
func (a *app) certGetCommand(use, short string) *cobra.Command {
	var f certFlags
	cmd := a.leaf(use, short, func(ctx context.Context, args []string) error { return a.getCert(ctx, args, f) })
	cmd.Long = "Get a certificate for the names, or for all names of this node in one: its own, its service names, and *.NAME where the map\n" +
		"answers there. It is written to NAME.crt and NAME.key in the current directory, and the daemon renews it from then on, the\n" +
		"files too where it can write to them. One for all names takes in those that the node gets later. Names of a public CA's\n" +
		"certificates can be read by everybody (certificate transparency)."
	flags := cmd.Flags()
	flags.StringVar(&f.cert, "cert-file", "", "`file` for the certificate and those above it; - for stdout; ending in .p12, .pfx (PKCS#12) or .combined.pem: with the key in it, as where --key-file is the same")
	flags.StringVar(&f.key, "key-file", "", "`file` for the key; - for stdout")
	flags.StringVar(&f.passwordFile, "password-file", "", "`file` with the password of the PKCS#12 file; without: none")
	flags.DurationVar(&f.minValidity, "min-validity", 0, "renew first if it is valid for less than this `time`")
	flags.StringVar(&f.ca, "ca", "", "`name` of the CA, of those in the configuration")
	flags.StringVar(&f.kind, "key-type", "", "`kind` of key: p256, p384, rsa2048 or rsa4096")
	flags.BoolVar(&f.wildcard, "wildcard", false, "for what is below the first name too: *.NAME")
	flags.BoolVar(&f.once, "once", false, "do not keep the files renewed")
	return withJSON(cmd)
}

// certResult is a certificate that was got, without its key.
type certResult struct {
	Schema   string     `json:"schema"` // meshdns.cert.get/v1
	Name     string     `json:"name"`
	Names    []string   `json:"names"`
	CA       string     `json:"ca"`
	Issued   bool       `json:"issued"` // it is new
	NotAfter time.Time  `json:"notAfter"`
	Files    []certFile `json:"files"`
	Kept     bool       `json:"kept"` // the files are renewed
}

// certFile is a file that was written.
type certFile struct {
	Path    string `json:"path"`
	Changed bool   `json:"changed"`
}

func (a *app) getCert(ctx context.Context, names []string, f certFlags) error {
	if err := f.check(a.json); err != nil {
		return err
	}
	client := a.client()
	req := client.CertRequest(names...)
	req.Wildcard, req.CA, req.Key, req.MinValidity = f.wildcard, f.ca, f.kind, f.minValidity
	got, err := client.Certificate(ctx, req, a.certSteps())
	if err != nil {
		return err
	}
	if f.cert == "-" || f.key == "-" {
		if f.cert == "-" {
			_, err = io.WriteString(a.stdout, got.Chain)
		}
		if f.key == "-" && err == nil {
			_, err = io.WriteString(a.stdout, got.Key)
		}
		if err != nil {
			return fmt.Errorf("writing the certificate: %w", err)
		}
	}
	result := certResult{Schema: "meshdns.cert.get/v1", Name: got.Name, Names: got.Names, CA: got.CA, Issued: got.Issued, NotAfter: got.NotAfter, Files: []certFile{}}
	cert, key, password, err := f.files(got.Name)
	if err != nil {
		return err
	}
	if cert+key != "" {
		changed, err := got.Save(cert, key, password)
		if err != nil {
			return err
		}
		for _, path := range []string{cert, key} {
			if path != "" && (path != cert || len(result.Files) == 0) {
				result.Files = append(result.Files, certFile{path, changed})
			}
		}
		if !f.once {
			result.Kept = a.keepCert(ctx, got.Name, [3]string{cert, key, password})
		}
	}
	if len(result.Files) == 0 && !a.json {
		return nil
	}
	return a.print(result, func(w io.Writer) {
		for _, file := range result.Files {
			state := "unchanged"
			if file.Changed {
				state = "written"
			}
			fmt.Fprintf(w, "%s\t%s, valid until %s\n", file.Path, state, result.NotAfter.Local().Format("2006-01-02 15:04"))
		}
	})
}

// keepCert has the daemon renew the files too, and says so if it cannot.
func (a *app) keepCert(ctx context.Context, name string, files [3]string) bool {
	err := a.client().KeepCertificate(ctx, name, files[0], files[1], files[2])
	if err == nil {
		return true
	}
	a.say("the files will not be renewed: %v", err)
	a.hint("write them where the daemon can, such as below /etc, or run this command again before they end")
	return false
}

// check says what makes no sense on the command line.
func (f certFlags) check(json bool) error {
	stdout := f.cert == "-" || f.key == "-"
	switch {
	case json && stdout:
		return &usageError{errors.New("--json: stdout is taken by the certificate"), "meshdns cert"}
	case f.minValidity < 0:
		return &usageError{errors.New("--min-validity: want a time such as 720h"), "meshdns cert"}
	case f.passwordFile != "" && !isPKCS12(f.cert):
		return &usageError{errors.New("--password-file: only PKCS#12 files (.p12, .pfx) have a password"), "meshdns cert"}
	case isPKCS12(f.cert) && f.key != "":
		return &usageError{errors.New("--key-file: a PKCS#12 file holds the key already"), "meshdns cert"}
	}
	return nil
}

func isPKCS12(path string) bool {
	ext := strings.ToLower(filepath.Ext(path))
	return ext == ".p12" || ext == ".pfx"
}

// files are the absolute paths to write to; empty: none. Only when neither is named are both written in the current directory.
func (f certFlags) files(name string) (cert, key, password string, err error) {
	base := strings.Replace(name, "*", "_", 1)
	cert, key, password = f.cert, f.key, f.passwordFile
	if cert == "" && key == "" {
		cert, key = base+".crt", base+".key"
	}
	for _, path := range []*string{&cert, &key, &password} {
		switch *path {
		case "":
		case "-":
			*path = ""
		default:
			if *path, err = filepath.Abs(*path); err != nil {
				return "", "", "", fmt.Errorf("writing the certificate: %w", err)
			}
		}
	}
	return cert, key, password, nil
}

// certSteps tells of the steps on a terminal.
func (a *app) certSteps() func(step, name, detail string) {
	if !isTerminal(a.stderr) {
		return func(string, string, string) {}
	}
	return func(step, name, detail string) {
		words := map[string]string{
			"account": "account with the CA", "order": "ordered", "published": "TXT record published", "seen": "TXT record seen at every server",
			"validated": "validated", "issued": "issued", "written": "stored", "deployed": "deployed",
		}
		word := words[step]
		if word == "" {
			word = step
		}
		a.say("%s %s", a.paint(a.stderr, green, word), strings.TrimSpace(name+" "+detail))
	}
}

// certListCommand lists the certificates.
func (a *app) certListCommand() *cobra.Command {
	return withJSON(a.leaf("list", "List the certificates, and the files that are renewed with them", func(ctx context.Context, _ []string) error {
		reply, err := ask(ctx, a.client().Certificates)
		if err != nil {
			return err
		}
		return a.print(reply, func(w io.Writer) {
			fmt.Fprintf(w, "NAME\tSTATE\tCA\tENDS\tNEXT\n")
			for _, c := range reply.Certificates {
				ca := c.CA
				if ca == "" {
					ca = "-"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", strings.Join(c.Names, ","), c.State, ca, minute(c.NotAfter), minute(c.Renewal))
				if c.Trouble != nil {
					fmt.Fprintf(w, "  not issued\t%s\n", c.Trouble.Error)
				}
				if c.CAGone {
					fmt.Fprintf(w, "  ca\t%s is not configured any more: another one signs when it is renewed, or at once with: meshdns cert renew --force %s\n", c.CA, c.Name)
				}
				if len(c.Lacks) > 0 {
					fmt.Fprintf(w, "  lacks\t%s: tried for at %s, or at once with: meshdns cert\n", strings.Join(c.Lacks, " "), minute(c.GrowsAt))
				}
				for _, t := range c.Targets {
					line := t.State
					if t.Error != "" {
						line += ": " + t.Error
					}
					fmt.Fprintf(w, "  %s\t%s\n", strings.Trim(strings.Join([]string{t.Cert, t.Key, t.Unit}, " "), " "), line)
				}
			}
		})
	}))
}

func minute(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}

// certRenewCommand renews certificates at once.
func (a *app) certRenewCommand() *cobra.Command {
	var force bool
	cmd := a.leaf("renew [NAME...]", "Renew certificates that are due now, or with --force any", func(ctx context.Context, names []string) error {
		return a.renewCerts(ctx, names, force)
	})
	cmd.Long = "Renew the named certificates, or all, if they are due. The daemon does so by itself. With --force they are renewed although\n" +
		"they are not due; CAs limit how often that is possible."
	cmd.Flags().BoolVar(&force, "force", false, "also those that are not due")
	return withJSON(cmd)
}

// renewResult tells what became of each.
type renewResult struct {
	Schema  string   `json:"schema"` // meshdns.cert.renew/v1
	Renewed []string `json:"renewed"`
	Kept    []string `json:"kept"` // that were not due
}

func (a *app) renewCerts(ctx context.Context, names []string, force bool) error {
	client := a.client()
	if len(names) == 0 {
		reply, err := ask(ctx, client.Certificates)
		if err != nil {
			return err
		}
		for _, c := range reply.Certificates {
			names = append(names, c.Name)
		}
	}
	result := renewResult{Schema: "meshdns.cert.renew/v1", Renewed: []string{}, Kept: []string{}}
	var failed []error
	for _, name := range names {
		req := client.CertRequest(name)
		req.Force, req.Renew = force, true
		got, err := client.Certificate(ctx, req, a.certSteps())
		switch {
		case err != nil:
			failed = append(failed, err)
		case got.Issued:
			result.Renewed = append(result.Renewed, got.Name)
		default:
			result.Kept = append(result.Kept, got.Name)
		}
	}
	err := a.print(result, func(w io.Writer) {
		for _, name := range result.Renewed {
			fmt.Fprintf(w, "%s\trenewed\n", name)
		}
		for _, name := range result.Kept {
			fmt.Fprintf(w, "%s\tnot due\n", name)
		}
	})
	return errors.Join(append(failed, err)...)
}

// certRevokeCommand has a CA revoke a certificate.
func (a *app) certRevokeCommand() *cobra.Command {
	var reason string
	cmd := a.leaf("revoke NAME", "Have the CA revoke a certificate, and remove it", func(ctx context.Context, args []string) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return a.client().RevokeCertificate(ctx, args[0], reason)
	})
	cmd.Flags().StringVar(&reason, "reason", "", "`why`: unspecified, keyCompromise, affiliationChanged, superseded or cessationOfOperation")
	return cmd
}

// certRemoveCommand forgets a certificate.
func (a *app) certRemoveCommand() *cobra.Command {
	cmd := a.leaf("rm NAME", "Forget a certificate and its key: it is not renewed any more", func(ctx context.Context, args []string) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return a.client().RemoveCertificate(ctx, args[0])
	})
	cmd.Long = "Forget a certificate and its key. It is not renewed any more; files that it was written to stay. It remains valid until its end\n" +
		"unless it is revoked: meshdns cert revoke."
	return cmd
}

// certCheckCommand looks at what certificates depend on.
func (a *app) certCheckCommand() *cobra.Command {
	cmd := a.leaf("check", "Check the CAs, the certificates and where they are deployed", func(ctx context.Context, _ []string) error {
		ctx, cancel := context.WithTimeout(ctx, 25*time.Second)
		defer cancel()
		reply, err := a.client().CheckCertificates(ctx)
		if err != nil {
			return err
		}
		err = a.print(reply, func(w io.Writer) {
			for _, f := range reply.Findings {
				fmt.Fprintf(w, "%s\t%s\t%s\n", f.State, f.Name, f.Detail)
				if f.Mend != "" {
					fmt.Fprintf(w, "\t\tto mend: %s\n", f.Mend)
				}
			}
		})
		if err == nil && reply.State == "problem" {
			return errDegraded
		}
		return err
	})
	cmd.Long = "Check that the CAs answer, how each certificate stands, and whether it is where it is deployed. Exits with 6 if something does\nnot work."
	return withJSON(cmd)
}
