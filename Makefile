# make install | demo | full | study | test | test-fast | test-slow | lint | messages | lock | dataset
# FLAGS=--overwrite replaces the models of an earlier run.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
FLAGS ?=
VENV = .venv
RUN = $(VENV)/bin/python
PARALLEL = --numprocesses auto --maxprocesses 4 --dist worksteal
CATALOGUE = med_model/locale
ALL_HELDOUT = pre_training/dataset/heldout.jsonl sft/dataset/heldout sft/dataset/heldout_registers sft/dataset/heldout_turns \
	sft/dataset/heldout_out_of_scope.jsonl sft/dataset/choices.jsonl dpo/dataset/heldout
ALL_TRAINING = sft/dataset/train dpo/dataset/train

.PHONY: install demo full study test test-fast test-slow lint messages lock dataset

install: $(VENV)/installed

$(VENV)/installed: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -qq --upgrade pip
	@$(RUN) -m pip install -qq -r requirements.txt
	@touch $@
	@echo "$(VENV): $$($(RUN) --version), torch $$($(RUN) -c 'from importlib.metadata import version; print(version("torch"))')"

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
	$(RUN) compare_different_model.py --data $(ALL_HELDOUT) --taught $(ALL_TRAINING)

test: install
	$(RUN) -m pytest $(PARALLEL)

test-fast: install
	$(RUN) -m pytest $(PARALLEL) -m "not slow and not long"

test-slow: install
	$(RUN) -m pytest -m "slow or not slow"

# Recall against wordings and topics: runs the cells that have no record in results/study/.
study: install
	$(RUN) benchmarks/study.py

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# After a message of the code has changed: extracts all of them, keeps the Chinese that still fits, compiles.
messages: install
	$(VENV)/bin/pybabel -q extract -k tr --no-location --sort-output -o $(CATALOGUE)/messages.pot med_model pre_training/py sft/py dpo/py benchmarks corpus compare_different_model.py
	$(VENV)/bin/pybabel -q update --no-fuzzy-matching --ignore-obsolete -l zh_CN -D med_model -d $(CATALOGUE) -i $(CATALOGUE)/messages.pot
	$(VENV)/bin/pybabel -q compile -l zh_CN -D med_model -d $(CATALOGUE)
	rm $(CATALOGUE)/messages.pot

# The newest tree that requirements.txt allows, resolved in an environment of its own.
lock:
	rm -rf .lock
	$(PYTHON) -m venv .lock
	grep -v "^-" requirements.txt > .lock/requirements.txt
	.lock/bin/python -m pip install --quiet -r .lock/requirements.txt
	echo "# The whole dependency tree, pinned. Made by \`make lock\`; do not edit." > constraints.txt
	.lock/bin/python -m pip freeze | sed "s/+cpu$$//" >> constraints.txt
	rm -rf .lock

dataset: install
	$(RUN) corpus/build.py
