package funnel

import (
	"bufio"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// buildTools builds packages of the module testdata/MODULE, which has their versions, as go build -o out does.
func buildTools(t *testing.T, module, out string, packages ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-o", out}, packages...)...)
	cmd.Dir, cmd.Env = filepath.Join("testdata", module), append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("NOT PROVEN: %s cannot be built: %v\n%s", module, err, said)
	}
}

// h2specTests is how many there are in the version of testdata/h2spec/go.mod.
const h2specTests = 146

// h2specReport is what is read of h2spec's report in JUnit's form.
type h2specReport struct {
	Suites []struct {
		Package string `xml:"package,attr"`
		Tests   []struct {
			Name    string    `xml:"classname,attr"`
			Skipped *struct{} `xml:"skipped"`
			Failure *struct {
				Text string `xml:",innerxml"`
			} `xml:"failure"`
			Error *struct {
				Text string `xml:",innerxml"`
			} `xml:"error"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// runH2spec asks h2spec about https or http at addr, and returns what it is not content with, by section and number, and
// how many tests it made.
func runH2spec(t *testing.T, program, addr string, args ...string) (bad map[string]string, tests int) {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "report.xml")
	args = append([]string{"-h", "localhost", "-p", port, "-S", "-j", file}, args...)
	said, failed := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("h2spec: %v, %v\n%s", failed, err, said)
	}
	var report h2specReport
	if err := xml.Unmarshal(text, &report); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	bad = map[string]string{}
	for _, suite := range report.Suites {
		for i, test := range suite.Tests {
			tests++
			id := fmt.Sprintf("%s/%d", suite.Package, i+1)
			switch {
			case test.Skipped != nil:
				bad[id] = "skipped"
			case test.Failure != nil:
				bad[id] = test.Name + ": " + test.Failure.Text
			case test.Error != nil:
				bad[id] = test.Name + ": " + test.Error.Text
			}
		}
	}
	if (failed != nil) != (len(bad) > 0) {
		t.Fatalf("h2spec: %v, and %d in its report\n%s", failed, len(bad), said)
	}
	return bad, tests
}

func TestH2specIsContent(t *testing.T) {
	slow(t)
	dir := t.TempDir()
	buildTools(t, "h2spec", dir, "github.com/summerwind/h2spec/cmd/h2spec")
	w := newWorld(t)
	// It answers once a request is whole: nobody may be answered whose request turns out to be none.
	to := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			_, _ = io.WriteString(w, strings.Repeat("an answer ", 100))
		}
	})
	w.set(site("https", "localhost", 443, false, to), site("http", "localhost", 80, false, to))
	secure, plain := w.tailnet(443), w.tailnet(80)
	known := func(more ...string) map[string]string {
		all := map[string]string{
			"http2/6.5.3/1":   "net/http takes a setting that is there twice for an attack, and closes the connection",
			"http2/8.1.2.2/1": "net/http answers with 400, as RFC 9113, section 8.1.1, has servers do before they close a stream",
			"http2/8.1.2.2/2": "the same",
		}
		for i := 0; i < len(more); i += 2 {
			all[more[i]] = more[i+1]
		}
		return all
	}
	for name, test := range map[string]struct {
		addr  string
		args  []string
		known map[string]string // what is not as h2spec would have it, each with its reason
	}{
		"https": {secure, []string{"-t", "-k"}, known()},
		"http":  {plain, nil, known("http2/3.5/2", "HTTP/1 is spoken there too: what is neither gets 400 in HTTP/1, and the connection ends")},
	} {
		t.Run(name, func(t *testing.T) {
			bad, tests := runH2spec(t, filepath.Join(dir, "h2spec"), test.addr, test.args...)
			if tests != h2specTests {
				t.Errorf("%d tests of %d", tests, h2specTests)
			}
			for id, text := range bad {
				if test.known[id] == "" {
					t.Errorf("%s: %s", id, text)
				}
			}
			for id := range test.known {
				if bad[id] == "" {
					t.Errorf("%s is as it should be: it need not be excused", id)
				}
			}
		})
	}
}

// startCalls starts a program that answers calls of gRPC, and returns its address.
func startCalls(t *testing.T, program string) string {
	t.Helper()
	cmd := exec.Command(program)
	end, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("the program that answers calls: ", err)
		}
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

func TestGrpcurlReachesAProgram(t *testing.T) {
	slow(t)
	dir := t.TempDir()
	buildTools(t, "h2spec", dir, "github.com/fullstorydev/grpcurl/cmd/grpcurl", "./calls")
	w := newWorld(t)
	target := "http://" + startCalls(t, filepath.Join(dir, "calls"))
	w.set(site("https", "a.example", 443, false, target), site("https", "public.example", 443, true, target), site("http", "a.example", 80, false, target))
	ca := w.ca.file(t)
	for name, how := range map[string][]string{
		"tailnet": {"-cacert", ca, "-authority", "a.example", w.tailnet(443)},
		"world":   {"-cacert", ca, "-authority", "public.example", w.public("public.example", 443, "https")},
		"no TLS":  {"-plaintext", "-authority", "a.example", w.tailnet(80)},
	} {
		t.Run(name, func(t *testing.T) {
			grpcurl := func(ctx context.Context, flags []string, after ...string) *exec.Cmd {
				return exec.CommandContext(ctx, filepath.Join(dir, "grpcurl"), slices.Concat([]string{"-max-time", "30"}, flags, how, after)...)
			}
			call := func(flags []string, after ...string) (string, error) {
				out, err := grpcurl(t.Context(), flags, after...).CombinedOutput()
				return string(out), err
			}
			// By reflection, which asks and answers by turns on one stream.
			if got, err := call(nil, "list"); err != nil || !strings.Contains(got, "grpc.health.v1.Health\n") {
				t.Errorf("list: %v: %s", err, got)
			}
			if got, err := call(nil, "grpc.health.v1.Health/Check"); err != nil || !strings.Contains(got, `"status": "SERVING"`) {
				t.Errorf("a call: %v: %s", err, got)
			}
			// Its status is in trailers alone.
			if got, err := call([]string{"-d", `{"service": "nobody"}`}, "grpc.health.v1.Health/Check"); err == nil || !strings.Contains(got, "Code: NotFound") {
				t.Errorf("a call that fails: %v: %s", err, got)
			}
			// A stream without an end, of which comes at once what comes first.
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			watch := grpcurl(ctx, []string{"-d", `{"service": "down"}`}, "grpc.health.v1.Health/Watch")
			out, err := watch.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := watch.Start(); err != nil {
				t.Fatal(err)
			}
			came := false
			for lines := bufio.NewScanner(out); !came && lines.Scan(); {
				came = strings.Contains(lines.Text(), `"status": "NOT_SERVING"`)
			}
			if !came {
				t.Error("a stream: nothing comes")
			}
			leave()
			_ = watch.Wait()
		})
	}
}
