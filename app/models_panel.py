"""Which model answers: a list of those that may be loaded, what is fetched and read meanwhile, and who is told.

Every open page looks at the same exchange, so that all of them show it, whichever asked for it.
"""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from mlx_qwen35.app.backend import ServerBackend
from mlx_qwen35.app.desk import Desk
from mlx_qwen35.app.harmless import plain
from mlx_qwen35.app.switching import State, Switch, serving
from mlx_qwen35.errors import UserError
from mlx_qwen35.hub.catalog import downloaded
from mlx_qwen35.hub.machine import GIB, this_machine
from mlx_qwen35.hub.table import HEADINGS, family_rows

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
SHOWN = ("model", "bf16", "4-bit", "fits here")
EVERY = 1.0  # seconds between two looks at what has changed


def models_panel(desk: Desk) -> gr.Textbox:
    """Inside the block that is open. Returns what changes, unseen, when another model answers."""
    answering = gr.Textbox(lambda: _answering(desk), visible="hidden", elem_id="answering", label="Answering")
    pulse = gr.Timer(EVERY)
    if isinstance(desk.runtime, ServerBackend):
        _of_server(desk, desk.runtime, answering, pulse)
    elif desk.loading is not None:
        _of_this_machine(desk, Switch(desk, desk.loading), answering, pulse)
    return answering


def _of_this_machine(desk: Desk, switch: Switch, answering: gr.Textbox, pulse: gr.Timer) -> None:
    with gr.Accordion("Model", open=False, elem_id="models") as panel:
        chosen = gr.Dropdown([], show_label=False, container=False, allow_custom_value=True, elem_id="model")
        with gr.Row():
            load = gr.Button("Load", size="sm", variant="primary", min_width=80, elem_id="load-model")
            stop = gr.Button("Stop", size="sm", variant="stop", min_width=80, visible=False, elem_id="stop-loading")
        progress = gr.Markdown("", elem_id="model-progress", sanitize_html=False)
        with gr.Accordion("All sizes", open=False):
            table = gr.Markdown("", elem_id="model-sizes")

    def opened() -> tuple[Any, ...]:
        choices = [(choice.label, choice.name) for choice in switch.choices()]
        return gr.Dropdown(choices, value=desk.runtime.name), sizes()

    def start(name: str) -> Any:
        try:
            switch.start(name)
        except UserError as error:
            return shown(State(str(error)))
        return shown(switch.state)

    def look(seen: str, told: int) -> tuple[Any, ...]:
        state, now = switch.state, _answering(desk)
        news = state.running or state.serial != told
        return (now if now != seen else gr.skip(), *(shown(state) if news else [gr.skip()] * 3), state.serial)

    def shown(state: State) -> list[Any]:
        return [as_html(state), gr.Button(interactive=not state.running), gr.Button(visible=state.running)]

    parts, told = [progress, load, stop], gr.State(0)  # the last exchange that this page showed the end of
    panel.expand(opened, None, [chosen, table], api_name="models", **QUIET)
    load.click(start, chosen, parts, api_name="load_model", **QUIET)
    stop.click(switch.stop, None, None, api_name="stop_loading", **QUIET)
    pulse.tick(look, [answering, told], [answering, *parts, told], api_name="look_at_model", **QUIET)
    answering.change(opened, None, [chosen, table], api_visibility="private", **QUIET)


def _of_server(desk: Desk, server: ServerBackend, answering: gr.Textbox, pulse: gr.Timer) -> None:
    with gr.Accordion("Model", open=False, elem_id="models") as panel:
        chosen = gr.Dropdown([], show_label=False, container=False, allow_custom_value=True, elem_id="model")
        said = gr.Markdown("", elem_id="model-progress")

    def opened() -> tuple[Any, ...]:
        try:
            server.refresh()
        except UserError as error:
            return gr.skip(), plain(str(error))
        names = [str(entry["id"]) for entry in server.entries]
        return gr.Dropdown(names, value=server.name), f"of the server at {plain(server.url)}"

    def use(name: str) -> str:
        try:
            server.use(name)
        except UserError as error:
            return plain(str(error))
        return ""

    panel.expand(opened, None, [chosen, said], api_name="models", **QUIET)
    chosen.input(use, chosen, said, api_name="use_model", **QUIET)
    pulse.tick(lambda: _answering(desk), None, answering, api_visibility="private", **QUIET)


def as_html(state: State) -> str:
    """A bar where how far is known, and the line."""
    bar = ""
    if state.running:
        value = "" if state.done is None else f' value="{state.done:.4f}"'
        bar = f'<progress max="1"{value} aria-label="Progress"></progress>'
    return f'{bar}<p role="status">{html.escape(state.line)}</p>' if state.line else ""


def sizes() -> str:
    """The family as a table in Markdown, and what this machine has for a model."""
    machine = this_machine()
    places = [HEADINGS.index(name) for name in SHOWN]
    rows = [SHOWN, ("---",) * len(SHOWN)]
    rows += [tuple(row.cells()[place] for place in places) for row in family_rows(machine, downloaded())]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    memory = f"{machine.budget / GIB:.1f} of {machine.total / GIB:.1f} GiB memory for a model ({machine.note})."
    return f"{table}\n\n{memory} Fewer bits: `mlx-qwen35 convert MODEL --bits 4`, then `mlx-qwen35 app FOLDER`."


def _answering(desk: Desk) -> str:
    """Another text for each model, and for none."""
    return desk.runtime.name if serving(desk) else f"{desk.runtime.name} …"
