# Commands for working on lightning-cl; `make help` lists them.
#
# Needs git, make and Python 3.11 or newer. Environments are made on first use and again after pyproject.toml or their
# constraints changed. The newest of the usual names is taken; choose another with `make PYTHON=/path/to/python ...`.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-print-directory

# Whatever the caller's environment says: without compiled bytecode, importing PyTorch and Lightning takes 20 s.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

READY := .venv/ready
LOWEST_READY := .venv-lowest/ready
BIN := .venv/bin
SOURCES := lightning_cl callbacks datamodules configs

# One thread for each of the processes that share the cores. `logical`: every core that `nproc` counts.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist worksteal
LOWEST_PYTEST := OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n logical --dist worksteal
QUICK := -m 'not slow and not fashion_mnist'
# Passed on to pytest: `make test ARGS='-k ewc -x'`.
ARGS :=

# $(call set_up,interpreters to try,condition on sys.hexversion,the condition in words,constraints,extra) makes the
# environment that is the target's folder. uv does it in half a minute; where it cannot be had, pip does it.
define set_up
@for python in $(1); do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(not ($(2)))' >/dev/null 2>&1 && break; python=; \
done; \
if [ -z "$$python" ]; then \
	echo 'No $(3) with its venv module among: $(1). Install one or name it: make PYTHON=/path/to/python' >&2; exit 1; \
fi; \
echo "Setting up $(@D) with $$("$$python" --version): up to 3 GB to download on the first time"; \
set -e; \
$(@D)/bin/python -c 'import sys; sys.exit(not ($(2)))' >/dev/null 2>&1 || "$$python" -m venv --clear $(@D); \
if $(@D)/bin/python -m pip install -qq -c constraints.txt uv; then \
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --compile-bytecode -c $(4) -e '.[$(5)]'; \
else \
	echo 'uv cannot be installed here: pip takes its place and some minutes more' >&2; \
	$(@D)/bin/python -m pip install -qq --compile -c $(4) -e '.[$(5)]'; \
fi; \
$(@D)/bin/python -m compileall -q $(SOURCES); \
touch $@
endef

$(READY): pyproject.toml constraints.txt
	$(call set_up,$(or $(PYTHON),python3.13 python3.12 python3.11 python3),sys.hexversion >= 0x30b0000,Python 3.11 or newer,constraints.txt,dev)

$(LOWEST_READY): pyproject.toml constraints-lowest.txt
	$(call set_up,$(or $(PYTHON),python3.11 python3),sys.hexversion >> 16 == 0x30b,Python 3.11,constraints-lowest.txt,test)

.PHONY: help quickstart test test-slow test-fashion-mnist test-lowest lint types format wheel constraints clean distclean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(READY) ## Learn a stream of digits in 5 experiences with a small replay buffer
	@$(BIN)/lightning-cl fit --config quickstart

test: $(READY) ## Run the quick tests (ARGS='...' goes to pytest, here and below)
	@$(PYTEST) $(QUICK) $(ARGS)

test-slow: $(READY) ## Run the slow tests: real kills, several processes
	@$(PYTEST) -m 'slow and not fashion_mnist' $(ARGS)

test-fashion-mnist: $(READY) ## Run the tests that need the Debian package dataset-fashion-mnist
	@$(PYTEST) -m fashion_mnist $(ARGS)

test-lowest: $(LOWEST_READY) ## Run the quick tests on the lowest versions that pyproject.toml allows (Python 3.11)
	@$(LOWEST_PYTEST) $(QUICK) $(ARGS)

lint: $(READY) ## Check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# The built wheel, because an editable install hides callbacks/ and datamodules/ from type checkers. From the folder
# that it lies in, because mypy looks into the current folder first.
types: wheel ## Check types, strictly, in the package as users install it
	@rm -rf build/types
	@$(BIN)/python -m pip install -qq --no-deps --no-compile --target build/types dist/*.whl
	@cd build/types && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" \
		--cache-dir "$(CURDIR)/.mypy_cache" -p lightning_cl

format: $(READY) ## Format the code and mend what the linter can mend
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

wheel: $(READY) ## Build the sdist, and from it the wheel, in dist/
	@rm -rf build/lib build/bdist.* dist
	@mkdir -p build
	@$(BIN)/python -m build --no-isolation --outdir dist >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@ls dist/*

# What still fits is kept, unless UPGRADE=1. Resolved for the oldest Python, whose versions serve the newer ones too.
# The second file pins the lowest versions of what pyproject.toml names, so that they are the same on every day.
COMPILE = $(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	--strip-extras --python-version 3.11
constraints: ## Renew the constraints files after a bound changed (UPGRADE=1: to the newest versions)
	@# Only uv is needed. The rest cannot be installed while the files disagree with pyproject.toml.
	@test -x $(BIN)/uv || $(MAKE) $(READY) || test -x $(BIN)/uv
	@mkdir -p build
	@cp constraints.txt build/constraints.txt
	@echo uv >build/tools.in
	@$(COMPILE) $(if $(UPGRADE),--upgrade) --extra dev -o build/constraints.txt pyproject.toml build/tools.in >/dev/null
	@{ echo '# What `make` installs, valid on Python 3.11 to 3.13. Do not edit: `make constraints`, or with UPGRADE=1 for the newest.'; \
		cat build/constraints.txt; } >constraints.txt
	@# Matplotlib 3.9 calls what pyparsing 3.3 deprecates, and a warning fails a test.
	@echo 'pyparsing<3.3' >build/lowest.in
	@$(COMPILE) --resolution lowest-direct --extra test -c build/lowest.in pyproject.toml >build/constraints-lowest.txt
	@{ echo '# The lowest versions that pyproject.toml allows, on Python 3.11. Do not edit: `make constraints`.'; \
		cat build/constraints-lowest.txt; } >constraints-lowest.txt

clean: ## Remove what was built and cached
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find $(SOURCES) tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove the environments too
	@rm -rf .venv .venv-lowest
