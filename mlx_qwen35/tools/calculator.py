"""Arithmetic: a parser of its own, so that nothing else can be said in it, and bounds on every number.

Agrees with Python wherever both give a finite number; `^` is a power here. No step can take long: a number has at most
MAX_BITS bits, whatever is asked, and an expression MAX_CHARACTERS characters.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from mlx_qwen35.tools.tool import Tool, ToolError

MAX_CHARACTERS = 1_000
MAX_DEPTH = 60
MAX_BITS = 10_000  # some 3,000 digits
MAX_FACTORIAL = 1_000  # 8,530 bits
Number = int | float

_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_TOKEN = re.compile(rf"\s*({_NUMBER}|[A-Za-z][A-Za-z0-9]*|\*\*|//|[-+*/%^(),])")
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}


def calculate(expression: str) -> Number:
    """The value of an expression. Raises ToolError, one line, for what is none or has no finite value."""
    if len(expression) > MAX_CHARACTERS:
        raise ToolError(f"the expression has {len(expression):,} characters; {MAX_CHARACTERS:,} are the limit")
    try:
        return _Parser(expression).value()
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("a number in it is too large") from None
    except ValueError:  # of math: log(-1)
        raise ToolError("a function in it has no value there") from None


def calculator() -> Tool:
    """The tool."""
    expression = {"type": "string", "description": "such as (3 + 4) * 2 ** 0.5 or round(sqrt(2), 3)"}
    parameters = {"type": "object", "properties": {"expression": expression}, "required": ["expression"]}
    names = ", ".join([*_FUNCTIONS, *_CONSTANTS])
    description = f"Calculate: + - * / // % ** and {names}."
    return Tool("calculator", description, parameters | {"additionalProperties": False}, _run, seconds=5)


def _run(arguments: Mapping[str, Any]) -> str:
    return str(calculate(arguments["expression"]))


class _Parser:
    """Recursive descent with Python's precedences: sums, products, signs, powers, and what stands alone."""

    def __init__(self, expression: str) -> None:
        self._tokens = _tokens(expression.translate(_SPELLINGS))
        self._at = 0
        self._depth = 0

    def value(self) -> Number:
        value = self._sum()
        if self._at < len(self._tokens):
            raise ToolError(f"{self._tokens[self._at]!r:.40} stands where the expression should end")
        return value

    def _next(self, *wanted: str) -> str | None:
        """The next token, taken, if it is one of these."""
        if self._at < len(self._tokens) and self._tokens[self._at] in wanted:
            self._at += 1
            return self._tokens[self._at - 1]
        return None

    def _sum(self) -> Number:
        value = self._product()
        while sign := self._next("+", "-"):
            value = _bounded((operator.add if sign == "+" else operator.sub)(value, self._product()))
        return value

    def _product(self) -> Number:
        operations = {"*": operator.mul, "/": operator.truediv, "//": operator.floordiv, "%": operator.mod}
        value = self._signed()
        while sign := self._next(*operations):
            value = _bounded(operations[sign](value, self._signed()))
        return value

    def _signed(self) -> Number:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ToolError(f"the expression is nested more than {MAX_DEPTH} deep")
        sign = self._next("+", "-")
        value = self._power() if sign is None else self._signed()
        self._depth -= 1
        return -value if sign == "-" else value

    def _power(self) -> Number:
        base = self._atom()
        return _power(base, self._signed()) if self._next("**", "^") else base

    def _atom(self) -> Number:
        if self._at == len(self._tokens):
            raise ToolError("the expression ends where a number should be")
        if self._next("("):
            value = self._sum()
            self._close()
            return value
        token = self._tokens[self._at]
        self._at += 1
        if token[0].isdigit() or token[0] == ".":
            return _bounded(int(token) if token.isdigit() else float(token))
        if token in _FUNCTIONS:
            return self._call(token)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        known = ", ".join([*_FUNCTIONS, *_CONSTANTS])
        raise ToolError(f"{token!r:.40} stands where a number should be; the names are {known}")

    def _call(self, name: str) -> Number:
        if not self._next("("):
            raise ToolError(f"{name} needs its arguments in parentheses")
        values = [self._sum()]
        while self._next(","):
            values.append(self._sum())
        self._close()
        function, least, most = _FUNCTIONS[name]
        if not least <= len(values) <= most:
            raise ToolError(f"{name} takes {least} {f'to {most} ' if most > least else ''}numbers, not {len(values)}")
        return _bounded(function(*values))

    def _close(self) -> None:
        if not self._next(")"):
            raise ToolError("a parenthesis is not closed")


def _tokens(text: str) -> list[str]:
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise ToolError(f"{text[at:].lstrip()[:1]!r} is no part of arithmetic")
        tokens.append(found[1])
        at = found.end()
    return tokens


def _bounded(value: Number) -> Number:
    """The value, if it is finite and not too large."""
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise OverflowError
    elif not math.isfinite(value):
        raise OverflowError
    return value


def _power(base: Number, exponent: Number) -> Number:
    # A power of integers is as long as its base, that many times: known before it is computed.
    bits = base.bit_length() - 1 if isinstance(base, int) else 0
    if isinstance(exponent, int) and bits * exponent > MAX_BITS:
        raise OverflowError
    value = base**exponent
    if isinstance(value, complex):
        raise ToolError("a root of a negative number is not real")
    return _bounded(value)


def _factorial(value: Number) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_FACTORIAL:
        raise ToolError(f"factorial takes an integer from 0 to {MAX_FACTORIAL:,}")
    return math.factorial(value)


def _round(value: Number, digits: Number = 0) -> Number:
    # Of an integer, Python computes ten to the power of digits.
    if not isinstance(digits, int) or abs(digits) > 400:
        raise ToolError("round takes a number of digits from -400 to 400")
    rounded = round(value, digits)
    return int(rounded) if digits == 0 else rounded


_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "sqrt": (math.sqrt, 1, 1),
    "exp": (math.exp, 1, 1),
    "log": (math.log, 1, 2),
    "log10": (math.log10, 1, 1),
    "log2": (math.log2, 1, 1),
    "sin": (math.sin, 1, 1),
    "cos": (math.cos, 1, 1),
    "tan": (math.tan, 1, 1),
    "asin": (math.asin, 1, 1),
    "acos": (math.acos, 1, 1),
    "atan": (math.atan, 1, 1),
    "abs": (abs, 1, 1),
    "round": (_round, 1, 2),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "min": (min, 2, 100),
    "max": (max, 2, 100),
    "factorial": (_factorial, 1, 1),
}
