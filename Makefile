# Everything runs in .venv, which the first target that needs it creates. The package is installed there in editable
# form, so that tests, tools and demo all see this checkout; csrc/ is compiled again when one of its files has changed.

VENV := .venv
BIN := $(VENV)/bin
SANITIZERS ?= address,undefined
PYTEST_ARGS ?=
# 0 runs all tests in one process, for a debugger.
TEST_PROCESSES ?= 2
# Of ptx: short leaves out what is for the night; and which tests.
PTX ?=
PTX_TESTS ?= tests/ptx
DEMO_ARGS ?=
# Of gpu-check: which pieces, and options such as --resume.
PIECES ?=
GPU_CHECK_ARGS ?=
# Of cuda-resources: --log FILE --module FILE judges what was compiled before.
CUDA_RESOURCES_ARGS ?=
# Of wheel: options of tests/project/prove_wheel.py.
WHEEL_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install test lint format demo bench bench-avx2 sanitize aot ptx emulation counted cuda-resources gpu-check docs docs-links notebook wheel \
  clean FORCE

help:
	@echo "make install    create .venv and install svdrd with everything for development (the other targets do it too)"
	@echo "make test       the tests                                   PYTEST_ARGS='tests/project/test_build.py -k cuda'"
	@echo "make lint       ruff and mypy; make format repairs what it can"
	@echo "make demo       fine-tune the committed codec with and without the basis loss, and draw the result"
	@echo "make bench      the CPU benchmarks, into docs/benchmarks.md and the README; bench-avx2: the same with AVX2 at most"
	@echo "make sanitize   the C++ kernels under sanitizers            SANITIZERS=thread"
	@echo "make aot        the Triton kernels compiled for GPUs that are not here: registers, spills, shared memory"
	@echo "make ptx        the compiled GPU kernels executed without a GPU     PTX=short for a part of minutes"
	@echo "make emulation  the CUDA kernels' algorithms on the CPU, for the tests of the cuda backend (make test does it too)"
	@echo "make counted    what bounds the GPU kernels' times, counted in an emulator, into docs/design/counted.md"
	@echo "make cuda-resources   the CUDA kernels compiled: registers, spills, shared memory"
	@echo "make gpu-check  on a GPU: tests, compute-sanitizer, benchmarks, a training step, the bars   PIECES='bench report'"
	@echo "make docs       the pages with the reference, into build/docs/html; make docs-links asks the addresses in them"
	@echo "make notebook   run examples/basis_loss.ipynb and write its outputs"
	@echo "make wheel      a wheel of the CPU kernels for Linux on x86-64, into dist; it is installed and tested   WHEEL_ARGS=--torch=DIR"
	@echo "make clean      remove what the targets above left, except .venv"
	@echo
	@echo "PYTHON=python3.12 chooses what .venv is made with; SVDRD_BUILD=auto|none|cpu|cuda what is compiled"
	@echo "(auto: what this machine can run; cuda: the kernels for every generation of GPUs, too);"
	@echo "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets the smaller PyTorch without CUDA."

# CompressAI has wheels for Python 3.10 to 3.12. A candidate is run, not only looked for: pyenv's python3.x exist and fail.
$(BIN)/pip:
	@set -e; chosen="$(PYTHON)"; \
	for candidate in python3.11 python3.12 python3.10 python3; do \
	  if [ -z "$$chosen" ] && $$candidate -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	    2>/dev/null; then chosen=$$candidate; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo "no Python 3.10, 3.11 or 3.12 with its venv module is on the PATH; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "creating $(VENV) with $$chosen"; $$chosen -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip  # the later ones show how far the unpacking is

# The requirements alone: the native module is built by the next rule, without pip's isolation, so that a change in csrc/
# compiles only what depends on it and works offline.
$(VENV)/.requirements: pyproject.toml | $(BIN)/pip
	@echo "installing PyTorch and everything for development: first downloads, then unpacking"
	SVDRD_BUILD=none $(BIN)/pip install -e ".[dev]"
	@touch $@

# Remembers the last SVDRD_BUILD, so that another one builds again.
$(VENV)/.build-mode: FORCE | $(BIN)/pip
	@echo '$(SVDRD_BUILD)' | cmp -s - $@ || echo '$(SVDRD_BUILD)' > $@

$(VENV)/.installed: $(VENV)/.requirements $(VENV)/.build-mode setup.py $(shell find csrc -type f)
	@echo "compiling csrc: [file/files] as each is done"
	$(BIN)/pip install -v --no-build-isolation --no-deps -e .
	@touch $@

install: $(VENV)/.installed

test: install emulation
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: install
	@echo "loading PyTorch and CompressAI"
	$(BIN)/python demo/demo.py $(DEMO_ARGS)

bench: install
	$(BIN)/python -m benchmarks

# As on a processor with AVX2 alone, for the table of the bars: svdrd, MKL and PyTorch each have their own way to be told.
bench-avx2: install
	SVDRD_ISA=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 \
	  $(BIN)/python -m benchmarks --ops svd,polar_factor,basis_loss --csv benchmarks/results/cpu_avx2.csv
	$(BIN)/python -m benchmarks.report

