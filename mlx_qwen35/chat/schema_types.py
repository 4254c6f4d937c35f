"""What a tool's JSON schema says about its parameters, and the value that a parameter's text stands for.

The template prints text as it is, mappings and lists as JSON, and everything else as Python does (`True`, `None`), so
the text alone does not tell `5` from `"5"`: the schema does. Knows nothing of tags or streaming.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_qwen35.chat.json_text import parse_integer, parse_json

KINDS = ("null", "boolean", "integer", "number", "object", "array", "string")
# Names that are no JSON schema types, but that tool definitions use.
ALIASES = {"str": "string", "text": "string", "int": "integer", "float": "number", "bool": "boolean"}
ALIASES |= {"dict": "object", "list": "array", "none": "null"}
MAX_SCHEMA_DEPTH = 16
MAX_CHOICES = 10_000
# A Python literal is parsed with some hundred bytes of memory for each of its own.
MAX_LITERAL_CHARS = 100_000


@dataclass(frozen=True)
class ParameterType:
    """The JSON types a parameter may have (empty: not known), and its values where the schema lists them."""

    kinds: frozenset[str] = frozenset()
    choices: tuple[Any, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether every value is text, so that it can be passed on before it is complete."""
        return self.kinds == {"string"} and all(isinstance(choice, str) for choice in self.choices)

    @property
    def may_be_text(self) -> bool:
        """Whether some value is text, so that text which is nothing else can be passed on early."""
        return not self.choices and (not self.kinds or "string" in self.kinds)

    def decode(self, text: str) -> Any:
        """The value that `text` stands for; the text itself when the schema allows nothing it could be.

        - A listed choice that the template prints as this text.
        - Else the first of null, boolean, integer, number, object, array that is allowed and fits. In a union with
          string, `null` and `5` are thus not text: a schema that says so leaves no other way to write them.
        - Where nothing is known: an object, array, number or boolean if the text is one, else text.

        Integers of more than 4,300 digits stay text (their exact digits): Python cannot print them.
        """
        for choice in self.choices:
            if _prints_as(choice, text):
                return choice
        if self.is_text:
            return text
        kinds = self.kinds or frozenset(("boolean", "number", "object", "array", "string"))
        for kind in KINDS:
            if kind in kinds and kind != "string":
                try:
                    return _read(kind, text.strip(), literal="string" not in kinds)
                except ValueError:
                    continue
        return text


def parameter_types(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, dict[str, ParameterType]]:
    """For each tool's name, the type of each parameter that its schema names."""
    types: dict[str, dict[str, ParameterType]] = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        schema = function.get("parameters") if isinstance(function, Mapping) else None
        schema = schema if isinstance(schema, Mapping) else {}
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        name = function.get("name") if isinstance(function, Mapping) else None
        types[str(name)] = {str(key): _type(value, schema, 0) for key, value in properties.items()}
    return types


def printed(value: Any) -> str:
    """A parameter's value as the family's template prints it. Raises ValueError where Python cannot print it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _prints_as(choice: Any, text: str) -> bool:
    try:
        return printed(choice) == text
    except (ValueError, RecursionError):
        return False


def _type(schema: Any, root: Mapping[str, Any], depth: int) -> ParameterType:
    if not isinstance(schema, Mapping) or depth > MAX_SCHEMA_DEPTH:
        return ParameterType()
    if isinstance(schema.get("$ref"), str):
        return _type(_target(schema["$ref"], root), root, depth + 1)
    choices = _choices(schema)
    kinds = _named_kinds(schema.get("type"))
    if not kinds and choices:
        kinds = frozenset(_kind_of(choice) for choice in choices)
    if not kinds:
        branches = _branches(schema, root, depth)
        if branches and all(branch.kinds for branch in branches):
            kinds = frozenset().union(*(branch.kinds for branch in branches))
            choices = tuple(choice for branch in branches for choice in branch.choices)
            if not all(branch.choices or branch.kinds == {"null"} for branch in branches):
                choices = tuple(choice for choice in choices if not isinstance(choice, str))
    if not kinds and ("properties" in schema or "items" in schema):
        kinds = frozenset(("object" if "properties" in schema else "array",))
    if kinds and schema.get("nullable") is True:
        kinds |= {"null"}
    return ParameterType(kinds, choices)


def _branches(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> list[ParameterType]:
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list):
            return [_type(branch, root, depth + 1) for branch in schema[word][:64]]
    parts = schema.get("allOf")
    if isinstance(parts, list):  # all apply at once; the first that names a type is enough to read the text
        known = [branch for part in parts[:64] if (branch := _type(part, root, depth + 1)).kinds]
        return known[:1]
    return []


def _choices(schema: Mapping[str, Any]) -> tuple[Any, ...]:
    if "const" in schema:
        return (schema["const"],)
    return tuple(schema["enum"][:MAX_CHOICES]) if isinstance(schema.get("enum"), list) else ()


def _named_kinds(names: Any) -> frozenset[str]:
    """The kinds that `type` names; none when any of the names is unknown, since then anything may come."""
    names = names if isinstance(names, list) else [names]
    kinds = [ALIASES.get(name.lower(), name.lower()) if isinstance(name, str) else "" for name in names]
    return frozenset(kinds) if all(kind in KINDS for kind in kinds) else frozenset()


def _target(reference: str, root: Mapping[str, Any]) -> Any:
    """What a local reference (`#/$defs/Unit`) names; None for any other."""
    place: Any = root
    if not reference.startswith("#/"):
        return None
    for step in reference[2:].split("/"):
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    for kind, types in (("boolean", bool), ("integer", int), ("number", float), ("string", str), ("array", list)):
        if isinstance(value, types):
            return kind
    return "object"


def _read(kind: str, text: str, *, literal: bool) -> Any:
    """`text` as one kind. Raises ValueError when it is not of that kind."""
    if kind == "null" and text in ("null", "None"):
        return None
    if kind == "boolean" and text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if kind == "integer":
        return _integer(text)
    if kind == "number":
        return parse_integer(text) if _is_integer(text) else _float(text)
    if kind in ("object", "array"):
        return _structure(text, dict if kind == "object" else list, literal)
    raise ValueError(f"not {kind}")


def _is_integer(text: str) -> bool:
    digits = text[1:] if text[:1] in ("-", "+") else text
    return digits.isascii() and digits.isdigit()


def _integer(text: str) -> int | str:
    if _is_integer(text):
        return parse_integer(text)
    value = _float(text)
    # Beyond 2^53 a float stands for many integers; which one was meant is not known.
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    raise ValueError("not an integer")


def _float(text: str) -> float:
    if not text[:2].strip("-+")[:1].isdigit():
        raise ValueError("not a number")
    value = parse_json(text)
    if not isinstance(value, float):
        raise ValueError("not a number")
    return value


def _structure(text: str, wanted: type, literal: bool) -> Any:
    if text[:1] != ("{" if wanted is dict else "["):
        raise ValueError("not a JSON structure")
    try:
        value = parse_json(text)
    except ValueError:
        if not literal:
            raise
        value = _python_literal(text)
    if not isinstance(value, wanted):
        raise ValueError("another structure")
    return value


def _python_literal(text: str) -> Any:
    """A dict or list as Python writes it, which small models do, in JSON's types."""
    if len(text) > MAX_LITERAL_CHARS:
        raise ValueError("too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parse_json(json.dumps(ast.literal_eval(text), allow_nan=False))
    except (SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("not a literal") from None
