# make quickstart   install into .venv and run the example: index, search, re-rank, compare
# make test         install into .venv and run the tests and doctests, except the slow tests
# make slow         run the slow tests, with short campaigns of damage, kills and replacement
# make campaign     run the campaigns at full size (about 30 minutes)
# make test-oldest  run the tests and doctests on the oldest supported versions, in .venv-oldest
# make docs         build the documentation pages into docs/_build/html; warnings are errors
# make notebooks    run the notebooks and write copies with their outputs into build/notebooks (about 10 minutes)
# make lint         install the linters too, and check style, types and English
# make bench        run the short benchmarks: shares of the machine's limits, and ratios in one run
# make clean        delete everything that these commands made
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
# Two processes with one thread each are faster than one with two threads, because small tensors need no threads.
IN_PARALLEL := -n 2 --dist loadfile

.PHONY: quickstart test slow campaign test-oldest docs notebooks lint bench clean

$(VENV)/examples: setup.cfg constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[examples]'
	touch $@

$(VENV)/test: setup.cfg constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/dev: $(VENV)/test
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[test,dev]'
	touch $@

$(VENV)/docs: setup.cfg constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)/notebooks: setup.cfg constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[notebooks]'
	touch $@

$(OLDEST)/test: setup.cfg constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q -c constraints-oldest.txt -e '.[test]'
	touch $@

quickstart: $(VENV)/examples
	$(VENV)/bin/python examples/quickstart.py

test: $(VENV)/test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(IN_PARALLEL) -m "not slow"

slow: $(VENV)/test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(IN_PARALLEL) -m slow

campaign: $(VENV)/test
	HYPENCODER_CAMPAIGN=full $(VENV)/bin/python -m pytest --timeout=7200 tests/campaigns

test-oldest: $(OLDEST)/test
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(IN_PARALLEL) -m "not slow"

docs: $(VENV)/docs
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m sphinx -W --keep-going -q -E -c docs -d docs/_build/doctrees \
	  pyterrier_hypencoder/pt_docs docs/_build/html

notebooks: $(VENV)/notebooks
	HF_HUB_OFFLINE=1 $(VENV)/bin/python examples/run_notebooks.py

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python docs/check_english.py

bench: $(VENV)/test
	$(VENV)/bin/python benchmarks/scoring.py --documents 8192 --repeat 3
	$(VENV)/bin/python benchmarks/encoding.py --documents 64
	$(VENV)/bin/python benchmarks/scale.py --large --documents 100000 --exhaustive-documents 2048 --work build/bench \
	  --paths exhaustive surrogate dense

clean:
	rm -rf $(VENV) $(OLDEST) build docs/_build examples/notebooks/cache *.egg-info .pytest_cache .mypy_cache .ruff_cache
