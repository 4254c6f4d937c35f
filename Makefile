# make chat   sets up everything in .venv and chats with the bundled demo model
# make test   sets up everything and runs all checks; needs no accelerator
# make app    the chat page in the browser, on the demo model

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# MLX's Linux wheel links a slow reference BLAS; Debian's OpenBLAS, preloaded, is 40 times faster. Empty elsewhere.
OPENBLAS = $$(ls /usr/lib/*/openblas-pthread/libopenblas.so.0 2>/dev/null | head -n 1)
RUN = LD_PRELOAD="$(OPENBLAS)"
# A process a core, at most four: each test of theirs computes on one thread.
PYTEST = $(RUN) OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: chat app test lint test-slow test-browser test-openapi test-clients clean

chat: $(VENV)/core.stamp
	@$(RUN) $(BIN)/mlx-qwen35 chat demo

app: $(VENV)/app.stamp
	@$(RUN) $(BIN)/mlx-qwen35 app demo

test: lint
	@$(PYTEST) -m "not slow and not browser"

lint: $(VENV)/dev.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

# Minutes, not seconds: what make test leaves out. Metal kernels once more, with the order of threads reversed.
test-slow: $(VENV)/dev.stamp
	@$(PYTEST) -m slow
	@MLX_QWEN35_METAL_SCHEDULE=reverse $(PYTEST) -m "metal and not slow"

# The chat page in a real, headless Chromium, which .ci/setup installs with apt where it may.
test-browser: $(VENV)/browser.stamp
	@$(RUN) OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

# The server against its own OpenAPI document, to the end; the slow tests have a shorter form.
test-openapi: $(VENV)/dev.stamp
	@$(RUN) OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.server.campaign

# Real clients against our server and mlx_lm.server, installed from the package registries (Node.js must be there).
# One server at a time, and it writes the README's table. CLIENTS="llm litellm" runs these only.
test-clients: $(VENV)/dev.stamp
	@$(RUN) $(BIN)/python -m tests.clients $(CLIENTS)

$(VENV)/core.stamp: pyproject.toml Makefile
	@.ci/setup $(PYTHON) $(VENV) .
	@touch $@

$(VENV)/app.stamp: $(VENV)/core.stamp
	@.ci/setup $(PYTHON) $(VENV) '.[app]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	@.ci/setup $(PYTHON) $(VENV) '.[dev]'
	@touch $(VENV)/app.stamp $@

$(VENV)/browser.stamp: $(VENV)/dev.stamp
	@.ci/setup $(PYTHON) $(VENV) '.[browser]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
