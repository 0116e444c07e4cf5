# `make demo` shows the whole program on the bundled miniature, `make test` checks it; both make .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test

.venv/installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lite-whisper needs Python 3.11 or newer; make PYTHON=python3.12 names another")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	mkdir -p .venv/typecheck && ln -sfn ../.. .venv/typecheck/lite_whisper
	touch $@

demo: .venv/installed
	$(BIN)/python convert.py --overwrite
	$(BIN)/python examples/transcribe.py build/lite-whisper-digits examples/digits/test/test_000.flac

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.venv/typecheck $(BIN)/mypy -p lite_whisper
	$(BIN)/pytest tests
