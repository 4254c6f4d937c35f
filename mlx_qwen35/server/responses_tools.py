"""The tools of a Responses request as function tools, which is all a template knows; and calls of them back.

- `custom` tools take free text: the model sees a function with the one parameter `input`.
- `namespace` groups functions: the model sees each by its own name, or with the group's before it where two are alike.
- Tools that only OpenAI runs, and that agents offer whoever answers (`web_search`, `image_generation` and their like),
  are left out: the model never calls what it is not shown. Those a request would be answered wrongly without
  (`file_search`, `code_interpreter`, `mcp`, a computer) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from mlx_qwen35.server.parts import bad, kind_of, part

OFFERED = ("web_search", "web_search_preview", "image_generation", "local_shell", "tool_search")
INPUT = "input"


class Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class Custom(msgspec.Struct):
    name: str
    description: str | None = None
    format: dict[str, Any] | None = None


class Namespace(msgspec.Struct):
    name: str
    tools: list[dict[str, Any]]
    description: str | None = None


@dataclass(frozen=True)
class Known:
    """A tool as the client knows it."""

    name: str
    kind: Literal["function", "custom"] = "function"
    namespace: str | None = None


@dataclass
class Tools:
    """shown: for the template   known: by the name shown"""

    shown: list[dict[str, Any]] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)

    def of(self, name: str) -> Known:
        """The tool that the model means by `name`."""
        return self.known.get(name, Known(name))

    def name_of(self, name: str, namespace: str | None) -> str:
        """The name under which the model sees a tool of the client's."""
        for shown, known in self.known.items():
            if known.name == name and known.namespace == namespace:
                return shown
        return name

    def add(self, tool: Function | Custom, namespace: str | None = None) -> None:
        name = tool.name if tool.name not in self.known else f"{namespace}__{tool.name}"
        kind = "custom" if isinstance(tool, Custom) else "function"
        function: dict[str, Any] = {"name": name}
        description = _description(tool)
        if description:
            function["description"] = description
        function["parameters"] = _parameters(tool)
        if isinstance(tool, Function) and tool.strict is not None:
            function["strict"] = tool.strict
        self.shown.append({"type": "function", "function": function})
        self.known[name] = Known(tool.name, kind, namespace)


def read_tools(given: Sequence[Mapping[str, Any]] | None, place: str = "tools") -> Tools:
    """Raises Refused, naming the tool."""
    tools = Tools()
    for i, tool in enumerate(given or ()):
        _read(tool, f"{place}[{i}]", tools, None)
    return tools


def _read(tool: Any, place: str, tools: Tools, namespace: str | None) -> None:
    kind = kind_of(tool, place)
    if kind == "function":
        # The older protocol's form, which some clients send here too.
        inner = tool.get("function")
        tools.add(_named(part(inner if isinstance(inner, dict) else tool, Function, place), place), namespace)
    elif kind == "custom":
        tools.add(_named(part(tool, Custom, place), place), namespace)
    elif kind == "namespace" and namespace is None:
        group = part(tool, Namespace, place)
        for i, inner in enumerate(group.tools):
            _read(inner, f"{place}.tools[{i}]", tools, group.name)
    elif not kind.startswith(OFFERED):
        raise bad(
            f"{place}.type",
            f"{kind[:60]!r} is run by OpenAI's own service; give function tools",
            "unsupported_parameter",
        )


def _named(tool: Function | Custom, place: str) -> Function | Custom:
    if not tool.name:
        raise bad(f"{place}.name", "empty; a name is needed")
    return tool


def _description(tool: Function | Custom) -> str:
    description = tool.description or ""
    grammar = tool.format.get("definition") if isinstance(tool, Custom) and tool.format else None
    return f"{description}\n\nThe input follows this grammar:\n{grammar}" if isinstance(grammar, str) else description


def _parameters(tool: Function | Custom) -> dict[str, Any]:
    if isinstance(tool, Function):
        return tool.parameters or {"type": "object", "properties": {}}
    return {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}
