"""schemathesis against our own OpenAPI document: every operation, every field, right and wrong; nothing may be a 5xx.

    python -m tests.server.campaign [--max-examples 50] [further options of `schemathesis run`]

A process of its own sends the requests. The shorter form of it is a slow test; `make test-openapi` runs it to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlx_qwen35.options import CacheOptions
from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.settings import Settings
from tests.server.conftest import running

ROOT = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
HANG_SECONDS = 60  # for an answer of four tokens, on a machine as busy as can be


def campaign(url: str, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """All operations of the document at `url`; exit status 0 where no check failed."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS)]
    command += ["--continue-on-failure", "--request-timeout", str(HANG_SECONDS), "--no-color", *options]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.server.openapi_hooks", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as scratch:  # where it leaves its own notes
        return subprocess.run(
            command, env=environment, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


def main() -> None:
    runtime = Runtime.load("demo", caches=CacheOptions(disk=None))
    with running(runtime, Settings()) as server:
        done = campaign(server.url, sys.argv[1:] or ["--max-examples", "50"])
    runtime.close()
    print(done.stdout)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
