"""JSON bodies at the door: bytes to values, values to typed structs, with the field's name in every refusal."""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

import msgspec
import numpy as np

from mlx_qwen35.chat.json_text import parse_json
from mlx_qwen35.server.protocol import Refused

T = TypeVar("T")
PLACE = re.compile(r"^(.*?) - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)
MAX_VALUES = (1 << 20) + (1 << 16)  # of one body: the ids of the longest context, and what stands beside them
MAX_NESTS = 1 << 18  # objects and lists of one body
MAX_FIELDS = 256  # of the body itself
ALIKE = 0.85  # of the letters: an unknown name this near to a known one is a slip


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises Refused (400)."""
    _require_few_values(raw)
    try:
        value = parse_json(raw.decode(), _fast)
    except UnicodeDecodeError:
        raise Refused(400, "The body is not UTF-8 text; a JSON object is needed.", code="invalid_json") from None
    except ValueError as error:
        raise Refused(400, f"The body is not JSON: {str(error)[:200]}.", code="invalid_json") from None
    if not isinstance(value, dict):
        kind = {list: "array", str: "string", type(None): "null", bool: "boolean"}.get(type(value), "number")
        raise Refused(400, f"The body is a JSON {kind}; an object is needed.", code="invalid_json")
    return value


def _fast(text: str) -> Any:
    """Much faster than Python's own reader where there are many numbers. Raises ValueError where it is stricter."""
    return msgspec.json.decode(text)


def _require_few_values(raw: bytes) -> None:
    """Refuse in time that a glance takes what would take Python seconds to build and to throw away.

    A prompt as ids has a value a token, and a message a handful of objects and lists, so that no context is as long.
    """
    if raw.count(b",") <= MAX_VALUES and raw.count(b"{") + raw.count(b"[") <= MAX_NESTS:
        return  # with those in strings
    text = np.frombuffer(raw.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    outside = text[np.bitwise_xor.accumulate(text == ord('"')) == 0]  # of strings
    if np.count_nonzero(outside == ord(",")) > MAX_VALUES:
        raise Refused(400, f"The body has more than {MAX_VALUES:,} values, which is the limit.")
    if np.count_nonzero((outside == ord("{")) | (outside == ord("["))) > MAX_NESTS:
        raise Refused(400, f"The body has more than {MAX_NESTS:,} objects and lists, which is the limit.")


def typed(body: dict[str, Any], kind: type[T]) -> T:
    """The body as a msgspec Struct. Raises Refused (400), whose `param` names the field.

    Fields that the struct does not know are let through, since clients add their own all the time, but not those that
    are a slip of the pen away from one it knows.
    """
    known = [field.encode_name for field in msgspec.structs.fields(kind)]  # pyright: ignore[reportArgumentType]
    if len(body) > MAX_FIELDS:
        raise Refused(400, f"The body has {len(body):,} fields; at most {MAX_FIELDS} are let through.")
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
            place, what = missing.group(1), "it is missing"
        raise Refused(400, f"{place or 'body'}: {what.replace('`', '')}.", param=place or None) from None
