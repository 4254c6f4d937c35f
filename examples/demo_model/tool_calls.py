"""Tool calls: known tools asked for in words, made-up tools asked for by name, and answers from a tool's result."""

from __future__ import annotations

import json

from examples.demo_model.project_questions import question_and_answer
from examples.demo_model.samples import Message, Sample, user
from examples.demo_model.wordings import TOOLS, patterns
from examples.demo_model.words import WORDS, Words


def declare(name: str, description: str, parameters: dict[str, str]) -> dict:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _value(words: Words, parameter: str, kind: str) -> str:
    if kind == "integer":
        return words.digits(1, 4) if not words.unseen else words.digits(2, 4)
    if parameter in ("city", "to", "name"):
        return words.name() if parameter != "city" else words.city()
    if parameter == "path":
        return words.word() + words.random.choice((".txt", ".py", ".md", "/" + words.word() + ".txt"))
    if parameter == "language":
        return words.random.choice(("French", "German", "Spanish", "Italian", "Latin", words.word().capitalize()))
    return words.value()


def _made_up_tool(words: Words) -> tuple[str, dict[str, str]]:
    random = words.random
    name = f"{random.choice(WORDS['tool_verbs'])}_{words.word()}" if random.random() < 0.7 else words.word()
    pool = [*WORDS["tool_parameters"], words.word(), words.word()]
    parameters = random.sample(pool, random.choice((1, 1, 2, 2, 3)))
    return name, {key: random.choice(("string", "string", "integer")) for key in parameters}


def _request(words: Words) -> tuple[dict, str, dict[str, str], tuple[str, ...]]:
    """-> the tool's declaration, what the user says, the call's arguments, the fields of its result."""
    random = words.random
    if random.random() < 0.5:
        name = random.choice(list(TOOLS))
        tool = TOOLS[name]
        arguments = {key: _value(words, key, kind) for key, kind in tool["parameters"].items()}
        return (
            declare(name, tool["description"], tool["parameters"]),
            random.choice(tool["unseen" if words.unseen else "seen"]).format(**arguments),
            arguments,
            tuple(tool["result"]),
        )
    name, parameters = _made_up_tool(words)
    arguments = {key: _value(words, key, kind) for key, kind in parameters.items()}
    joiner = random.choice((" ", "=", " = ", ": "))
    pairs = random.choice((", ", " and ")).join(f"{key}{joiner}{value}" for key, value in arguments.items())
    said = random.choice(patterns("calling", words.unseen)).format(name=name, pairs=pairs)
    fields = tuple(random.sample(WORDS["result_fields"], random.choice((1, 1, 2))))
    return declare(name, random.choice(("", "A tool.", f"{name}.")), parameters), said, arguments, fields


def _others(words: Words, taken: str) -> list[dict]:
    """Up to two tools that are not meant."""
    tools = []
    for _ in range(words.random.choices((0, 1, 2), (6, 3, 1))[0]):
        if words.random.random() < 0.5:
            name = words.random.choice(list(TOOLS))
            description, parameters = TOOLS[name]["description"], TOOLS[name]["parameters"]
        else:
            (name, parameters), description = _made_up_tool(words), "A tool."
        if name != taken and all(name != tool["function"]["name"] for tool in tools):
            tools.append(declare(name, description, parameters))
    return tools


def _result(words: Words, fields: tuple[str, ...]) -> dict[str, str | int]:
    random, result = words.random, {}
    for field in fields:
        if field in ("degrees", "number", "price"):
            result[field] = int(words.digits(1, 3) if not words.unseen else words.digits(2, 4))
        elif field == "status":
            result[field] = random.choice(("ok", "done", "failed", "sent"))
        elif field == "time":
            result[field] = f"{random.randint(0, 23)}:{random.randint(10, 59)}"
        else:
            result[field] = words.word() if random.random() < 0.6 else words.value()
    return result


def tool_call(words: Words, thinking: bool) -> Sample:
    """A request that needs one of the tools; sometimes two calls of the same tool."""
    random = words.random
    tool, said, arguments, _ = _request(words)
    name = tool["function"]["name"]
    tools = [tool, *_others(words, name)]
    random.shuffle(tools)
    calls = [(name, arguments)]
    if name == "get_weather" and random.random() < 0.3:
        second = words.city()
        said = random.choice(("What is the weather in {} and {}?", "Weather in {} and {}?")).format(
            arguments["city"], second
        )
        calls.append((name, {"city": second}))
    return Sample("tools", [user(said)], f"I call {name}.", "", thinking, tools, calls)


def tool_result(words: Words, thinking: bool) -> Sample:
    """The turn after the tool has answered: its result in words."""
    tool, said, arguments, fields = _request(words)
    name = tool["function"]["name"]
    result = _result(words, fields)
    tools = [tool, *_others(words, name)]
    words.random.shuffle(tools)
    call: Message = {
        "role": "assistant",
        "content": "",
        "reasoning_content": f"I call {name}." if thinking else "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }
    separators = words.random.choice(((", ", ": "), (",", ":")))
    messages = [user(said), call, {"role": "tool", "content": json.dumps(result, separators=separators)}]
    answer = "The result: " + ", ".join(f"{key} {value}" for key, value in result.items()) + "."
    return Sample("tool-result", messages, f"{name} answered.", answer, thinking, tools)


def no_tool_needed(words: Words, thinking: bool) -> Sample:
    """Tools are there, but the question is about the project."""
    question, answer = question_and_answer(words)
    reasoning = "They ask about mlx-qwen35. I know: " + " ".join(answer.split()[:4]).rstrip(".,:;")
    return Sample(
        "no-tool", [user(question)], reasoning, answer, thinking, _others(words, "") or [declare("search", "", {})]
    )
