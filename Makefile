# Everything a person does with the project. `make demo` and `make test` set up what they need.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/installed
STAMP_ALL := $(VENV)/installed-all
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_DIFFUSION := runs/turbulence_small
DEMO_RUN := runs/turbulence_fewstep
DEMO_SHIPPED := runs/shipped
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup setup-all demo test test-all test-fast lint format docs bench sanitize constraints clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv with what the demo takes, at the exact versions of constraints.txt

setup-all: $(STAMP_ALL) ## setup, every extra that runs without a GPU, and the tools of the tests

$(STAMP): setup.py pyproject.toml constraints.txt $(wildcard kernels/csrc/*.cpp kernels/*/*.h)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e .
	@$(BIN)/python -c "from dydiff_kernels import available_backends as a; print('installed; kernels here, best first:', *a('cpu'))"
	@touch $@

$(STAMP_ALL): $(STAMP)
	$(PIP) -e '.[dev,zarr,weather,lerobot,s3,cluster,latents]'
	@PIP_CONSTRAINT=constraints.txt $(PIP) pysteps opencv-python-headless || \
	echo "pysteps could not be built; everything works without it but the optical-flow baseline"
	@touch $@

# Each line is the real command; the README explains them. Whatever stands complete is reused, and said to be. The port
# is drawn so that another run on this machine, on the launcher's default port, is not in the way. Ctrl-C reaches the
# running command, which ends by itself, and the shell, whose line is the last: a status other than 0 would add make's own.
# make itself has had the Ctrl-C too and ends by it. DeepSpeed's launcher is kept from it, as it would end with a traceback
# before the training has written its checkpoint (torchrun's always does).
define DEMO_STAGES
What follows, with the time each part took on 2 idle cores of an AMD EPYC with AVX-512:
  0:10  a forecast with a model that comes along          -> $(DEMO_SHIPPED)/scores: picture, animation, report
  0:30  simulate turbulence                               -> shards/turbulence
  1:30  train diffusion, DeepSpeed on 2 processes         -> $(DEMO_DIFFUSION)
  4:00  train it on, on the score of its ensembles        -> $(DEMO_RUN)
  0:25  forecast 64 test cases, 8 members each            -> $(DEMO_RUN)/forecasts
  0:15  score them                                        -> $(DEMO_RUN)/scores: pictures, animation, report
What stands already is reused. Ctrl-C stops it, and the next make demo goes on from there.
endef
export DEMO_STAGES

demo: SHELL := /bin/bash
demo: $(STAMP) ## a forecast in half a minute, then simulate, train, forecast, score: under 10 minutes on 2 cores
	@set -eo pipefail; SECONDS=0; echo "$$DEMO_STAGES"; \
	clock() { printf '%d min %d s' $$(($$1 / 60)) $$(($$1 % 60)); }; \
	trap 'echo; echo "demo: stopped after $$(clock $$SECONDS); make demo goes on from there"; exit 0' INT; \
	run() { echo; echo "$$ $$*"; local start=$$SECONDS; "$$@"; echo "($$(clock $$((SECONDS - start))))"; }; \
	deepspeed() { (trap '' INT; exec $(BIN)/deepspeed --quiet --master_port $$((20000 + RANDOM % 10000)) "$$@"); }; \
	[ -e /dev/nvidia0 ] || [ -e /dev/kfd ] || export DS_ACCELERATOR=cpu; \
	run python tools/demo.py --out $(DEMO_SHIPPED); \
	run python tools/make_shards.py turbulence --out shards/turbulence --train 768; \
	run deepspeed --num_gpus 2 dydiff_dist/train.py configs/turbulence_small.json; \
	run deepspeed --num_gpus 2 tools/train_fewstep.py configs/turbulence_fewstep.json; \
	run deepspeed --num_gpus 2 tools/forecast.py $(DEMO_RUN) --shards shards/turbulence/test --out $(DEMO_RUN)/forecasts; \
	run python tools/evaluate.py $(DEMO_RUN)/forecasts --climatology shards/turbulence/train --out $(DEMO_RUN)/scores; \
	echo; echo "demo: $$(clock $$SECONDS); data in shards/turbulence, TensorBoard logs, model and forecasts in" \
	"$(DEMO_RUN), scores and pictures in $(DEMO_RUN)/scores (forecast_000000.png and .gif)"

# As many tests at once as there are cores, four at most.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

test: $(STAMP_ALL) ## what guards a change, in some minutes: all but what test-all adds
	$(PYTEST)

test-all: $(STAMP_ALL) ## test, and stops, kills, networks, long fuzz, every kernel, rank and data source
	$(PYTEST) -m ""

test-fast: $(STAMP_ALL) ## unit tests only
	$(PYTEST) -m "not slow and not distributed and not long"

lint: $(STAMP_ALL) ## ruff and mypy, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/types && ln -sfn ../../kernels $(VENV)/types/dydiff_kernels
	$(BIN)/mypy

format: $(STAMP_ALL) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP_ALL) ## build the docs site into site/; a link that leads nowhere is an error
	@mkdir -p $(VENV)/types && ln -sfn ../../kernels $(VENV)/types/dydiff_kernels
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(STAMP) ## time the kernels on this machine
	$(BIN)/python tools/bench_kernels.py

sanitize: $(STAMP_ALL) ## the kernel tests under ASan and UBSan, some minutes
	$(BIN)/python tests/kernels/sanitize.py

constraints: $(STAMP_ALL) ## write the installed versions back to constraints.txt
	@{ head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable --exclude dydiff_dist | sed 's/^\(torch==[^+]*\)+.*/\1/'; } > constraints.new
	@mv constraints.new constraints.txt && git diff --stat constraints.txt

clean: ## remove what the demo and the build wrote (not .venv)
	rm -rf runs shards build dist site *.egg-info kernels/*.so
