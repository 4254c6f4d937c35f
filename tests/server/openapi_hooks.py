"""What schemathesis sends, changed a little: answers stay short, and half of it gets past the first field.

Loaded by schemathesis itself (SCHEMATHESIS_HOOKS), in a process of its own.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import schemathesis

LIMITS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
SHORT = 4  # tokens; an unlimited answer would be a wait, and that is no finding
HELLO = [{"role": "user", "content": "Hello"}]


def shorten(body: dict[str, Any], field: str) -> None:
    if body.get(field) is None or (isinstance(body[field], int) and body[field] > SHORT):
        body[field] = SHORT


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Bodies that are objects; chance is replaced by their own text, so that a case is the same whenever it is made."""
    if not isinstance(body, dict):
        return body
    assert context.operation is not None
    field = LIMITS.get(context.operation.path)
    if field is not None:
        shorten(body, field)
    if isinstance(body.get("max_completion_tokens"), int):
        shorten(body, "max_completion_tokens")
    chance = crc32(repr(body).encode())
    if isinstance(body.get("model"), str) and chance % 4:
        body["model"] = "demo"
    if isinstance(body.get("messages"), list) and chance % 8 >= 4:
        body["messages"] = HELLO
    return body


@schemathesis.hook
def map_path_parameters(context: schemathesis.HookContext, path_parameters: Any) -> Any:
    if isinstance(path_parameters, dict) and "model" in path_parameters and len(path_parameters["model"]) % 2:
        path_parameters["model"] = "demo"
    return path_parameters
