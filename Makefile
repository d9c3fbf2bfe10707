# The ways into Relevo. `make help` lists them; the work is done by cargo and the scripts beside this file.

CARGO ?= cargo
# What `make up` hands on, such as ARGS="--threads 4".
ARGS ?=
# Of the local cluster of `make cluster`.
SHAPE ?= 2p2d

.DEFAULT_GOAL := help
.PHONY: help tools up cluster build test fmt lint soak chaos bench bench-peer bench-overhead bench-link bench-gateway python-env deny advisories example-config clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

tools:
	@sh scripts/check-tools

build: tools ## Build the release binary
	$(CARGO) build --release --locked -p relevo

up: build ## Build, fetch the default model once, and serve it on http://127.0.0.1:8080
	@exec $(CARGO) run --quiet --release --locked -p relevo -- up $(ARGS)

cluster: build ## A cluster of processes on this machine: two that prefill, two that decode
	@exec $(CARGO) run --quiet --release --locked -p relevo -- up --local-cluster $(SHAPE) $(ARGS)

test: tools ## Install what tests need, and run every check and test
	@sh scripts/test

soak: build ## 2,000 mixed requests against the release binary: minutes
	$(CARGO) run --quiet --release --locked -p relevo --example soak

chaos: build ## Ten minutes of killed, stopped, cut off, drained and flipped workers under load
	@$(CARGO) run --quiet --release --locked -p relevo -- bench chaos $(ARGS)

bench: build ## The bare engine's speed on the default model
	@$(CARGO) run --quiet --release --locked -p relevo -- model pull smollm2 >/dev/null
	$(CARGO) run --quiet --release --locked -p relevo -- bench engine --model smollm2

bench-peer: build ## Relevo and llama.cpp side by side, interleaved (builds llama.cpp once)
	scripts/bench-against-llama-cpp

bench-gateway: ## What the gateway costs for a request and for a token, against scripted devices
	$(CARGO) build --quiet --release --locked -p relevo --bins --example gateway_bench
	target/release/examples/gateway_bench

bench-link: build ## What KV blocks between two processes cost, beside a bare copy
	scripts/bench-link

bench-overhead: build ## What gateway and actors add to the bare engine
	@$(CARGO) run --quiet --release --locked -p relevo -- model pull smollm2 >/dev/null
	scripts/bench-overhead

python-env: ## The Python environment of the OpenAI client tests, in .venv
	@sh scripts/python-env

fmt: tools ## Format the code
	$(CARGO) fmt --all

lint: tools ## Format check and clippy, as `make test` runs them
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

deny: ## Licences, bans and sources of dependencies (needs cargo-deny)
	$(CARGO) deny check bans licenses sources

advisories: ## Known vulnerabilities of dependencies (needs cargo-deny and a network)
	$(CARGO) deny check advisories

example-config: tools ## Write docs/relevo.example.toml anew from the types
	$(CARGO) run --quiet --locked -p relevo -- config --example > docs/relevo.example.toml

clean: ## Remove what was built
	$(CARGO) clean
