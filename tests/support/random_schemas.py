"""JSON schemas of every kind that a seed can come up with, whose documents are bounded: about a hundred tokens each."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("id", "name", "kind", "größe", "next step", 'a"b', "x/y", "ok?", "", "データ")
PATTERNS = ("^[A-Z]{2,4}-[0-9]{3}$", "^(foo|bar)?baz$", "[0-9]", r"^\w+\.(py|rs)$", "^[^\\s]{1,8}$", "^a*b+$")
FORMATS = ("date", "time", "uuid", "ipv4", "email")
SHARED = ("Point", "Leaf", "Tree")


class _Draws(random.Random):
    """width: properties of an object, at most"""

    width = 4


def random_schema(seed: int, depth: int = 3, width: int = 4) -> dict[str, Any]:
    """An object's schema; the same for the same seed.   width: properties of an object, at most"""
    r = _Draws(seed)
    r.width = width
    schema = _object(r, depth)
    if r.random() < 0.4:
        schema["$defs"] = {"Point": _object(r, 1), "Leaf": _scalar(r), "Tree": _tree(r)}
        name = r.choice(SHARED)
        schema["properties"]["shared"] = {"$ref": f"#/$defs/{name}"}
        schema["required"] = [*schema["required"], "shared"]
    return schema


def _any(r: _Draws, depth: int) -> dict[str, Any]:
    kind = r.random()
    if depth <= 0 or kind < 0.55:
        return _scalar(r)
    if kind < 0.75:
        return _object(r, depth - 1)
    if kind < 0.9:
        low = r.randint(0, 2)
        return {"type": "array", "items": _any(r, depth - 1), "minItems": low, "maxItems": low + r.randint(0, 2)}
    if kind < 0.95:
        items = [_scalar(r) for _ in range(r.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}
    return {"anyOf": [_scalar(r), _object(r, depth - 1)]}


def _object(r: _Draws, depth: int) -> dict[str, Any]:
    names = r.sample(WORDS, r.randint(1, r.width))
    properties = {name: _any(r, depth - 1) for name in names}
    required = [name for name in names if r.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _tree(r: _Draws) -> dict[str, Any]:
    """Refers to itself; closed by what it may be instead."""
    again = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Tree"}]}
    properties = {"value": _scalar(r), "left": again}
    return {"type": "object", "properties": properties, "required": ["value", "left"], "additionalProperties": False}


def _scalar(r: _Draws) -> dict[str, Any]:
    return r.choice((_text, _text, _pattern, _integer, _number, _choice, _word))(r)


def _text(r: _Draws) -> dict[str, Any]:
    low = r.choice((0, 0, 1, 5))
    return {"type": "string", "minLength": low, "maxLength": low + r.randint(0, 20)}


def _pattern(r: _Draws) -> dict[str, Any]:
    if r.random() < 0.3:
        return {"type": "string", "format": r.choice(FORMATS), "maxLength": 40}
    return {"type": "string", "pattern": r.choice(PATTERNS), "maxLength": 20}


def _integer(r: _Draws) -> dict[str, Any]:
    low = r.randint(-1000, 1000)
    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": low + r.choice((0, 1, 99, 12345))}
    if r.random() < 0.2:
        return {"type": "integer", "minimum": 0, "exclusiveMaximum": 1000, "multipleOf": r.choice((2, 5, 10))}
    return schema


def _number(r: _Draws) -> dict[str, Any]:
    low = r.choice((-2.5, 0, 0.125, 17))
    return {"type": "number", "minimum": low, "maximum": low + r.choice((0.5, 10, 1000))}


def _choice(r: _Draws) -> dict[str, Any]:
    values = ["red", "grün", 'say "hi"', "line\nbreak", 7, -0.5, None, True, [], {"a": [1]}]
    return {"enum": r.sample(values, r.randint(1, 4))} if r.random() < 0.8 else {"const": r.choice(values)}


def _word(r: _Draws) -> dict[str, Any]:
    return {"type": r.choice(("boolean", "null", ["boolean", "null"]))}
