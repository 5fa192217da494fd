# Two commands do all the set-up: `make prune` runs the main job, `make test` the checks. Both make .venv first.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: prune test test-zoo test-papers test-cluster test-processes lint smoke-wheel clean

prune: .venv/.run
	$(BIN)/rlprune prune $(ARGS)

# A process a core with one thread each: two that both want all cores take many times longer.
test: .venv/.dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --cov --cov-report=term:skip-covered --cov-fail-under=90

# Every published network: some minutes, and 20 GB of memory for the largest.
test-zoo: .venv/.dev
	$(BIN)/python -m pytest tests/test_zoo.py -m "zoo or not zoo" $(ARGS)

# The full editions of the papers' presets, tiny; `make test` runs the small ones, which have the same grids.
test-papers: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_paper.py -m papers -n auto --maxprocesses 4 $(ARGS)

# Further cases of runs with several workers; one of each kind is in `make test`.
test-processes: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m processes -n 2 $(ARGS)

# Ray: candidates and runs on a cluster of two nodes, which come and go.
test-cluster: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_evaluators.py tests/test_launchers.py -m cluster $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Build the wheel, install it into an environment of its own, and run the whole job from another folder.
smoke-wheel: .venv/.dev
	rm -rf dist .venv/wheel && mkdir -p .venv/wheel
	$(BIN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv --without-pip .venv/wheel/env
	$(BIN)/python -m pip --python .venv/wheel/env/bin/python install --quiet --no-deps dist/*.whl
	$(BIN)/python -c "import site, pathlib; p = next(pathlib.Path('.venv/wheel/env/lib').glob('python*')) / 'site-packages'; (p / 'deps.pth').write_text(site.getsitepackages()[0] + '\n')"
	cd .venv/wheel && env/bin/rlprune prune debug=smoke
	test -f .venv/wheel/outputs/prune/*/result.json

.venv/.run: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "rlprune needs Python 3.10 or newer: make PYTHON=python3.11 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf .venv dist build
