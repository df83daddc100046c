# make demo: install, run the quickstart study, write its report.  make test: install, run all tests.  make check: lint, fast tests of what changed.
# make gpu: what a GPU must be checked for, then how well it is used.  make docs: the documentation as a site, site/index.html.

PYTHON ?= python3
STAMP = .venv/.installed-with-$(notdir $(PYTHON))

.PHONY: install demo test check lint bench gpu docs site

PAGES = README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md CITATION.cff docs store/README.md studies diffmem/data/README.md diffmem/analysis/published.csv
ZENSICAL = .venv/bin/zensical

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "diffmem needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	.venv/bin/diffmem run studies/quickstart.toml
	.venv/bin/diffmem emm quickstart
	.venv/bin/diffmem report quickstart --output store/quickstart.html
	@echo "open this page in a browser: $(CURDIR)/store/quickstart.html"

test: install
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

bench: install
	.venv/bin/python -m pip install --quiet --constraint constraints.txt faiss-cpu
	.venv/bin/python -m benchmarks --compile --compare --growth --output store/bench.json

gpu: install
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 6 --dist worksteal -m gpu
	.venv/bin/python -m benchmarks.gpu --compile bf16 --output store/gpu.json

docs: install
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(MAKE) site

site:
	rm -rf build/docs && mkdir -p build/docs
	tar -cf - $(PAGES) | tar -xf - -C build/docs
	$(ZENSICAL) build --clean --strict

check: lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses logical --maxprocesses 8 -m "not slow" -x \
		$$(.venv/bin/python tests/changed.py)

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
