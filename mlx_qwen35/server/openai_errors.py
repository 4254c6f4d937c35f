"""OpenAI's error object."""

from __future__ import annotations

from mlx_qwen35.server.protocol import Json, Refused

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def openai_error(refused: Refused) -> Json:
    """`{"error": {"message", "type", "param", "code"}}`"""
    default = "invalid_request_error" if refused.status < 500 else "server_error"
    return {
        "error": {
            "message": str(refused),
            "type": TYPES.get(refused.status, default),
            "param": refused.param,
            "code": refused.code,
        }
    }
