"""Our own document, taken at its word by a program that does not know us: no 5xx, no hang, nothing undocumented."""

from __future__ import annotations

import re

import pytest

from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.settings import Settings
from tests.server.campaign import campaign
from tests.server.conftest import running

pytest.importorskip("schemathesis")


@pytest.mark.slow
def test_no_request_that_the_document_suggests_is_a_5xx_or_hangs(demo_runtime: Runtime) -> None:
    with running(demo_runtime, Settings()) as server:
        options = ["--phases", "fuzzing,stateful", "--max-examples", "12", "--generation-deterministic"]
        done = campaign(server.url, options)
        assert done.returncode == 0, done.stdout
        operations = sum(len(methods) for methods in server.get("/openapi.json").json["paths"].values())
    # All but the document itself, which it has read already.
    assert re.search(rf"Tested: {operations - 1}$", done.stdout, re.MULTILINE), done.stdout
