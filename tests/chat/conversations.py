"""Conversations that cover the chat format, and the templates they are rendered with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
TEMPLATES = {
    "tests": Path(__file__).parent / "data" / "template.jinja",
    "demo": REPOSITORY / "mlx_qwen35" / "demo_checkpoint" / "chat_template.jinja",
    "9b": SHARED / "qwen3_5_chat_template.jinja",
    "0.8b": SHARED / "qwen3_5_chat_template.nothink_default_0.8B_2B.jinja",
}
ABSENT = [name for name, path in TEMPLATES.items() if not path.is_file()]
if ABSENT:
    warnings.warn(f"REAL TEMPLATES NOT TESTED: {', '.join(ABSENT)} absent (looked in {SHARED})", stacklevel=1)
PRESENT = {name: path.read_text() for name, path in TEMPLATES.items() if name not in ABSENT}

Case = tuple[list[dict[str, Any]], list[dict[str, Any]] | None, dict[str, Any]]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": parameters}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: Any) -> dict[str, Any]:
    return {"role": "system", "content": text}


def assistant(text: Any, reasoning: str | None = None, *calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
    return message


def result(text: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_0", "content": text}


WEATHER = tool("get_weather", city={"type": "string"}, days={"type": "integer"})
WRITE = tool("write_file", path={"type": "string"}, content={"type": "string", "description": "text <b> & 'q' ünï"})
NESTED = {"a": [1, 2.5, None, True, {"ü": "<&>'\""}], "leer": {}, "list": []}
TEXTS = {
    "plain": "Hello",
    "unicode": "naïve 你好 🧑‍🚀 é e\u0301 \u200b\u2028 אב",
    "blank": "  \n\t ",
    "padded": "\n  two lines\n\n of it  \n",
    "html": "<b>&amp;</b> \"q\" 'q' {{ 1 }} {% x %}",
    "tags": "say <think>x</think> and <tool_call> and <|im_start|>",
    "bare tool response": "<tool_response>x",
    "crlf": "a\r\nb\r\n",
}
VALUES = {
    "true": True,
    "none": None,
    "float": 1e-7,
    "big": 12345678901234567890123,
    "nested": NESTED,
    "empty": "",
    "lines": "a\n\nb\n",
    "closing tag": "x\n</parameter>\ny",
    "unicode": "ü🙂",
    "list": [1, "b", [True]],
}
LOOP = [
    user("Weather in Oslo?"),
    assistant("", "need weather", ("get_weather", {"city": "Oslo", "days": 2})),
    result('{"t": -3}'),
]


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {f"user {name}": ([user(text)], None, {}) for name, text in TEXTS.items()}
    cases |= {f"system {name}": ([system(text), user("Hi")], None, {}) for name, text in TEXTS.items()}
    cases |= {f"answer {name}": ([user("Hi"), assistant(text), user("And?")], None, {}) for name, text in TEXTS.items()}
    cases |= {
        f"argument {name}": ([user("Hi"), assistant("", None, ("f", {"v": value})), result("ok")], [WEATHER], {})
        for name, value in VALUES.items()
    }
    for name, options in {"on": {"enable_thinking": True}, "off": {"enable_thinking": False}, "unset": {}}.items():
        cases[f"thinking {name}"] = ([user("Hi")], None, options)
        cases[f"thinking {name} in a tool loop"] = (LOOP, [WEATHER], options)
        cases[f"thinking {name}, no prompt"] = ([user("Hi")], None, {**options, "add_generation_prompt": False})
    tools: list[dict[str, Any]] = [WEATHER, WRITE]
    cases |= {
        "tools": ([user("Hi")], tools, {}),
        "tools and system": ([system("Be terse."), user("Hi")], tools, {}),
        "tools and blank system": ([system(" "), user("Hi")], tools, {}),
        "bare function tool": ([user("Hi")], [WEATHER["function"]], {}),
        "no tools": ([user("Hi")], [], {}),
        "multi-turn": ([user("1+1?"), assistant("2", "sum"), user("2+2?"), assistant("4", "sum"), user("3")], None, {}),
        "reasoning kept in the last turn": ([user("1+1?"), assistant("2", "\n sum \n")], None, {}),
        "reasoning in the content": ([user("1+1?"), assistant("<think>\nsum\n</think>\n\n2"), result("x")], None, {}),
        "empty reasoning": ([user("1+1?"), assistant("2", "")], None, {}),
        "text before a call": ([user("Hi"), assistant("Sure.", "r", ("get_weather", {"city": "X"}))], [WEATHER], {}),
        "two calls": (
            [user("Hi"), assistant("", "r", ("a", {"x": 1}), ("b", {})), result("1"), result("2")],
            tools,
            {},
        ),
        "two calls and text": ([user("Hi"), assistant("T", None, ("a", {"x": 1, "y": "2"}), ("b", {}))], tools, {}),
        "answer after results": ([*LOOP, assistant("Cold.", "it is"), user("Thanks")], [WEATHER], {}),
        "two loops": ([*LOOP, assistant("", "again", ("get_weather", {"city": "Rom"})), result("9")], [WEATHER], {}),
        "unicode result": ([*LOOP[:2], result("ü 你好 \u2028")], [WEATHER], {}),
        "option of other templates": ([user("Hi")], None, {"add_vision_id": True, "preserve_thinking": True}),
    }
    return cases


CASES = _cases()
# Rendered from another form than the template takes: ours normalises first.
PART = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
PART_CASES: dict[str, Case] = {
    "parts": ([system(PART), user(PART), assistant(PART), user(PART)], None, {}),
    "result in parts": ([*LOOP[:2], result(PART)], [WEATHER], {}),
    "no content": ([user("Hi"), assistant(None, "r", ("f", {"a": 1})), result("x")], None, {}),
    "reasoning, older name": ([user("Hi"), {"role": "assistant", "content": "A", "reasoning": "r"}], None, {}),
    "thinking, other name": ([user("Hi"), {"role": "assistant", "content": "A", "thinking": "r"}], None, {}),
}
REFUSED: dict[str, list[dict[str, Any]]] = {
    "no question": [system("x")],
    "late system": [user("a"), system("b")],
    "unknown role": [user("a"), {"role": "robot", "content": "b"}],
}
