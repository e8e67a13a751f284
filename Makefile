# `make demo` shows the product, `make test` proves it. Every target makes its own environment when there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint docs web bench gpu gpu-bundle clean

demo: $(READY)
	$(BIN)/python demo/run.py

# Files stay whole, and the longest are begun first (tests/whole_run.py), so that both processes end together.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST)

# The quick one before a commit: lint, and all files of tests but the slow ones, which SLOW in tests/whole_run.py lists.
check: lint
	$(PYTEST) -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site: build/site/index.html. Warnings are errors, but not with --quiet, which hides them.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The page of `ofg view` and `ofg serve`, from web/ into the package; needs Node.js 20 or newer with npm.
web: ofg_deploy/web/static/view.html

ofg_deploy/web/static/view.html: web/node_modules/.ready $(wildcard web/*.* web/src/*)
	cd web && npm run --silent build

web/node_modules/.ready: web/package.json web/package-lock.json
	cd web && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

# Needs the hippocampus images; about an hour and a half on two cores. Results: benchmarks/results/.
bench: $(READY)
	$(BIN)/python benchmarks/hippocampus.py --work build/hippocampus --json benchmarks/results/hippocampus.json

# On a machine with an NVIDIA GPU, at most nine minutes; nothing is installed. See benchmarks/GPU.md.
gpu:
	$(PYTHON) benchmarks/gpu.py --out build/gpu

# The packages that such a machine lacks, in parts that can be copied to one without network.
gpu-bundle:
	$(PYTHON) benchmarks/gpu_steps/bundle.py --out build/gpu-bundle

clean:
	rm -rf $(VENV) build web/node_modules ofg_deploy/web/static demo/work demo/report.html demo/report.png

# torch goes first and alone: with it in place nothing else pulls in another build of it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,openvino,train,dev,docs]'
	touch $@
