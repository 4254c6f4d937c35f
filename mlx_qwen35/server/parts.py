"""Objects inside a body, of which a `type` says what they are: typed like the body itself, refused by their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from mlx_qwen35.server.body import typed
from mlx_qwen35.server.protocol import Refused

T = TypeVar("T")
MEDIA = "images, files and video come in a later release; send text only for now"


def part(value: Any, kind: type[T], place: str) -> T:
    """`value` as a msgspec Struct. Raises Refused (400), whose `param` begins with `place`."""
    if not isinstance(value, dict):
        raise bad(place, f"expected an object, got {_kind(value)}")
    try:
        return typed(value, kind)
    except Refused as refused:
        inner = f"{place}.{refused.param}" if refused.param else place
        what = str(refused).partition(": ")[2] or str(refused)
        raise Refused(400, f"{inner}: {what}", param=inner, code=refused.code) from None


def kind_of(value: Any, place: str, default: str | None = None) -> str:
    """The `type` of an object. Raises Refused."""
    if not isinstance(value, Mapping):
        raise bad(place, f"expected an object, got {_kind(value)}")
    kind = value.get("type", default)
    if not isinstance(kind, str):
        raise bad(f"{place}.type", "missing" if kind is None else f"expected a string, got {_kind(kind)}")
    return kind


def bad(place: str, what: str, code: str | None = None) -> Refused:
    """A refusal of the field at `place`."""
    return Refused(400, f"{place}: {what}.", param=place, code=code)


def media(place: str) -> Refused:
    """The refusal of an image, a file or a video."""
    return bad(place, MEDIA, "unsupported_media")


def told_as(refused: Refused, names: Mapping[str, str]) -> Refused:
    """A refusal by the runtime, in a protocol's own names of the fields; `names` has one for `response_format`."""
    param = "response_format" if str(refused).startswith("The json schema") else refused.param
    if param is None or param not in names:
        return refused
    code, after = refused.code, refused.retry_after
    return Refused(refused.status, str(refused), param=names[param], code=code, retry_after=after)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
