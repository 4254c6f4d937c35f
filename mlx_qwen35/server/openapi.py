"""The OpenAPI document, made from the endpoints: what is documented is what checks the bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from mlx_qwen35 import __version__
from mlx_qwen35.server.protocol import Download, Endpoint, Generation, Json, Upload

BINARY = "application/octet-stream"
STATUSES = {
    "400": "A field is wrong; the error names it.",
    "401": "The key is missing or wrong.",
    "403": "A foreign Host or Origin.",
    "404": "There is no such thing.",
    "405": "Not with this method.",
    "408": "The body came too slowly.",
    "409": "There is one of that name.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "Too many answers are under way.",
    "500": "A defect.",
    "503": "Not now.",
    "504": "It took too long.",
}


def document(endpoints: Sequence[Endpoint]) -> Json:
    """OpenAPI 3.1."""
    bodies = sorted({endpoint.body for endpoint in endpoints if endpoint.body}, key=lambda body: body.__name__)
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlx-qwen35", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": {"type": "object"}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(endpoint: Endpoint, path: str) -> Json:
    answer: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if isinstance(endpoint, Generation):
        answer["text/event-stream"] = {}  # events have no one schema
    if isinstance(endpoint, Download):
        answer = {BINARY: {}}
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses = {"200": {"description": "The answer.", "content": answer}}
    responses |= {status: {"description": says, "content": refused} for status, says in STATUSES.items()}
    operation: dict[str, Any] = {"summary": endpoint.summary, "responses": responses}
    if names := re.findall(r"\{(\w+)\}", path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if endpoint.body is not None:
        schema = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    elif isinstance(endpoint, Upload):
        operation["requestBody"] = {"required": True, "content": {BINARY: {}}}
    return operation
