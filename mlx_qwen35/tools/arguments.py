"""Whether arguments fit a tool's JSON schema, and where they do not, in one line for the model.

Checks what tools use: types, enum, const, properties, required, items, bounds, unions and local references. What else a
schema says is left to the tool. `pattern` is among that: an expression of a stranger's can run for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from mlx_qwen35.tools.tool import ToolError, error_line

MAX_DEPTH = 32
MAX_CHECKS = 20_000  # of one call's values against schemas; a schema of unions in unions could ask for ever more
_TYPES: dict[str, Any] = {
    "null": type(None),
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": Mapping,
}
_BOUNDS = {
    "minimum": ("at least", lambda value, bound: value >= bound),
    "maximum": ("at most", lambda value, bound: value <= bound),
    "exclusiveMinimum": ("more than", lambda value, bound: value > bound),
    "exclusiveMaximum": ("less than", lambda value, bound: value < bound),
}
_LENGTHS: dict[Any, tuple[str, str, str]] = {
    str: ("minLength", "maxLength", "characters"),
    list: ("minItems", "maxItems", "items"),
}


def check_arguments(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raises ToolError naming the first place where the arguments do not fit."""
    if trouble := next(_Check(schema).troubles(arguments, schema, "arguments", 0), None):
        raise ToolError(error_line(trouble))


class _Check:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MAX_CHECKS

    def troubles(self, value: Any, schema: Any, place: str, depth: int) -> Iterator[str]:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            yield f"{place} is too deep or too large to check"
        elif schema is False:
            yield f"{place} is not allowed"
        elif isinstance(schema, Mapping):
            if isinstance(schema.get("$ref"), str):
                yield from self.troubles(value, self._target(schema["$ref"]), place, depth + 1)
            yield from _of_value(value, schema, place)
            yield from self._of_unions(value, schema, place, depth)
            if isinstance(value, Mapping):
                yield from self._of_object(value, schema, place, depth)
            if isinstance(value, list) and "items" in schema:
                for i, item in enumerate(value):
                    yield from self.troubles(item, schema["items"], f"{place}[{i}]", depth + 1)

    def _of_unions(self, value: Any, schema: Mapping[str, Any], place: str, depth: int) -> Iterator[str]:
        for word in ("anyOf", "oneOf"):
            branches = schema.get(word)
            if isinstance(branches, list) and branches:
                found = [next(self.troubles(value, branch, place, depth + 1), None) for branch in branches]
                if None not in found:
                    yield f"{place} fits none of {len(branches)} forms; of the first: {found[0]}"
        for branch in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
            yield from self.troubles(value, branch, place, depth + 1)

    def _of_object(self, value: Mapping[str, Any], schema: Mapping[str, Any], place: str, depth: int) -> Iterator[str]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        for name in required if isinstance(required, list) else ():
            if name not in value:
                yield f"{place}.{name} is missing"
        for name, item in value.items():
            if name in properties:
                yield from self.troubles(item, properties[name], f"{place}.{name}", depth + 1)
            elif schema.get("additionalProperties") is False:
                yield f"{place}.{name} is unknown; known are {', '.join(map(str, properties)) or 'none'}"
            else:
                yield from self.troubles(item, schema.get("additionalProperties"), f"{place}.{name}", depth + 1)

    def _target(self, reference: str) -> Any:
        """What a local reference names; None, which asks for nothing, for any other."""
        found: Any = self._root
        if not reference.startswith("#"):
            return None
        for step in reference[1:].split("/")[1:]:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        return found


def _of_value(value: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    named = schema.get("type")
    kinds: list[Any] = named if isinstance(named, list) else [named]
    if all(isinstance(kind, str) and kind in _TYPES for kind in kinds) and not any(_is(value, k) for k in kinds):
        yield f"{place} is {_shown(value)}, but {' or '.join(kinds)} is needed"
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(choices, list) and not any(_same(value, choice) for choice in choices):
        yield f"{place} is {_shown(value)}, but one of {', '.join(map(_shown, choices[:10]))} is needed"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for word, (said, fits) in _BOUNDS.items():
            bound = schema.get(word)
            if isinstance(bound, (int, float)) and not isinstance(bound, bool) and not fits(value, bound):
                yield f"{place} is {_shown(value)}, but {said} {bound} is needed"
    for kind, (least, most, what) in _LENGTHS.items():
        if isinstance(value, kind):
            length = len(cast(Any, value))
            for word, fits in ((least, length.__ge__), (most, length.__le__)):
                if isinstance(schema.get(word), int) and not fits(schema[word]):
                    yield f"{place} has {length} {what}, but {word} is {schema[word]}"


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _same(value: Any, other: Any) -> bool:
    """Python's equality, without that of True and 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # an integer too long to print
        return "a very long number"
