# make quickstart   installs into .venv and runs the main job: index, search, re-rank, compare
# make test         installs into .venv and runs the tests
# make slow         the slow tests
# make test-oldest  the same tests on transformers 4 and pandas 2, in .venv-oldest
# make lint         style and types
# make bench        the benchmarks of benchmarks/
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest

.PHONY: quickstart test slow test-oldest lint bench clean

$(VENV)/examples: setup.cfg constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[examples]'
	touch $@

$(VENV)/test: setup.cfg constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[test,dev]'
	touch $@

$(OLDEST)/test: setup.cfg constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q -c constraints-oldest.txt -e '.[test]'
	touch $@

quickstart: $(VENV)/examples
	$(VENV)/bin/python examples/quickstart.py

test: $(VENV)/test
	$(VENV)/bin/python -m pytest -m "not slow"

slow: $(VENV)/test
	$(VENV)/bin/python -m pytest -m slow

test-oldest: $(OLDEST)/test
	$(OLDEST)/bin/python -m pytest -m "not slow"

lint: $(VENV)/test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/test
	$(VENV)/bin/python benchmarks/scoring.py
	$(VENV)/bin/python benchmarks/encoding.py
	$(VENV)/bin/python benchmarks/training.py

clean:
	rm -rf $(VENV) $(OLDEST) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
