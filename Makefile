# make builds the program; make test and make lab are the whole of what CI runs. Nothing here is checked by eye that a tool can check.
SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -ec
GO          ?= go
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
ROOT        := $(filter 0,$(shell id -u))

# Where the lab keeps its file trees (osconfig/lab/README.md); without root nothing is built there.
export LAB_CACHE ?= $(if $(ROOT),/var/cache/meshdns-lab,$(or $(TMPDIR),/tmp)/osdns-lab)

.PHONY: build deb test deps check race fuzz lab lab-power lab-tailnet lab-tailscale soak bench bench-dns bench-tailnet bench-kernel bench-certs fmt clean
.NOTPARALLEL:

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" ./cmd/meshdns

# A Debian package, whose removal gives the machine's DNS back.
deb: build
	.ci/deb meshdns "$(VERSION)" .

# What a change has to pass before it is done.
test: deps check race fuzz

# Debian packages and the lab's trees, where that is possible: root on Debian.
deps:
	.ci/deps

check:
	.ci/check

race:
	$(GO) test -race -shuffle=on -timeout 15m -json ./... | $(GO) run .ci/testjson.go -show '^TestProof'

# A few seconds of every fuzz target: 90 s in all, 4 s each at most.
fuzz:
	.ci/fuzz 90 4

# The slower set of the tests that run in sandboxes: NetworkManager, connman and DHCP clients; and what is served: logins by
# dex, with Chromium, and h2spec, grpcurl and testssl.sh. None may skip in CI.
lab:
	.ci/deps lab
	MESHDNS_LAB=1 $(GO) test -count=1 -timeout 20m -json -run 'Dex|Chromium|H2spec|Grpcurl|Testssl' ./funnel | $(GO) run .ci/testjson.go -show 'Dex|Chromium|H2spec|Grpcurl|Testssl' -skips=
	MESHDNS_LAB=1 $(GO) test -count=1 -timeout 30m -json -run '^TestProof$$' ./cmd/meshdns | $(GO) run .ci/testjson.go -show Proof -skips=

# A virtual machine with a kernel of its own, whose power is cut: some minutes of software emulation, one after the other.
lab-power:
	.ci/deps power
	MESHDNS_POWER=1 $(GO) test -count=1 -p 1 -timeout 60m -json -run '^TestLab' ./cmd/meshdns ./node/tunnel | $(GO) run .ci/testjson.go -show Lab -skips=

# A gateway and seven nodes behind NATs, with the time that a killed gateway's return takes: on a machine that does nothing else.
lab-tailnet:
	.ci/deps lab
	MESHDNS_SOAK=1 $(GO) test -count=1 -timeout 30m -json -run '^TestProof$$/^tailnet$$' ./cmd/meshdns | $(GO) run .ci/testjson.go -show Proof -skips=

# Beside a real Tailscale, logged in to a real Headscale; both are built once, in minutes.
lab-tailscale:
	.ci/deps lab
	MESHDNS_TAILSCALE=1 $(GO) test -count=1 -timeout 60m -json -run '^TestProof$$/^tailscale$$' ./cmd/meshdns | $(GO) run .ci/testjson.go -show Proof -skips=

# Random kills, handshakes while certificates are renewed, and ten minutes of fuzzing.
soak:
	.ci/deps lab
	MESHDNS_SOAK=1 $(GO) test -count=1 -timeout 20m -json -run 'AKilledGateway' ./node | $(GO) run .ci/testjson.go -show '^$$'
	MESHDNS_SOAK=1 $(GO) test -count=1 -timeout 60m -json -run 'Soak|Kill|Proof' ./osconfig/... ./cmd/meshdns ./certs | $(GO) run .ci/testjson.go -show 'Soak|Kill|Proof'
	.ci/fuzz 600 600

# Figures beside other programs, all in one run: some half an hour. BENCH_* make it shorter, as the three say.
bench: bench-dns bench-tailnet bench-kernel bench-certs

# CPU per query beside the name servers that are installed; resolver/bench/bench.go has the method.
bench-dns: deps build
	MESHDNS_BINARY=$(CURDIR)/meshdns $(GO) test -tags bench -count=1 -timeout 60m -v -run '^TestBench$$' ./resolver/bench

# A thousand nodes on one gateway; throughput beside wireguard-go. node/bench/bench.go has the method.
bench-tailnet: deps build
	MESHDNS_BINARY=$(CURDIR)/meshdns $(GO) test -tags bench -count=1 -timeout 60m -v -run '^Test(Scale|Throughput)$$' ./node/bench

# Throughput by the kernel's WireGuard, in a virtual machine: software emulation, some minutes.
bench-kernel: build
	.ci/deps power
	MESHDNS_BINARY=$(CURDIR)/meshdns BENCH_ROUNDS=$(or $(BENCH_ROUNDS),5) $(GO) test -tags bench -count=1 -timeout 30m -v -run '^TestKernelThroughput$$' ./node/bench

# Certificates from a CA on this machine, beside certmagic. node/bench/bench.go has the method.
bench-certs: deps build
	MESHDNS_BINARY=$(CURDIR)/meshdns $(GO) test -tags bench -count=1 -timeout 20m -v -run '^TestCertificates$$' ./node/bench

fmt:
	gofmt -w $$($(GO) list -f '{{.Dir}}' ./...) .ci
	$(GO) fix ./...

clean:
	rm -f meshdns
	$(GO) clean -testcache
