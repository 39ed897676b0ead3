# make demo | full | test | test-slow | lint ; FLAGS=--overwrite replaces the models of an earlier run
PYTHON ?= $(shell command -v python3.11 || command -v python3)
FLAGS ?=
VENV = .venv
RUN = $(VENV)/bin/python
ALL_HELDOUT = pre_training/dataset/heldout.jsonl sft/dataset/heldout sft/dataset/choices.jsonl dpo/dataset/heldout

.PHONY: demo full test test-slow lint install dataset

install: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

# The chain on a fixed part of the bundled data: three departments.
demo: install
	$(RUN) pre_training/py/train_tokenizer.py --config configs/demo/tokenizer.yaml $(FLAGS)
	$(RUN) pre_training/py/test_tokenizer.py
	$(RUN) pre_training/py/run_pretraining.py --config configs/demo/pretraining.yaml $(FLAGS)
	$(RUN) sft/py/sft_train.py --config configs/demo/sft.yaml $(FLAGS)
	$(RUN) dpo/py/dpo_train.py --config configs/demo/dpo.yaml $(FLAGS)
	$(RUN) compare_different_model.py --config configs/demo/compare.yaml

# The chain on all of the bundled data.
full: install
	$(RUN) pre_training/py/train_tokenizer.py $(FLAGS)
	$(RUN) pre_training/py/test_tokenizer.py
	$(RUN) pre_training/py/run_pretraining.py $(FLAGS)
	$(RUN) sft/py/sft_train.py $(FLAGS)
	$(RUN) dpo/py/dpo_train.py $(FLAGS)
	$(RUN) compare_different_model.py --data $(ALL_HELDOUT)

test: install
	$(RUN) -m pytest

test-slow: install
	$(RUN) -m pytest -m "slow or not slow"

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

dataset: install
	$(RUN) corpus/build.py
