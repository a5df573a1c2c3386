# SPDX-License-Identifier: MIT
# Two commands on a fresh machine with Python 3.11 or newer, a C++ compiler and make:
#   make demo   train a deformable classifier on real images, and draw where it looks
#   make test   prove the library
PYTHON ?= python3
ENVIRONMENT := .venv
RUN := $(ENVIRONMENT)/bin/python
SESSION := 1
RESULTS := benchmarks/results
SOURCES := pyproject.toml CMakeLists.txt $(wildcard common/*/* cpu/* cpu/*/* cuda/* cuda/*/*)
# Code for one GPU architecture, which newer ones translate: all six take a minute more to build.
export SKBUILD_CMAKE_DEFINE ?= JAX_DCN_CUDA_ARCHITECTURES=80

.PHONY: demo test lint docs kernels versions version sanitize fuzz soak aarch64 benchmark gpu \
	wheels wheels-cuda12 wheels-cuda13 sdist publish-site clean

demo: $(ENVIRONMENT)/demo
	$(RUN) -m examples.digits

# The tests of a file share compiled programs and results, so a file stays in one process.
test: $(ENVIRONMENT)/development
	$(RUN) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(ENVIRONMENT)/development
	PATH="$(CURDIR)/$(ENVIRONMENT)/bin:$$PATH" pre-commit run --all-files

docs: $(ENVIRONMENT)/development
	$(RUN) -m mkdocs build --strict

# The kernels alone, on a processor or a system that the rest of the suite need not run on.
kernels: $(ENVIRONMENT)/development
	$(RUN) -m jax_dcn --selfcheck
	$(RUN) -m pytest --numprocesses auto --dist loadfile tests/laws tests/deform_aggregate \
		tests/deform_conv2d tests/deform_roi_pool

# The suite with one version of JAX: oldest, 0.10.2 or newest.
version:
	$(PYTHON) tests/package/versions.py $(VERSION)

# The newest is run after a failure of the others, too.
versions:
	$(PYTHON) tests/package/versions.py; others=$$?; \
	$(PYTHON) tests/package/versions.py newest --debian build/trixie && exit $$others

sanitize: $(ENVIRONMENT)/development
	$(RUN) tests/native/sanitize.py

fuzz: $(ENVIRONMENT)/development
	$(RUN) tests/native/fuzz.py --calls 1000000 --xla-calls 10000 --optimize 1

soak: $(ENVIRONMENT)/development
	$(RUN) tests/native/soak.py

aarch64: $(ENVIRONMENT)/development
	$(RUN) tests/native/aarch64.py

benchmark: $(ENVIRONMENT)/benchmark
	$(RUN) -m benchmarks.cpu --json benchmarks/results/cpu.json
	$(RUN) -m benchmarks.cpu.report
	$(RUN) -m benchmarks.attention --json benchmarks/results/attention.json
	$(RUN) -m benchmarks.attention.report

# A third of the proof and of the measurements on a GPU, by the Python there and without network.
gpu:
	$(PYTHON) -m benchmarks.gpu --session $(SESSION) --json $(RESULTS)/gpu-$(SESSION).json

# Wheels for every Python, of the processor and the system here: on Linux in a container.
wheels: $(ENVIRONMENT)/packaging
	$(RUN) -m cibuildwheel --output-dir dist

wheels-cuda12: $(ENVIRONMENT)/packaging
	$(RUN) -m cibuildwheel --output-dir dist packaging/cuda12

wheels-cuda13: $(ENVIRONMENT)/packaging
	$(RUN) -m cibuildwheel --output-dir dist packaging/cuda13

sdist: $(ENVIRONMENT)/packaging
	$(RUN) -m build --sdist --outdir dist

publish-site: $(ENVIRONMENT)/development
	$(RUN) -m mkdocs gh-deploy --strict

clean:
	rm -rf $(ENVIRONMENT) build

# Each environment file marks that the packages for its purpose are installed, and the kernels built.
$(ENVIRONMENT)/demo: EXTRAS = examples
$(ENVIRONMENT)/development: EXTRAS = development
$(ENVIRONMENT)/benchmark: EXTRAS = benchmark
$(ENVIRONMENT)/packaging: EXTRAS = packaging
$(ENVIRONMENT)/demo $(ENVIRONMENT)/development $(ENVIRONMENT)/benchmark $(ENVIRONMENT)/packaging: $(SOURCES) | $(ENVIRONMENT)
	$(RUN) -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

$(ENVIRONMENT):
	$(PYTHON) -m venv $@
