# Two commands matter: `make demo` and `make test`. Both set up what they need in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS := error_bars chosen_masks scale methods synthetic spex_peers recorded
MODEL_BENCHMARKS := local_backend local_memory endpoint store_kill
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench bench-models bench-quick picture wheel train-demo clean

demo: .venv/base  ## explain a real example on the embedded model, without torch
	$(BIN)/spex explain examples/two-facts.prompt.md

test: .venv/dev lint  ## lint, types and all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-models  ## the benchmarks behind docs/benchmarks.md, beside the peers; resumes
	$(BIN)/python tests/benchmarks/startup.py
	@set -e; for name in $(BENCHMARKS); do \
	  echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py $(BENCH); done
	$(BIN)/python tests/benchmarks/report.py

bench-models: .venv/bench  ## those of local models, endpoints and the store: about 12 minutes
	@set -e; for name in $(MODEL_BENCHMARKS); do \
	  echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py $(BENCH); done
	$(BIN)/python tests/benchmarks/report.py

bench-quick: .venv/bench  ## a part of every benchmark of the engine, in about three minutes
	@set -e; for name in $(BENCHMARKS); do \
	  echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py --quick --fresh $(BENCH); done
	$(BIN)/python tests/benchmarks/report.py --results build/benchmarks/quick --print

picture: .venv/base  ## the picture in the README, from a real run
	$(BIN)/python docs/picture.py docs/explained.svg

wheel: .venv/dev
	$(BIN)/python -m build --wheel

train-demo: .venv/dev  ## train the embedded model anew, into build/demo
	$(BIN)/python -m spex_engine.backends.demo.train --out build/demo --resume

clean:
	rm -rf .venv build dist

.venv/base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Spex needs Python 3.11 or newer; say which: make PYTHON=python3.12 demo" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (once) ..."
	$(INSTALL) -e .
	touch $@

.venv/dev: .venv/base
	@echo "Installing torch, transformers and the test tools into .venv (once) ..."
	$(INSTALL) -e '.[dev]'
	touch $@

.venv/bench: .venv/dev
	@echo "Installing the peers into .venv (once) ..."
	$(INSTALL) -e '.[bench]'
	touch $@
