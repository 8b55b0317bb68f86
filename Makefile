# make run      build, and run a Python program in a sandbox
# make test     all tests; as root there are more of them
# The rest is explained by `make help`.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION)
# Static, so that the agent runs in any image and the rest on any Linux.
BUILD    := CGO_ENABLED=0 GOOS=linux $(GO) build -trimpath -ldflags '$(LDFLAGS)'
PROGRAMS := daytona daytona-agent daytona-net daytona-s3fs
EMBEDDED := daytona-agent daytona-net daytona-s3fs
ARCHS    ?= amd64 arm64
FUZZTIME ?= 10s
BENCHTIME ?= 10x
LOADTIME ?= 10m
CLIENTS  ?= 50

.PHONY: help run build test table bench load lint generate fuzz image release clean

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

run: build ## build, and run a real Python program in a sandbox
	bin/daytona run -- python3 examples/python/hello.py

build: ## bin/daytona, bin/daytona-agent, bin/daytona-net, bin/daytona-s3fs
	@mkdir -p bin
	$(BUILD) -o bin/ $(addprefix ./cmd/,$(PROGRAMS))

test: ## all tests
	$(GO) test ./...

table: build ## the table in docs/backends.md, from what the suites say here; SUITES=… is what they said elsewhere
	@set -e; suites='$(SUITES)'; if [ -z "$$suites" ]; then \
		suites=$$(mktemp); trap 'rm -f "$$suites"' EXIT; \
		DAYTONA_AGENT=$(CURDIR)/bin/daytona-agent $(GO) test -json -count=1 -timeout 30m -run 'Conformance|Security|Crash' ./backend/... | \
			$(GO) run ./.ci/report -run table -suites "$$suites"; \
	fi; $(GO) run ./.ci/report -suites "$$suites" -table docs/backends.md

bench: ## every backend, in comparison; BENCHTIME=10x
	@GO=$(GO) .ci/bench $(BENCHTIME)

load: ## the server under load; LOADTIME=10m CLIENTS=50
	@GO=$(GO) .ci/bench load $(LOADTIME) $(CLIENTS)

lint: ## gofmt, go vet, and staticcheck and golangci-lint if they are installed
	@files=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$files" ]; then echo "gofmt is missing in:" $$files; exit 1; fi
	$(GO) vet ./...
	@if command -v staticcheck >/dev/null; then echo staticcheck ./...; staticcheck ./...; \
		else echo "staticcheck is not installed: go install honnef.co/go/tools/cmd/staticcheck@v0.8.2"; fi
	@if command -v golangci-lint >/dev/null; then echo golangci-lint run; golangci-lint run; \
		else echo "golangci-lint is not installed: go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0"; fi

generate: ## whatever go:generate says
	$(GO) generate ./...

fuzz: ## every fuzz target for FUZZTIME (10s)
	@GO=$(GO) .ci/fuzz $(FUZZTIME)

image: ## dist/image/default and dist/image/slim: OCI layouts for sandboxes to start from
	@for v in slim default desktop; do $(GO) run ./image/sandbox -variant $$v || exit 1; done

release: ## dist/daytona-linux-ARCH, one file with everything in it, and checksums
	@mkdir -p dist internal/agentbin/bin
	@set -e; for arch in $(ARCHS); do \
		for p in $(EMBEDDED); do GOARCH=$$arch $(BUILD) -o internal/agentbin/bin/$$p ./cmd/$$p; done; \
		GOARCH=$$arch $(BUILD) -tags embedagent -o dist/daytona-linux-$$arch ./cmd/daytona; \
		echo dist/daytona-linux-$$arch; \
	done
	cd dist && sha256sum daytona-linux-* > SHA256SUMS

clean: ## what the above made
	rm -rf bin dist internal/agentbin/bin
