# make serve    everything that is needed, then the server on http://127.0.0.1:8000
# make test     everything that is needed, then every check
# make help     the rest

PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
NODE := $(shell npm --version >/dev/null 2>&1 && node -e '\
	const [major, minor] = process.versions.node.split(".").map(Number); \
	process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)' && command -v node)
WEB := server/web
PAGES := $(WEB)/dist/index.html

.DEFAULT_GOAL := help
.PHONY: help setup no-pages demo serve test schema clean

help: ## what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: $(INSTALLED) $(if $(NODE),$(PAGES),no-pages) ## install into .venv, where parley is then, and build the pages
	@:

$(INSTALLED): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "Parley needs Python 3.11 or newer, with venv. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; \
		exit 1; fi
	@echo "Installing Parley into .venv with $$($(PYTHON) --version); the first time takes a few minutes, PyTorch most of them."
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

$(PAGES): $(wildcard $(addprefix $(WEB)/,*.json *.ts *.html src/* src/*/*))
	@echo "Building the pages with Node $$(node --version); the first time takes half a minute."
	@npm ci --prefix $(WEB) --no-audit --no-fund --no-update-notifier --loglevel=error
	@npm run build --prefix $(WEB) --silent -- --logLevel warn
	@touch $@

no-pages:
	@[ -e $(PAGES) ] || echo "There will be no pages at / and /graphql: building them needs Node 20.19 or newer, with npm." \
		"Everything else works; run make setup again once it is there."

demo: setup
	@$(BIN)/parley pull demo

serve: setup demo ## the server, with a small model to talk to
	@exec $(BIN)/parley serve

test: setup demo ## every check, the tests with real parts among them
	$(if $(NODE),npm ci --prefix tests/node --no-audit --no-fund)
	$(if $(NODE),npm run check --prefix $(WEB) --silent)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

schema: setup ## print schema.graphql and db/schema.sql anew
	$(BIN)/python -m server.api.printed schema.graphql
	$(BIN)/python -m db.schema

clean: ## remove what was installed; models and data stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache tests/node/node_modules $(WEB)/node_modules $(WEB)/dist
