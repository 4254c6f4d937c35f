"""An agent in forty lines: the model calls tools until it has its answer.

python -m examples.tool_agent "What is the weather in Paris?" [MODEL]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import mlx_qwen35


def get_weather(city: str) -> dict[str, Any]:
    """Current weather of a city."""
    return {"degrees": 7 + len(city), "sky": "clear"}


WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]


def run(qwen: mlx_qwen35.Qwen, question: str, tools: Mapping[str, Callable[..., Any]], rounds: int = 10) -> str:
    """The answer, once the model makes no more calls."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for _ in range(rounds):
        reply = qwen.chat(messages, tools=TOOLS, temperature=0)
        messages.append(reply.message)
        if not reply.tool_calls:
            return reply.content
        for call in reply.tool_calls:  # their arguments fit the schemas
            result = tools[call["function"]["name"]](**call["function"]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})
    raise RuntimeError(f"no answer after {rounds} rounds of tool calls")


if __name__ == "__main__":
    with mlx_qwen35.load(*sys.argv[2:3]) as model:
        print(run(model, sys.argv[1], {"get_weather": get_weather}))
