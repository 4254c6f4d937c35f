"""How answers are asked for: thinking, sampling, system prompt, JSON, tools. Components to `Settings` and back.

The numbers are those of the preset until a person changes one. What they were filled in from travels with them in the
page (`base`), so that a change of preset that has not come back yet changes nobody's numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from mlx_qwen35.app.desk import Desk
from mlx_qwen35.chat.constraints import EFFORTS
from mlx_qwen35.chat.presets import FAMILY as PRESETS
from mlx_qwen35.conversations.settings import Settings, check_form
from mlx_qwen35.errors import RequestError, UserError
from mlx_qwen35.options import Sampling
from mlx_qwen35.requests import ChatRequest

AUTOMATIC = ""  # the preset that fits thinking on or off
PRESET_LABELS = {
    AUTOMATIC: "Automatic",
    "thinking": "General, thinking",
    "thinking-coding": "Coding, thinking",
    "non-thinking": "General, not thinking",
    "non-thinking-reasoning": "Reasoning, not thinking",
}
# name, label, least, most, step
NUMBERS = (
    ("temperature", "Temperature", 0.0, 2.0, 0.05),
    ("top_p", "Top-p", 0.0, 1.0, 0.01),
    ("top_k", "Top-k (0: off)", 0, 200, 1),
    ("min_p", "Min-p", 0.0, 1.0, 0.01),
    ("presence_penalty", "Presence penalty", -2.0, 2.0, 0.1),
    ("repetition_penalty", "Repetition penalty", 0.5, 2.0, 0.05),
)
MOST_BUDGET = EFFORTS["high"]
FORMS = ("response_format", "regex", "choices", "grammar")  # one of them at most
MAX_SCHEMA = 1 << 20  # characters


@dataclass(frozen=True)
class SettingsPanel:
    """numbers: in the order of NUMBERS   base: hidden, what they were filled in from"""

    thinking: gr.Checkbox
    budget: gr.Slider
    preset: gr.Dropdown
    numbers: tuple[gr.Number, ...]
    max_tokens: gr.Number
    system: gr.Textbox
    as_json: gr.Checkbox
    schema: gr.Textbox
    base: gr.Textbox
    tools: gr.Checkbox

    @property
    def components(self) -> list[Any]:
        """As `Asked.of` takes their values, and as `values` gives them."""
        return [
            self.thinking,
            self.budget,
            self.preset,
            *self.numbers,
            self.max_tokens,
            self.system,
            self.as_json,
            self.schema,
            self.base,
            self.tools,
        ]


def make(desk: Desk, thinking: gr.Checkbox) -> SettingsPanel:
    """The components, inside the block that is open. thinking: stands elsewhere, beside the message"""
    preset = gr.Dropdown(
        [(PRESET_LABELS.get(name, name), name) for name in (AUTOMATIC, *PRESETS)],
        value=AUTOMATIC,
        label="Preset",
        info="The model card's numbers; automatic fits thinking on or off.",
        elem_id="preset",
    )
    start = numbers_of(desk, None, None)
    with gr.Row(elem_classes="numbers"):
        numbers = tuple(
            gr.Number(start[name], label=label, minimum=low, maximum=high, step=step, min_width=110, elem_id=name)
            for name, label, low, high, step in NUMBERS
        )
    budget = gr.Slider(
        0, MOST_BUDGET, 0, step=256, label="Thinking budget", info="Tokens; 0 is no limit.", elem_id="thinking_budget"
    )
    most = gr.Number(0, label="Longest answer", info="Tokens; 0 is the usual limit.", precision=0, elem_id="max_tokens")
    system = gr.Textbox("", label="System prompt", placeholder="None", lines=3, max_lines=12, elem_id="system")
    as_json = gr.Checkbox(False, label="Answer as JSON", elem_id="as_json")
    schema = gr.Textbox(
        "",
        label="JSON schema",
        info="Empty: any object.",
        placeholder='{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}',
        lines=4,
        max_lines=16,
        visible=False,
        elem_id="schema",
    )
    base = gr.Textbox(json.dumps(start), visible=False, elem_id="base")
    names = ", ".join(desk.toolbox.tools) if desk.toolbox else ""
    tools = gr.Checkbox(bool(names), label="Tools", info=names, visible=bool(names), elem_id="tools")
    return SettingsPanel(thinking, budget, preset, numbers, most, system, as_json, schema, base, tools)


def wire(desk: Desk, panel: SettingsPanel, answering: gr.Textbox) -> None:
    """A change of thinking, preset or model brings its numbers; the schema shows where it counts.

    answering: changes with the model
    """

    def follow(thinking: bool, preset: str, base: str) -> list[Any]:
        new = numbers_of(desk, thinking, preset or None)
        if json.dumps(new) == base:  # a preset that was named stays, and with it what was changed of its numbers
            return [gr.skip() for _ in range(len(NUMBERS) + 1)]
        return [*(new[name] for name, *_ in NUMBERS), json.dumps(new)]

    gr.on(
        [panel.thinking.input, panel.preset.input, answering.change],
        follow,
        [panel.thinking, panel.preset, panel.base],
        [*panel.numbers, panel.base],
        api_name="sampling",
        queue=False,
        show_progress="hidden",
    )
    panel.as_json.change(
        lambda on: gr.Textbox(visible=on),
        panel.as_json,
        panel.schema,
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    )


def numbers_of(desk: Desk, thinking: bool | None, preset: str | None) -> dict[str, float]:
    """The sampling that the model uses when nothing is changed, by the names of NUMBERS."""
    try:
        sampling = desk.runtime.sampling(ChatRequest([], enable_thinking=thinking, preset=preset))
    except UserError:
        sampling = Sampling()
    return {name: getattr(sampling, name) for name, *_ in NUMBERS}


@dataclass(frozen=True)
class Asked:
    """What the panel says. tools: whether they may be called"""

    settings: Settings
    tools: bool

    @classmethod
    def of(cls, values: Sequence[Any], before: Settings) -> Asked:
        """From the components' values. before: whose other settings stay. Raises RequestError."""
        thinking, budget, preset, *rest = values
        numbers, (most, system, as_json, schema, base, tools) = rest[: len(NUMBERS)], rest[len(NUMBERS) :]
        form = {name: value for name, value in before.form.items() if name in (*FORMS, "fold_at")}
        if as_json or form.get("response_format"):
            form = {name: value for name, value in form.items() if name not in FORMS}
        if as_json:
            form["response_format"] = response_format(schema or "")
        if budget:
            form["thinking_budget"] = int(budget)
        check_form(form)
        kept = {n: v for n, v in before.sampling.items() if n not in {name for name, *_ in NUMBERS}}
        settings = replace(
            before,
            system=(system or "").strip() and system,
            thinking=bool(thinking),
            preset=preset or None,
            sampling={**kept, **changed(numbers, base)},
            max_tokens=int(most) if most and most > 0 else None,
            form=form,
        )
        return cls(settings, bool(tools))


