# make demo: 64 synthetic slices of 512 x 512 from the weights in the repository.   make test, make check: what CI runs.
# make tables COHORT=...: trains what the tables compare, then prints them (hours).
# make vendor: copies what the bundles share from bundles/common into each of them.
# make docs: the documentation as a site, in site/.
# make fuzz: 600 malformed inputs; make kill: 50 kills of commands and trainings, each continued (minutes).
# make tour: the whole life of a cohort on the procedural phantom, training included, at tiny sizes.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
TOUR := runs/tour
TABLES ?= runs/tables
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo test check fuzz kill tour tables bundles docs vendor clean

demo: $(INSTALLED)
	$(PY) scripts/synthesize.py --out demo --count 64 --seed 0

# Two processes of one thread each: `import monai` costs each of them 10 s, and small tensors gain nothing from threads.
test: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED_TEST)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

fuzz: $(INSTALLED_TEST)
	$(PY) tests/campaigns/fuzz.py --cases 600 --seed 0

kill: $(INSTALLED_TEST)
	$(PY) tests/campaigns/kill.py --kills 50 --seed 0

tour: $(INSTALLED_TEST)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash scripts/tour.sh $(TOUR)

tables: $(INSTALLED_TEST)
	test -n "$(COHORT)" || { echo "make tables needs COHORT=FOLDER, written by scripts/prepare.py" >&2; exit 2; }
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash scripts/train_tables.sh "$(COHORT)" $(TABLES)
	$(PY) scripts/evaluate.py segmentation --cohort "$(COHORT)" --out $(TABLES)/table_1 --weights $(TABLES)
	$(PY) scripts/evaluate.py nodules --cohort "$(COHORT)" --out $(TABLES)/table_2_nodules --weights $(TABLES)
	$(PY) scripts/evaluate.py lungs --cohort "$(COHORT)" --out $(TABLES)/table_2_lungs --weights $(TABLES)
	$(PY) scripts/evaluate.py slices --cohort "$(COHORT)" --out $(TABLES)/table_3 --weights $(TABLES) --slices $(TABLES)/slices

bundles: $(INSTALLED)
	$(PY) scripts/package_bundles.py --out dist --zip

docs: $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict

# torch first and alone: a pinned torch keeps pip from choosing another build for the packages that depend on it.
$(INSTALLED): pyproject.toml setup.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[bundles,tracking]'
	touch $@

$(INSTALLED_TEST): $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

vendor: $(INSTALLED)
	$(PY) scripts/vendor_common.py

clean:
	rm -rf demo dist runs site
