# Every target creates or completes the one environment, .venv, from a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow test-page test-portable test-oldest check docs bench format build release clean

demo: .venv/.minimum
	$(BIN)/unmask demo

test: .venv/.everything
	$(BIN)/python -m pytest

test-slow: .venv/.everything
	$(BIN)/python -m pytest -m slow

# The page of the server, in a browser that is there already.
test-page: .venv/.everything
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { echo "make test-page needs Chromium: apt-get install chromium"; exit 1; }
	$(PIP) --editable '.[browser]'
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_page.py tests/test_page_files.py

# The numerical tests as other processors would round, in PyTorch's kernels, its libraries and Numba's code, and with two
# threads. On a processor that has none of these instruction sets, the settings are ignored or do nothing.
NUMERICAL := $(BIN)/python -m pytest -m "numerical and not slow"
test-portable: .venv/.everything
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 NUMBA_CPU_NAME=generic $(NUMERICAL)
	ATEN_CPU_CAPABILITY=avx2 NUMBA_CPU_NAME=generic OMP_WAIT_POLICY=PASSIVE UNMASK_TEST_THREADS=2 $(NUMERICAL)
	OMP_WAIT_POLICY=PASSIVE UNMASK_TEST_THREADS=2 $(NUMERICAL)

# What is most likely to feel another release, with the oldest ones that pyproject.toml promises, in an environment of its
# own; its PyTorch is a CUDA build, several GB. Python 3.11 or 3.12, as the oldest NumPy and Numba know no later one.
CORE := streams sampler rules golden kernels gate masked_lm bidirectional block_families experts dplm \
	language block_generation cache block_causal hub training
test-oldest: .venv-oldest/.core
	.venv-oldest/bin/python -m pytest $(CORE:%=tests/test_%.py)

check: .venv/.everything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The site, into site/; a warning is an error.
docs: .venv/.everything
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: .venv/.minimum
	$(BIN)/unmask bench fhs

format: .venv/.everything
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: .venv/.everything
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# What would be uploaded, in dist/: source archive and wheel, built and checked in an environment of their own; the wheel
# is installed into an empty one and asked for the demo from outside the repository. Nothing is uploaded.
RELEASE := .venv-release/bin/python
release:
	rm -rf dist .venv-release
	$(PYTHON) -m venv .venv-release
	$(RELEASE) -m pip install --quiet --disable-pip-version-check build twine
	$(RELEASE) -m build --outdir dist .
	$(RELEASE) -m twine check --strict dist/*
	$(RELEASE) .ci/dist.py dist
	$(PYTHON) -m venv .venv-release/empty
	.venv-release/empty/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd .venv-release && env -u PYTHONPATH empty/bin/unmask demo --limit 1 --json
	@echo "dist/ is ready; the checklist in CONTRIBUTING.md says what comes before and after"

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.minimum: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

.venv/.everything: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[train,plot,music,eval,diffusers,serve,ray,test,docs,dev]'
	touch $@ .venv/.minimum

.venv-oldest/.core: pyproject.toml constraints-oldest.txt
	rm -rf .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[train,plot,test]'
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-release dist