# SVDRD_ISA can only lower the instruction set, so every one that this machine has is run. Then the CUDA kernels on emulated
# lanes, and with these lanes as threads: are they synchronised where they share memory?
sanitize: install
	$(BIN)/cmake -S csrc -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DSVDRD_PYTHON_MODULE=OFF -DSVDRD_DRIVER=ON -DSVDRD_SANITIZE=$(SANITIZERS)
	@# The programs that measure steps are compiled along, as nothing else does.
	$(BIN)/cmake --build build/sanitize --target all steps_baseline lane_steps_baseline
	$(BIN)/cmake -S csrc -B build/races -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DSVDRD_PYTHON_MODULE=OFF -DSVDRD_DRIVER=ON -DSVDRD_SANITIZE=thread
	$(BIN)/cmake --build build/races --target races
	@# Side by side, as each is one thread for the most part; what one prints stays together.
	printf '%s\n' 'SVDRD_ISA=baseline build/sanitize/driver' 'SVDRD_ISA=avx2 build/sanitize/driver' \
	  'SVDRD_ISA=avx512 build/sanitize/driver' 'build/sanitize/driver cuda' build/races/races \
	  | xargs -P $(TEST_PROCESSES) -I{} sh -c 'said="$$({} 2>&1)"; status=$$?; echo "$$said"; exit $$status'

aot: install
	$(BIN)/python -m svdrd.backends.triton.aot

# In a process of its own: Triton interprets kernels or compiles them.
ptx: install emulation
	TRITON_INTERPRET=0 SVDRD_PTX_BUILD=$(CURDIR)/build/ptx NUMBA_CACHE_DIR=$(CURDIR)/build/ptx/numba \
	  TRITON_CACHE_DIR=$(CURDIR)/build/ptx/triton $(BIN)/python -m pytest -n $(TEST_PROCESSES) \
	  $(if $(filter short,$(PTX)),-m "not nightly") $(PYTEST_ARGS) $(PTX_TESTS)

# Without a compiler the tests of the cuda backend are skipped with the reason, as those of cpp are. A module of earlier
# sources would be tested in place of these, so none is left where the build fails.
emulation: install
	@echo "compiling the CUDA kernels' algorithms for the CPU, for tests"
	$(BIN)/cmake -S csrc -B build/emulation -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DSVDRD_PYTHON_MODULE=OFF \
	  -DSVDRD_EMULATION=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
	  && $(BIN)/cmake --build build/emulation --target _cuda_emulated \
	  || { rm -f build/emulation/_cuda_emulated*; echo "the emulated CUDA kernels were not built, for the reason above"; }

# Compiled kernels, so Triton's interpreter has to be off.
counted: install
	TRITON_INTERPRET=0 $(BIN)/python -m tests.ptx.counts --write

cuda-resources: install
	$(BIN)/python csrc/checks/cuda_resources.py $(CUDA_RESOURCES_ARGS)

# Asks for the GPU before it compiles for minutes.
gpu-check: $(VENV)/.requirements
	$(BIN)/python -m benchmarks.gpu_check --only-ask
	$(MAKE) install emulation
	$(BIN)/python -m benchmarks.gpu_check $(PIECES) $(GPU_CHECK_ARGS)

# Tools that only the next three need. pip reads the group, not the package, which stays as it is.
$(VENV)/.docs: pyproject.toml $(VENV)/.requirements
	$(BIN)/pip install --group docs
	@touch $@

# All is read again: what Sphinx keeps from an earlier build it does not warn of.
SPHINX := $(BIN)/python -m sphinx -c docs -d build/docs/doctrees -E -a

docs: $(VENV)/.docs
	$(SPHINX) -q -W --keep-going . build/docs/html
	@echo "open build/docs/html/index.html"

# A target of its own, because the pages themselves are built without a network.
docs-links: $(VENV)/.docs
	$(SPHINX) -q -b linkcheck . build/docs/links

notebook: install $(VENV)/.docs
	$(BIN)/python docs/notebook.py

# Made from the source distribution, so that it is complete. The folder of the unpacked sources is kept, and with it what is
# compiled. A wheel that needs a newer system than the tag says is refused by auditwheel.
wheel: $(VENV)/.requirements
	rm -rf dist build/sdist/wheel build/sdist/svdrd-*/build/lib* build/sdist/svdrd-*/build/bdist*
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")'
	mkdir -p build/sdist && tar -xzf dist/svdrd-*.tar.gz -C build/sdist
	SVDRD_BUILD=cpu SVDRD_OLD_GLIBC=ON $(BIN)/pip wheel -v --no-build-isolation --no-deps -w build/sdist/wheel \
	  build/sdist/$$(basename dist/svdrd-*.tar.gz .tar.gz)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --plat manylinux_2_28_x86_64 -w dist build/sdist/wheel/svdrd-*.whl
	$(BIN)/python -m tests.project.prove_wheel dist/svdrd-*.whl $(WHEEL_ARGS)

clean:
	rm -rf build dist svdrd.egg-info svdrd/_native*.so svdrd/_cuda*.so svdrd/_build_info.json $(VENV)/.installed
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks demo/run demo/rd.png demo/basis_distance.png demo/side_by_side.png restoration.png
	find svdrd tests demo examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
