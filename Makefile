# What people type. CI runs the same targets.

SHELL := /bin/sh
CARGO ?= cargo
CACHE := $(or $(HEDDLE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/heddle)
DENY_VERSION := 0.20.2
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help build test lint demo bench bench-cluster bench-scale bench-short soak live mutants envoy e2e cluster-up cluster-down

help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1	\2/p' Makefile

build: ## Build the binaries
	$(CARGO) build --workspace --bins --locked

test: ## Run every test that needs no cluster; ends with "N passed, N failed, N skipped"
	@ENVOY_BIN="$$(tests/scripts/fetch-envoy || true)"; \
	ENVOY_OLD_BIN="$$(tests/scripts/fetch-envoy old || true)"; \
	if [ -n "$$ENVOY_BIN" ]; then export ENVOY_BIN; else unset ENVOY_BIN; fi; \
	if [ -n "$$ENVOY_OLD_BIN" ]; then export ENVOY_OLD_BIN; else unset ENVOY_OLD_BIN; fi; \
	tests/scripts/summarise $(CARGO) test-all

lint: ## Check format, code, documentation, dependencies
	$(CARGO) lint-format
	$(CARGO) lint-code
	RUSTDOCFLAGS="--deny warnings" $(CARGO) lint-docs
	tests/scripts/mutants --check
	@PATH="$$PATH:$(CACHE)/cargo-deny-$(DENY_VERSION)/bin"; export PATH; \
	if command -v cargo-deny >/dev/null; then $(CARGO) lint-deps; \
	else echo "SKIPPED: dependencies are not checked: cargo-deny is not installed (cargo install --locked cargo-deny --version $(DENY_VERSION))"; fi

demo: ## Watch a canary split move through a real Envoy while its YAML is edited, and two sidecars speak mutual TLS
	@ENVOY_BIN="$$(tests/scripts/fetch-envoy)" && export ENVOY_BIN && \
	$(CARGO) build --workspace --bins --locked && \
	exec "$(TARGET)/debug/demo"

bench: ## Measure the engine, injection, the certificate service and agents, and start, latency and bytes with a real Envoy
	@ENVOY_BIN="$$(tests/scripts/fetch-envoy)" && export ENVOY_BIN && \
	$(CARGO) build --release --workspace --locked --bin heddle-controller --bin heddle-agent --bin bench --bin bench_agent --bin bench_engine --bin bench_identity --bin bench_latency --bin bench_sidecar --bin bench_injector --bin bench_scale --bin leash && \
	missed=; for bench in bench_engine bench bench_sidecar bench_identity bench_agent bench_latency bench_injector "bench_scale --short"; do \
		"$(TARGET)/release/"$$bench || missed="$$missed $$bench"; \
	done; \
	if [ -n "$$missed" ]; then echo "bars were missed, or something failed:$$missed"; exit 1; fi

soak: ## Keep real proxies under load for minutes while certificates change (SOAK_SECONDS, RUNS=words); without words also thousands of proxies
	@ENVOY_BIN="$$(tests/scripts/fetch-envoy)" && export ENVOY_BIN && \
	$(CARGO) build --release --workspace --locked --bin heddle-controller --bin heddle-agent --bin leash --bin soak --bin bench_scale && \
	"$(TARGET)/release/soak" $(RUNS) $(if $(RUNS),,&& "$(TARGET)/release/bench_scale" s4 s5 s6 s10)

live: ## Edit the mesh of ten real Envoys 10,000 times under traffic, once in quiet, once while connections are cut and controllers killed (EDITS, ENVOYS, SEED; an hour)
	@ENVOY_BIN="$$(tests/scripts/fetch-envoy)" && ENVOY_OLD_BIN="$$(tests/scripts/fetch-envoy old)" && \
	export ENVOY_BIN ENVOY_OLD_BIN && \
	HEDDLE_LIVE_EDITS="$(or $(EDITS),10000)" HEDDLE_LIVE_ENVOYS="$(or $(ENVOYS),10)" $(if $(SEED),HEDDLE_LIVE_SEED="$(SEED)") \
	$(CARGO) test --release --workspace --locked --test live -- --nocapture --test-threads 1 fleet

bench-cluster: ## Measure reading a large cluster, memory, and a write's way to a proxy, as root
	$(CARGO) build --release --workspace --locked --bin heddle-controller --bin bench_cluster --bin leash && \
	exec "$(TARGET)/release/bench_cluster"

# What `bench_scale` and its controller need.
SCALE := $(CARGO) build --release --workspace --locked --bin heddle-controller --bin bench_scale --bin leash

bench-scale: ## Measure how thousands of proxies are served, beside a floor and go-control-plane (SCENARIOS="s1 s2 …"; 30 minutes)
	$(SCALE) && exec "$(TARGET)/release/bench_scale" $(SCENARIOS)

bench-short: ## The same with a few hundred proxies, where only ratios to the floor and lost changes count (a minute)
	$(SCALE) && exec "$(TARGET)/release/bench_scale" --short

mutants: ## Break the code in one place at a time and see that a test notices (minutes)
	tests/scripts/mutants

e2e: ## Install Heddle into a real Kubernetes and use it, as root; ends with "N passed, N failed, N skipped"
	@ENVOY_BIN="$$(tests/scripts/fetch-envoy)" && export ENVOY_BIN && \
	$(CARGO) build --workspace --bins --locked && \
	exec "$(TARGET)/debug/e2e"

cluster-up: ## Bring up a real Kubernetes of one node, from parts, as root (CLUSTER=name, PROFILE=api)
	@tests/cluster/up

cluster-down: ## Take it away again (CLUSTER=name)
	@tests/cluster/down

envoy: ## Fetch the stock Envoy that tests use, and print its path
	@tests/scripts/fetch-envoy
