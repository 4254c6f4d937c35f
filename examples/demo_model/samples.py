"""One training or evaluation sample, and how it becomes text: the bundled chat template plus the wanted answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

CHECKPOINT = Path(__file__).parents[2] / "mlx_qwen35" / "demo_checkpoint"
Message = dict[str, Any]


@dataclass
class Sample:
    skill: str
    messages: list[Message]
    reasoning: str  # the think block when thinking is on; never empty
    answer: str
    thinking: bool
    tools: list[dict] = field(default_factory=list)
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


@cache
def _template():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string((CHECKPOINT / "chat_template.jinja").read_text())


def render_prompt(sample: Sample) -> str:
    return _template().render(
        messages=sample.messages,
        tools=sample.tools or None,
        add_generation_prompt=True,
        enable_thinking=sample.thinking,
    )


def render_calls(calls: list[tuple[str, dict[str, str]]]) -> str:
    blocks = []
    for name, arguments in calls:
        parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
        blocks.append(f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>")
    return "\n".join(blocks)


def render_completion(sample: Sample) -> str:
    """What the model has to write after the prompt, up to and including the end-of-turn token."""
    text = "\n\n".join(part for part in (sample.answer, render_calls(sample.calls)) if part)
    head = f"{sample.reasoning}\n</think>\n\n" if sample.thinking else ""
    return f"{head}{text}<|im_end|>"
