"""What the server says of itself: its OpenAPI document, its metrics, its health."""

from __future__ import annotations

import re
from typing import Any

from jsonschema import Draft202012Validator

from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.settings import Settings
from tests.server.conftest import RunningServer, running

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_the_document_names_every_endpoint_and_type(demo_server: RunningServer) -> None:
    document = demo_server.get("/openapi.json").json
    schemas = document["components"]["schemas"]
    assert {CHAT, "/v1/completions", "/v1/models/{model}", "/health", "/v1/messages", "/v1/responses"} <= set(
        document["paths"]
    )
    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


def test_the_document_s_types_are_those_that_check_bodies(demo_server: RunningServer) -> None:
    document = demo_server.get("/openapi.json").json
    root = {"$ref": "#/components/schemas/ChatBody", "components": document["components"]}
    validator = Draft202012Validator(root)
    for body in (HELLO, {**HELLO, "n": 0}, {**HELLO, "stop": [1]}, {**HELLO, "temperature": None}, {}):
        assert validator.is_valid(body) == (demo_server.post(CHAT, body).status == 200), body


def test_metrics_are_lines_that_prometheus_reads_and_count(demo_server: RunningServer) -> None:
    def numbers() -> dict[str, float]:
        text = demo_server.get("/metrics").body.decode()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r'[a-z0-9_]+(\{path="[^"\n]*",status="\d+"\})? [-+.e\d]+', line) for line in lines)
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    demo_server.post(CHAT, HELLO)
    before = numbers()
    demo_server.post(CHAT, HELLO)
    demo_server.get("/v1/%22evil%0a")
    after = numbers()
    answered = f'mlx_qwen35_http_responses_total{{path="{CHAT}",status="200"}}'
    assert after[answered] == before[answered] + 1
    assert after["mlx_qwen35_answer_tokens_total"] > before["mlx_qwen35_answer_tokens_total"]
    assert after["mlx_qwen35_cached_tokens_total"] > before["mlx_qwen35_cached_tokens_total"]


def test_a_model_that_was_closed_is_not_healthy(tiny_chat: Any) -> None:
    runtime = Runtime.load(str(tiny_chat))
    with running(runtime, Settings()) as server:
        assert server.get("/health").status == 200
        runtime.close()
        assert server.get("/health").status == 503
        assert server.post(CHAT, HELLO).status == 503
        assert server.request("HEAD", "/").status == 200