def values(desk: Desk, settings: Settings) -> list[Any]:
    """What the components show of `settings`; the switch of the tools stays as it is."""
    form = settings.form
    budgets = {name: form[name] for name in ("thinking_budget", "reasoning_effort") if name in form}
    asking = ChatRequest([], enable_thinking=settings.thinking, preset=settings.preset, **budgets)
    limits = [form.get("thinking_budget"), EFFORTS.get(form.get("reasoning_effort", ""))]
    budget = min((limit for limit in limits if limit is not None), default=0)
    base = numbers_of(desk, settings.thinking, settings.preset)
    numbers = {**base, **{n: v for n, v in settings.sampling.items() if n in base}}
    asked = form.get("response_format")
    schema = asked.get("json_schema", {}).get("schema") if asked else None
    return [
        desk.runtime.thinks(asking),
        min(budget, MOST_BUDGET or budget),
        settings.preset or AUTOMATIC,
        *(numbers[name] for name, *_ in NUMBERS),
        settings.max_tokens or 0,
        settings.system,
        bool(asked),
        gr.Textbox(json.dumps(schema, indent=2, ensure_ascii=False) if schema else "", visible=bool(asked)),
        json.dumps(base),
        gr.skip(),
    ]


def changed(numbers: Sequence[float | None], base: str) -> dict[str, float]:
    """What a person changed of the numbers."""
    try:
        before: Mapping[str, float] = json.loads(base)
    except ValueError:
        before = {}
    given = {name: value for (name, *_), value in zip(NUMBERS, numbers, strict=True) if value is not None}
    return {n: int(v) if n == "top_k" else float(v) for n, v in given.items() if v != before.get(n)}


def response_format(schema: str) -> dict[str, Any]:
    """OpenAI's form of a schema as text. Raises RequestError, one line."""
    if not schema.strip():
        return {"type": "json_object"}
    if len(schema) > MAX_SCHEMA:
        raise RequestError(f"The JSON schema has {len(schema):,} characters; at most {MAX_SCHEMA:,} are read.")
    try:
        value = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The JSON schema is not JSON: {' '.join(str(error).split())}.") from None
    if not isinstance(value, dict):
        raise RequestError(f"The JSON schema is a JSON {type(value).__name__}; it should be an object.")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}
