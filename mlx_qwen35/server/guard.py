"""Who may ask: against DNS rebinding, cross-site requests of browsers, and strangers on the network."""

from __future__ import annotations

from starlette.datastructures import Headers

from mlx_qwen35.access import is_known, is_own_host
from mlx_qwen35.loopback import is_same_origin
from mlx_qwen35.server.protocol import Refused
from mlx_qwen35.server.settings import Settings


def check_caller(headers: Headers, settings: Settings, public: bool = False) -> None:
    """Raises Refused: 403 for a foreign Host or Origin, 401 for a missing or wrong key. public: needs no key"""
    host = headers.get("host", "")
    if len(headers.getlist("host")) != 1 or not _is_ours(host, settings):
        raise Refused(403, "This server answers under its own names only; --allow-host adds others.")
    origin = headers.get("origin")
    if origin is not None and not _may_come_from(origin, host, settings):
        raise Refused(403, "This server takes no requests from other pages; --allow-origin names those it should.")
    if settings.keys and not public and not is_known(_key(headers), settings.keys):
        raise Refused(401, "The API key is missing or wrong.", code="invalid_api_key")


def cross_origin_headers(headers: Headers, settings: Settings) -> list[tuple[bytes, bytes]]:
    """What lets a page that was named at the start read the response; nothing for any other."""
    always = [(b"x-content-type-options", b"nosniff")]
    origin = headers.get("origin")
    if origin is None or origin not in settings.origins:
        return always
    return [
        *always,
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", b"authorization, content-type, x-api-key, anthropic-version, anthropic-beta"),
        (b"vary", b"origin"),
    ]


def is_preflight(method: str, headers: Headers, settings: Settings) -> bool:
    """Whether a browser asks on behalf of such a page what it may send. It sends no key yet."""
    return method == "OPTIONS" and headers.get("origin") in settings.origins


def _is_ours(host: str, settings: Settings) -> bool:
    return is_own_host(host, [name.lower() for name in settings.hosts], only_loopback=settings.loopback)


def _may_come_from(origin: str, host: str, settings: Settings) -> bool:
    return is_same_origin(origin, host) or origin in settings.origins


def _key(headers: Headers) -> str:
    """As OpenAI's clients send it, or as Anthropic's do."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
