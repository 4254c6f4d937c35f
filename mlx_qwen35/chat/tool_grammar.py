"""A grammar of the tool calls that a request's tools allow, in the text that the family's template prints.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

The result is Lark as llguidance reads it: names in angle brackets are tokens, `%json` is a schema. Parameters come in
the order of the schema. What a value may be follows what tool_calls.py makes of its text. Compiles nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_qwen35.chat.schema_types import ParameterType, parameter_types, printed
from mlx_qwen35.chat.tool_calls import MAX_NAME
from mlx_qwen35.errors import RequestError

MORE, END = r"\n</parameter>\n<parameter=", r"\n</parameter>\n</function>"
# A value's text ends where one of the two comes first; what follows them is never part of it.
ENDS_ONCE = r"~/(?s:.*)\n<\/parameter>\n(<parameter=|<\/function>)(?s:.+)/"
ANYTHING = ("(?s:.*)",)
ANY_KEY = r"/[^><\n]{1,64}/"
WORDS = {"boolean": ("true", "false", "True", "False"), "null": ("null", "None")}
MAX_TEXT = 100_000  # of minLength and maxLength; more is not followed
# Characters to which a limit on text is followed, and those that all limits of a request's tools may count together.
# Near a closing tag llguidance follows each of them on its own: a few limits of 100 take it seconds, and then it gives
# up in the middle of a call. Whoever runs a tool checks them anyway; a strict tool is refused, as OpenAI refuses it.
LONGEST_LIMIT, COUNTED = 64, 128


@dataclass(frozen=True)
class Function:
    """One tool, as far as its calls go.

    parameters: the schema of its arguments   strict: whatever cannot be enforced is an error
    plain: of parameters only the JSON types are followed, where a schema that is not strict asks for what cannot be
    """

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False
    plain: bool = False


def functions_of(tools: Sequence[Mapping[str, Any]]) -> list[Function]:
    """The tools of a request. Raises RequestError for a name that the format cannot write."""
    found = []
    for tool in tools:
        function = tool.get("function", tool)
        name, parameters = function["name"], function.get("parameters") or {}
        for written in (name, *_properties(parameters)):
            if not 0 < len(written) <= MAX_NAME or set(written) & set("><\n") or written != written.strip():
                raise RequestError(f"The tool {name!r:.60} cannot be called: {written!r:.60} is no name in the format.")
        found.append(Function(name, parameters, function.get("strict") is True))
    return found


def call_grammar(functions: Sequence[Function], parallel: bool, whitespace: str) -> str:
    """Lark text for one call, or several where `parallel`, to the end of the answer.

    whitespace: regular expression for what may stand between the marks of JSON values
    """
    names = " | ".join(f"f{i}" for i in range(len(functions)))
    lines = [
        'start: call ("\\n" call)*' if parallel else "start: call",
        f'call: <tool_call> "\\n<function=" ({names}) "\\n" </tool_call>',
    ]
    texts = _Texts()
    for i, function in enumerate(functions):
        lines += _Rules(f"f{i}", function, whitespace, texts).lines()
    return "\n".join([*lines, *texts.lines, ""])


class _Texts:
    """Terminals of values that are text, one for each limit on it."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._room = COUNTED
        self.lines: list[str] = []

    def limited(self, schema: Mapping[str, Any], end: str, strict: bool) -> str:
        """The rule for text of `schema`; without its limits on length where they would be too much, if not `strict`."""
        pattern, (low, high) = _patterns(schema), _lengths(schema)
        if not low and high is None:
            return self.name(pattern or ANYTHING, end)
        lengths = f"(?s:.{{{low},{'' if high is None else high}}})"
        known = len(self.lines)
        counted = high or low
        if counted > (LONGEST_LIMIT if strict else min(LONGEST_LIMIT, self._room)):
            if strict:
                raise RequestError(
                    f"a text's minLength or maxLength is {counted:,}; at most {LONGEST_LIMIT} is followed."
                )
            return self.name(pattern or ANYTHING, end)
        name = self.name((*pattern, lengths), end)
        self._room -= counted * (len(self.lines) > known)
        return name

    def name(self, bodies: Sequence[str], end: str) -> str:
        """The rule for text that matches each of the expressions, with the newline before it and the tags after."""
        slashed = end.replace("/", r"\/")
        terminal = " & ".join([*(f"/\\n{body}{slashed}/" for body in bodies), ENDS_ONCE])
        if terminal not in self._names:
            name = f"text{len(self._names)}"
            self._names[terminal] = name
            self.lines += [f"{name}[lazy]: {name.upper()}", f"{name.upper()}: {terminal}"]
        return self._names[terminal]


