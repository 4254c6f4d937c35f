"""Arguments against schemas: an independent validator says the same, and no schema makes ours hang."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mlx_qwen35.tools.arguments import check_arguments
from mlx_qwen35.tools.tool import ToolError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 2.0]) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=6,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, min_size=1, max_size=2, unique=True),
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "minimum": st.integers(-5, 5),
            "exclusiveMaximum": st.integers(-5, 5),
            "minLength": st.integers(0, 3),
            "maxItems": st.integers(0, 3),
            "items": inner,
            "properties": st.dictionaries(st.sampled_from("xyz"), inner, max_size=2),
            "required": st.lists(st.sampled_from("xyz"), max_size=2, unique=True),
            "additionalProperties": st.booleans() | inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
        },
    )


SCHEMAS = st.recursive(st.booleans(), schemas, max_leaves=6)


def fits(value: Any, schema: Any) -> bool:
    try:
        check_arguments({"value": value}, {"properties": {"value": schema}})
    except ToolError:
        return False
    return True


@given(VALUES, SCHEMAS)
def test_says_what_an_independent_validator_says(value: Any, schema: Any) -> None:
    assert fits(value, schema) == Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    "hostile",
    [
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#/properties/value"}] * 40},
        {"allOf": [{"allOf": [{"$ref": "#/properties/value"}] * 40}] * 40},
        {"type": 7, "properties": 5, "required": "x", "items": 3, "enum": "a", "minLength": "a"},
    ],
)
def test_a_schema_of_a_liar_ends(hostile: Any) -> None:
    fits({"value": [1, {"x": 2}]}, hostile)


def test_the_line_names_the_place() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    with pytest.raises(ToolError, match=r"arguments\.city is missing"):
        check_arguments({}, schema)
    with pytest.raises(ToolError, match=r"arguments\.city is 5, but string is needed"):
        check_arguments({"city": 5}, schema)
    with pytest.raises(ToolError, match="a very long number"):
        check_arguments({"city": 10**5000}, schema)
