# `make demo` shows the whole program on the bundled miniature, `make test` checks it, `make bench` measures error rates and
# speed in a few minutes, `make cards` renders model_cards/ anew; each makes .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
OLD := .venv-4.57/bin

.PHONY: demo test bench cards

.venv/installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lite-whisper needs Python 3.11 or newer; make PYTHON=python3.12 names another")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	mkdir -p .venv/typecheck && ln -sfn ../.. .venv/typecheck/lite_whisper
	touch $@

# The files that travel to the Hub must also run under the last transformers 4, which cannot be installed beside datasets 5.
.venv-4.57/installed: Makefile
	$(PYTHON) -m venv .venv-4.57
	$(OLD)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(OLD)/pip install --quiet --disable-pip-version-check 'transformers==4.57.*' accelerate peft pytest pytest-xdist soundfile torchao
	mkdir -p .venv-4.57/package && ln -sfn ../.. .venv-4.57/package/lite_whisper
	touch $@

demo: .venv/installed
	$(BIN)/python convert.py --ratio 0.25 --overwrite
	$(BIN)/python examples/transcribe.py build/lite-whisper-digits examples/digits/test/test_000.flac

test: .venv/installed .venv-4.57/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.venv/typecheck $(BIN)/mypy -p lite_whisper
	# The commands of the README, which come one after the other, take as long as all the rest: they run beside it.
	export OMP_NUM_THREADS=1; $(BIN)/pytest tests/test_readme.py & readme=$$!; \
	$(BIN)/pytest tests --ignore tests/test_readme.py -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder; rest=$$?; \
	wait $$readme && exit $$rest
	$(BIN)/python tests/compatibility/build_models.py build/compatibility
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/compatibility -n auto --maxprocesses 4
	OMP_NUM_THREADS=1 $(OLD)/pytest tests/compatibility -n auto --maxprocesses 4
	PYTHONPATH=.venv-4.57/package $(OLD)/pytest tests/training

bench: .venv/installed
	$(BIN)/python benchmarks/quality.py --calibration-seeds 1 --noise-seeds 1
	$(BIN)/python benchmarks/encoder_speed.py --shapes small --sizes fast --end-to-end small \
		--contenders published ours openai-whisper faster-whisper onnxruntime ours-onnxruntime

cards: .venv/installed
	$(BIN)/python model_cards/render.py