class _Rules:
    """The rules of one function. `NAME_i`: what may stand after `<parameter=` when the first i have had their turn."""

    def __init__(self, name: str, function: Function, whitespace: str, texts: _Texts) -> None:
        self._name, self._function, self._texts = name, function, texts
        self._guidance = {"whitespace_pattern": whitespace, "lenient": not function.strict}
        self._schemas = _properties(function.parameters)
        self._types = parameter_types([{"name": function.name, "parameters": function.parameters}])[function.name]
        required = function.parameters.get("required")
        wanted = required if isinstance(required, list) else []
        self._required = [key in wanted for key in self._schemas]

    def lines(self) -> list[str]:
        """Lark rules; the first is the function's, from its name to the end of it."""
        name, keys = self._name, list(self._schemas)
        free = not keys and self._function.parameters.get("additionalProperties") not in (None, False)
        ways = ['"</function>"'] if not any(self._required) else []
        ways += [f'"<parameter=" {name}_0'] if keys or free else []
        lines = [f"{name}: {_quoted(self._function.name + '>' + chr(10))} ({' | '.join(ways)})"]
        if free:
            more, end = self._texts.name(ANYTHING, MORE), self._texts.name(ANYTHING, END)
            lines += [f'{name}_0: {name}_key ">" ({more} {name}_0 | {end})', f"{name}_key: {name.upper()}_KEY"]
            lines.append(f"{name.upper()}_KEY: {ANY_KEY}")
        for i, key in enumerate(keys):
            last = i + 1 == len(keys)
            ways = []
            if not last:
                ways.append(f"{self._value(key, MORE)} {name}_{i + 1}")
            if not any(self._required[i + 1 :]):
                ways.append(self._value(key, END))
            skip = f" | {name}_{i + 1}" if not last and not self._required[i] else ""
            lines.append(f"{name}_{i}: {_quoted(key + '>')} ({' | '.join(ways)}){skip}")
        return lines

    def _value(self, key: str, end: str) -> str:
        """What follows the `>` after the key, to the end of the tags in `end`."""
        schema, kind = _resolved(self._schemas[key], self._function.parameters), self._types[key]
        choices = _choices(schema)
        if choices is not None and not self._function.plain:
            return self._literals([printed(choice) for choice in choices], end)
        if kind.is_text and not self._function.plain:
            return self._texts.limited(schema, end, self._function.strict)
        if not kind.kinds or "string" in kind.kinds:
            return self._texts.name(ANYTHING, end)
        if kind.kinds <= WORDS.keys():
            return self._literals([word for name in sorted(kind.kinds) for word in WORDS[name]], end)
        return f'"\\n" %json {self._json(schema, kind)} "{end}"'

    def _literals(self, words: Sequence[str], end: str) -> str:
        return f'"\\n" ({" | ".join(map(_quoted, words))}) "{end}"'

    def _json(self, schema: Any, kind: ParameterType) -> str:
        if self._function.plain or not isinstance(schema, Mapping):
            schema = {"type": sorted(kind.kinds)}
        root = self._function.parameters
        shared = {name: root[name] for name in ("$defs", "definitions") if name in root}
        return json.dumps({**shared, **schema, "x-guidance": self._guidance}, ensure_ascii=False)


def _properties(parameters: Mapping[str, Any]) -> dict[str, Any]:
    properties = parameters.get("properties")
    return {str(key): value for key, value in properties.items()} if isinstance(properties, Mapping) else {}


def _resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema that a local reference names, followed a few times."""
    for _ in range(8):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        match = re.fullmatch(r"#/(\$defs|definitions)/([^/]+)", reference) if isinstance(reference, str) else None
        shared = root.get(match[1]) if match else None
        if match is None or not isinstance(shared, Mapping):
            break
        schema = shared.get(match[2])
    return schema


def _choices(schema: Any) -> list[Any] | None:
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) and schema["enum"] else None


def _lengths(schema: Mapping[str, Any]) -> tuple[int, int | None]:
    """The least and the most characters of text, as far as they are followed."""
    low, high = (schema.get(name) for name in ("minLength", "maxLength"))
    low = low if type(low) is int and 0 <= low <= MAX_TEXT else 0
    return low, high if type(high) is int and 0 <= high <= MAX_TEXT else None


def _patterns(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """A regular expression of all text with the schema's pattern in it, if it has one."""
    return (_searching(schema["pattern"]),) if isinstance(schema.get("pattern"), str) else ()


def _searching(pattern: str) -> str:
    """A JSON schema's pattern may match anywhere; a grammar's matches the whole text."""
    before, after = ("" if pattern.startswith("^") else "(?s:.*)"), ("" if _ends(pattern) else "(?s:.*)")
    inner = pattern.removeprefix("^")
    inner = inner[:-1] if _ends(pattern) else inner
    return f"{before}(?:{_slashed(inner)}){after}"


def _ends(pattern: str) -> bool:
    """Whether it ends in a `$` that is not escaped."""
    return pattern.endswith("$") and (len(pattern) - 1 - len(pattern[:-1].rstrip("\\"))) % 2 == 0


def _slashed(pattern: str) -> str:
    """The pattern as it stands between slashes in Lark, in JSON schema's meaning of digits and letters."""
    pattern = re.sub(r"\\.|/", lambda m: r"\/" if m[0] == "/" else CLASSES.get(m[0], m[0]), pattern, flags=re.DOTALL)
    return pattern.replace("\n", r"\n")


CLASSES = {r"\d": "[0-9]", r"\w": "[0-9A-Za-z_]", r"\D": "[^0-9]", r"\W": "[^0-9A-Za-z_]"}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
