# make chat    set everything up and talk to a real Llama
# make test    the whole test suite, linters and types
# make bench   this machine's limits and the model's share of them
# make test-peers   compare with llama.cpp and transformers, built into an environment of their own
# make test-schemas  answers under the real schemas of schemastore, by noise and by the default model
# make test-conformance  the server against OpenAI's document and suites of others, in an environment of its own
# make test-clients  the server and clients of others, of Python and of node, in an environment of its own
# make test-ray   replicas on a Ray cluster of two nodes on this machine, in an environment of their own
# make soak    twenty minutes of hostile clients, kills, a full disk and a dead PostgreSQL
# make sanitize     the kernels and readers under the address and undefined-behaviour sanitizers

PYTHON ?= python3
MODEL ?= smollm2
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/* csrc/ops/*)

.PHONY: chat test bench test-peers test-schemas test-conformance test-clients test-ray soak sanitize \
        clean
chat: $(VENV)/installed
	@$(BIN)/puna chat --yes $(MODEL)

bench: $(VENV)/installed
	@$(BIN)/puna bench --yes $(MODEL)

test: $(VENV)/tested-with
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/puna pull smollm2
	$(BIN)/pytest -m "not peers"

test-peers: .venv-peers/installed
	.venv-peers/bin/puna pull smollm2
	.venv-peers/bin/pytest -m peers

test-schemas: $(VENV)/tested-with
	PYTHONPATH=tests $(BIN)/python -m server.structured.real_schemas
	PYTHONPATH=tests $(BIN)/python -m server.structured.real_schemas --seeds 1 --model smollm2

# the plugins that these packages bring for pytest are not what is tested
test-conformance: .venv-conformance/installed
	.venv-conformance/bin/pytest -p no:schemathesis tests/server/conformance tests/text/test_canitoolcall.py
	PYTHONPATH=tests .venv-conformance/bin/python -m server.conformance.openapi --cases 2000

NODE := tests/server/clients/node

test-clients: .venv-clients/installed $(NODE)/node_modules/installed
	.venv-clients/bin/pytest -p no:langsmith_plugin tests/server/clients

test-ray: .venv-ray/installed
	.venv-ray/bin/pytest tests/server/cluster

soak: $(VENV)/tested-with
	PYTHONPATH=tests $(BIN)/python -m serving chaos --model $(MODEL) --minutes 20

sanitize: $(VENV)/tested-with
	PYTHON=$(BIN)/python tests/fuzz/sanitize.sh

clean:
	rm -rf $(VENV) .venv-peers .venv-conformance .venv-clients .venv-ray $(NODE)/node_modules build

$(VENV)/installed: $(SOURCES)
	@command -v c++ g++ clang++ >/dev/null 2>&1 || { echo "Puna needs a C++ compiler and found none: \`apt-get install g++\` on Debian and Ubuntu, \`dnf install gcc-c++\` on Fedora, \`xcode-select --install\` on macOS." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Building Puna (two or three minutes on two cores, once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# torch first and pinned: left to itself, a dependency would bring gigabytes of GPU libraries.
TORCH := torch==2.13.0

$(VENV)/tested-with: $(VENV)/installed
	@$(BIN)/pip install --quiet --disable-pip-version-check "pip>=25.1"
	@$(BIN)/pip install --quiet $(TORCH)
	@$(BIN)/pip install --quiet --group test
	@touch $@

# an environment of its own for each group of pyproject.toml that `make test` does without
.venv-%/installed: $(SOURCES)
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/pip install --quiet --disable-pip-version-check "pip>=25.1"
	@.venv-$*/bin/pip install --quiet $(TORCH)
	@.venv-$*/bin/pip install --quiet --group test --group $*
	@.venv-$*/bin/pip install --quiet --editable .
	@touch $@

$(NODE)/node_modules/installed: $(NODE)/package.json
	@command -v npm >/dev/null 2>&1 || { echo "Clients of JavaScript need node and npm, and npm was not found: \`apt-get install nodejs npm\` on Debian and Ubuntu." >&2; exit 2; }
	@npm install --prefix $(NODE) --no-package-lock --no-audit --no-fund --silent
	@touch $@
