# Every target works alone on a fresh clone: it makes .venv, installs what it needs, and says what it does.
# Needs Python 3.11 or newer (PYTHON=... to choose one), git and make.

PYTHON ?= python3
EXTRAS ?= dev,docs
MODEL ?= qwen2.5-coder-0.5b
BIN := .venv/bin
say = @printf '== %s\n'

.PHONY: corpus help chat test lint check format docs bench-chat soak-chat bench-collect bench-curate collect-torture clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

chat: .venv/installed ## Talk with the companion: install, pull and verify the weights, chat
	$(say) 'model: $(MODEL), pulled once and checked'
	@$(BIN)/qiaoban models pull $(MODEL)
	$(say) 'talk'
	@$(BIN)/qiaoban chat --model $(MODEL)

test: .venv/installed-dev ## Run the tests, with branch coverage and real weights
	$(say) 'model: pull (once, half a gigabyte) and check'
	@$(BIN)/qiaoban models pull
	$(say) 'tests'
	@$(BIN)/python -m pytest --cov --cov-report=term

lint: .venv/installed-dev ## Format, lint, types, import contract, documentation
	$(say) 'lint'
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/mkdocs build --strict --quiet --site-dir .site

check: lint test ## Everything that must pass before a change lands

format: .venv/installed-dev ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: .venv/installed-dev ## Serve the documentation on http://localhost:8000
	@$(BIN)/mkdocs serve

bench-chat: .venv/installed-dev ## Measure talk against bare llama.cpp, side by side (minutes; wants a quiet machine)
	@$(BIN)/qiaoban models pull
	@$(BIN)/python benchmarks/chat.py

soak-chat: .venv/installed-dev ## 100 talks in a row: memory must stay flat (a quarter of an hour)
	@$(BIN)/qiaoban models pull
	@$(BIN)/python benchmarks/chat.py --only memory --talks 100

bench-collect: .venv/installed-dev ## Measure collection against a bare gather and the 2023 loop, side by side (minutes)
	@$(BIN)/python benchmarks/collect.py

bench-curate: .venv/installed-dev ## Measure curation against datasketch, re and Data-Juicer, side by side (ten minutes, 7 GB of peers)
	@$(BIN)/python benchmarks/curate.py --datasketch --data-juicer

collect-torture: .venv/installed-dev ## 2,000 dialogues from a misbehaving teacher, with two kills (minutes)
	@$(BIN)/python -m tests.collect.torture --dialogues 2000

corpus: .venv/installed-dev ## Build the dialogues of corpus/ and print what they hold
	@$(BIN)/python corpus/build.py

clean: ## Remove what was installed and built here; pulled models stay
	rm -rf .venv .site .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis dist

.venv/bin/python:
	$(say) 'python: make .venv'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Qiaoban needs Python 3.11 or newer; this is '"$$($(PYTHON) --version 2>&1)"'. Try: make PYTHON=python3.12 $(MAKECMDGOALS)'; exit 1; }
	@$(PYTHON) -m venv .venv || { echo 'no venv module; on Debian and Ubuntu: apt install python3-venv'; exit 1; }

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(say) 'install: qiaoban and what it needs to talk'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(say) 'install: qiaoban with the tools of its developers'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@ .venv/installed
