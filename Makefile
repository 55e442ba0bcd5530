# What a person or a machine does with this repository. `make help` lists it.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The tools that `.ci/tool` and `.ci/sqlx-cli` install for this repository alone.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

# Process-per-test where there is nextest; it does not run the examples in the docs, so those are
# run by themselves.
NEXTEST := $(or $(wildcard target/tools/bin/cargo-nextest),$(shell command -v cargo-nextest 2>/dev/null))
RUN_TESTS = cargo $(if $(NEXTEST),nextest run,test) --no-fail-fast $(FEATURES)
RUN_DOCTESTS = $(if $(NEXTEST),cargo test --doc $(FEATURES),true)

# What is checked has everything in it, as the images have; a plain build runs no pods.
FEATURES := --workspace --features lastword/kubernetes

# Each test that compares with a snapshot writes its name here: one that nobody reads is refused.
SNAPSHOTS_READ := $(CURDIR)/target/snapshots-read

# The suites that start replicas, which must hold without NOTIFY too.
CLUSTER_SUITES := $(basename $(notdir $(wildcard tests/cluster*))) dev

.PHONY: help setup run demo test figures bench bench-counts chaos chaos-short soak check fmt lint doc sqlx site deny advisories unused fmt-check sqlx-check model mutants fuzz schemathesis chart-check chart-docs image e2e-local e2e-selftest e2e-compose e2e-image kind-test

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 21

setup: ## install what this machine lacks to build and run, or say what to type
	@.ci/setup

run: setup ## serve on this machine: two replicas, a private Postgres, a demo agent
	cargo run -- dev $(ARGS)

demo: setup ## thirty seconds: kill a replica, watch the other one write the last word
	@cargo build --bin lastword
	@cargo run --quiet -- demo

test: ## all tests, then those over several replicas once more without NOTIFY
	@.ci/pgbouncer >/dev/null
	cargo build $(FEATURES) --bins
	@rm -f $(SNAPSHOTS_READ)
	INSTA_SNAPSHOT_REFERENCES_FILE=$(SNAPSHOTS_READ) $(RUN_TESTS)
	@.ci/snapshots $(SNAPSHOTS_READ)
	$(RUN_DOCTESTS)
	$(if $(CLUSTER_SUITES),LASTWORD_DOORBELL=off $(RUN_TESTS) $(addprefix --test ,$(CLUSTER_SUITES)),@echo 'no suite over several replicas')

figures: ## how long a last word takes after a crash or a kill; for a quiet machine
	cargo bench --profile dev --bench last_word

bench: setup ## how fast it is, beside this machine's limits, in half an hour; ARGS='--short' or '--list'
	cargo build --profile measured --bin lastword
	cargo run --profile measured -p lastword-bench -- $(ARGS)

bench-counts: setup ## what one turn costs the database, against benches/counts.json
	cargo build $(FEATURES) --bins
	cargo run --features lastword/kubernetes -p lastword-bench -- --counts $(ARGS)

chaos: ## break everything, in about ten minutes; CHAOS='--seed 7 replica' for a seed, some drills
	@.ci/pgbouncer >/dev/null
	@.ci/faketime >/dev/null
	cargo test --profile measured --test chaos -- $(CHAOS)

chaos-short: ## a few minutes of it, as in CI
	@.ci/pgbouncer >/dev/null
	@.ci/faketime >/dev/null
	cargo test $(FEATURES) --test chaos -- --form short --seed 1 --lanes 2 $(CHAOS)

soak: ## break everything as often as docs/RELIABILITY.md says, in about two hours, and write its table
	@.ci/pgbouncer >/dev/null
	@.ci/faketime >/dev/null
	cargo test --profile measured --test chaos -- --form full --report target/reliability.md $(CHAOS)

model: ## the protocol in every interleaving of a small world, and that every turn ends; needs Java
	cargo test --test model -- --include-ignored
	.ci/liveness

mutants: ## break eleven rules, one at a time, and see each one caught; NAMES=… picks some
	cargo build --bin lastword
	cargo test --test mutants -- $(NAMES)

fuzz: setup ## each fuzz target for FUZZ_SECONDS (600); TARGETS="lines …" for some of them
	.ci/fuzz $(TARGETS)

schemathesis: setup ## generated requests against /openapi.json; ARGS=short for twenty seconds of them
	.ci/schemathesis $(ARGS)

chart-check: ## the Helm chart: lint, both ends of the API, meaning, policy, generated values; and that these can fail
	.ci/chart $(ARGS)
	.ci/chart --selftest

chart-docs: ## write the table of values in the chart's README anew
	.ci/chart --docs

image: setup ## a static binary and an image of it, FROM scratch, with nothing pulled; target/image/lastword.tar
	deploy/image/build $(ARGS)

# The same driver in four places. Where one cannot be had, it says so and exits with 77: a skip, no success.
e2e-local: setup ## kill, drain, restart, break Postgres: two replicas from the rendered chart, as processes here; ARGS
	.ci/e2e-local $(ARGS)

e2e-selftest: setup ## break what the driver should find, and see it found
	.ci/e2e-selftest

e2e-compose: setup ## the same against deploy/compose.yaml; needs a Docker engine
	.ci/e2e-compose $(ARGS)

e2e-image: setup ## the same against two containers of the image, read-only, any user id; needs a Docker engine
	.ci/e2e-image $(ARGS)

kind-test: setup ## the same against a cluster of kind's; needs kind, kubectl, helm and a Docker engine
	.ci/kind-test $(ARGS)

check: fmt-check lint unused deny doc site sqlx-check chart-check test bench-counts chaos-short e2e-local ## everything that must hold before a change lands

fmt: ## format the code
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

lint: ## clippy over everything; a warning is an error
	cargo clippy --locked --all-targets $(FEATURES) -- -D warnings
	@# Run by themselves, so not among all targets.
	cargo clippy --locked --test chaos --test mutants --features kubernetes -- -D warnings

# Links to private items are allowed: these pages are for those who read the code.
doc: ## the documentation of every item; a broken link is an error
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --locked --no-deps --document-private-items $(FEATURES)

site: ## docs/ as a site, in target/site/index.html
	@.ci/tool mdbook
	mdbook build docs

deny: ## the dependencies: licences, sources, versions; advisories where their database is
	.ci/deny

advisories: ## the same, with the newest database of advisories; fetches it from outside the package registries
	.ci/deny fetch

# In place of cargo-machete, which had to be compiled and looks for words: this one reads the code, and finds stray files too.
unused: ## dependencies and files that no code uses
	@.ci/tool cargo-shear
	cargo shear --locked --deny-warnings
	cd fuzz && cargo shear --locked --deny-warnings

sqlx: ## write .sqlx anew from the migrations and the queries
	.ci/sqlx-cli
	.ci/with-postgres 'cargo sqlx migrate run --database-url "$$DATABASE_URL&options=-csearch_path%3Dlastword" && cargo sqlx prepare -- --all-targets $(FEATURES)'

sqlx-check:
	.ci/sqlx-cli
	.ci/with-postgres 'cargo sqlx migrate run --database-url "$$DATABASE_URL&options=-csearch_path%3Dlastword" && cargo sqlx prepare --check -- --all-targets $(FEATURES)'
