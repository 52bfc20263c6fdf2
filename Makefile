# Every target works from a fresh clone: the environment is made on first use and refreshed when its inputs change.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow test-cluster lint bench bench-gpu gpu-model notebooks docs clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/installed  ## quantize the embedded diffusion model, price it, write a report under runs/
	$(BIN)/fpsim whatif

# One torch thread per worker: two workers with two threads each on two cores mostly wait for each other.
test: export OMP_NUM_THREADS ?= 1
test: .venv/installed-test lint  ## lint, types, import contracts, tests and notebooks, except `slow` and `gpu`
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -m "not slow and not gpu" -n 2 --dist loadfile -q

test-slow: .venv/installed-test  ## exhaustive and full-size tests
	$(BIN)/python -m pytest -m "slow and not gpu" -q

test-cluster: .venv/installed-test  ## Dask, Ray and launched processes with real workers, one of them killed
	$(PIP) --editable '.[test,distributed]'
	$(BIN)/python -m pytest -q tests/analysis/test_cluster.py
	$(BIN)/python -m pytest -q tests/analysis/test_any_pipeline.py -k launched

lint: .venv/installed-test  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: .venv-bench/installed  ## speed against peers, side by side in one run; prints ratios
	.venv-bench/bin/python tests/benchmarks/run.py

bench-gpu:  ## the same on an NVIDIA GPU, with PYTHON=python of an environment that has CUDA torch and fpsim[cuda]
	PYTHONPATH=. $(PYTHON) tests/benchmarks/gpu.py --write docs/benchmarks-gpu.md
	PYTHONPATH=. $(PYTHON) tests/benchmarks/fake_quant_gpu.py
	PYTHONPATH=. $(PYTHON) tests/benchmarks/sdxl_gpu.py
	PYTHONPATH=. $(PYTHON) tests/benchmarks/learned_rounding.py --device cuda

gpu-model: .venv/installed-test  ## fit the GPU model to the committed measurements, error tables into docs/gpu-model.md
	$(BIN)/python -m hwmodels.calibrate
	$(BIN)/python docs/update_gpu_model.py

notebooks: .venv/installed-test  ## execute, refresh and pair the notebooks without leaving a diff
	$(BIN)/python -m pytest --nbmake --overwrite --nbmake-timeout=600 notebooks
	$(BIN)/nbstripout --keep-output --extra-keys metadata.language_info notebooks/*.ipynb
	$(BIN)/jupytext --sync notebooks/*.ipynb

docs: .venv/installed-test  ## the documentation site, into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

clean:  ## remove the environment and the caches
	rm -rf site .venv .venv-bench .mypy_cache .ruff_cache .pytest_cache build dist

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("fpsim needs Python 3.11 or newer; set PYTHON=python3.12, say" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/installed-test: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[test]'
	@touch $@ .venv/installed

# An environment of its own: torchao announces itself wherever diffusers is imported.
.venv-bench/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,bench]'
	@touch $@
