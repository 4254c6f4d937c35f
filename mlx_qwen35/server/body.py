"""JSON bodies at the door: bytes to values, values to typed structs, with the field's name in every refusal."""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

import msgspec

from mlx_qwen35.chat.json_text import parse_json
from mlx_qwen35.server.protocol import Refused

T = TypeVar("T")
PLACE = re.compile(r"^(.*?) - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)
ALIKE = 0.85  # of the letters: an unknown name this near to a known one is a slip


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises Refused (400)."""
    try:
        value = parse_json(raw.decode())
    except UnicodeDecodeError:
        raise Refused(400, "The body is not UTF-8 text; a JSON object is needed.", code="invalid_json") from None
    except ValueError as error:
        raise Refused(400, f"The body is not JSON: {str(error)[:200]}.", code="invalid_json") from None
    if not isinstance(value, dict):
        kind = {list: "array", str: "string", type(None): "null", bool: "boolean"}.get(type(value), "number")
        raise Refused(400, f"The body is a JSON {kind}; an object is needed.", code="invalid_json")
    return value


def typed(body: dict[str, Any], kind: type[T]) -> T:
    """The body as a msgspec Struct. Raises Refused (400), whose `param` names the field.

    Fields that the struct does not know are let through, since clients add their own all the time, but not those that
    are a slip of the pen away from one it knows.
    """
    known = [field.encode_name for field in msgspec.structs.fields(kind)]  # pyright: ignore[reportArgumentType]
    for name in body:
        if name not in known and (near := difflib.get_close_matches(name[:80], known, 1, ALIKE)):
            raise Refused(
                400, f"{name[:80]!r} is unknown; did you mean {near[0]!r}?", param=name[:80], code="unknown_parameter"
            )
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        found = PLACE.match(str(error))
        what, place = found.groups() if found else (str(error), "")
        if not place and (missing := re.search(r"field `(\w+)`", what)):
            place = missing.group(1)
        raise Refused(400, f"{place or 'body'}: {what.replace('`', '')}.", param=place or None) from None
