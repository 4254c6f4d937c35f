"""The session in plots: speed, wait, reuse, drafts and memory of each answer since the program was started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from mlx_qwen35.app.desk import Desk, Logged
from mlx_qwen35.app.plots import Series, plot
from mlx_qwen35.chat.events import Usage

PLOTTED = 200  # answers, the newest
EVERY = 2.0  # seconds between two looks, while the plots are seen
QUIET: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


def stats_panel(desk: Desk) -> None:
    """Inside the block that is open."""
    with gr.Accordion("Statistics", open=False, elem_id="statistics") as panel:
        plots = gr.Markdown(elem_id="plots", sanitize_html=False)
    pulse = gr.Timer(EVERY, active=False)

    panel.expand(lambda: (as_html([*desk.log]), gr.Timer(active=True)), None, [plots, pulse], **QUIET)
    panel.collapse(lambda: gr.Timer(active=False), None, pulse, **QUIET)
    pulse.tick(lambda: as_html([*desk.log]), None, plots, **QUIET)


def as_html(log: Sequence[Logged]) -> str:
    """All plots, below a line of sums."""
    if not log:
        return '<p class="plots-note">Nothing was answered yet.</p>'
    answered = sum(entry.usage.completion_tokens for entry in log)
    prompts = sum(entry.usage.prompt_tokens for entry in log)
    cached = sum(entry.usage.cached_tokens for entry in log)
    sums = f"{len(log):,} answers · {answered:,} tokens answered · {prompts:,} prompt tokens, {cached:,} reused"
    return f'<p class="plots-note">{sums}</p>{"".join(map(plot, series_of(log[-PLOTTED:])))}'


def series_of(log: Sequence[Logged]) -> list[Series]:
    """What is plotted, answer by answer."""
    usages = [entry.usage for entry in log]
    return [
        Series("Speed", "tokens/s", [_speed(usage) for usage in usages]),
        Series("First token", "s", [usage.queue_seconds + usage.prefill_seconds or None for usage in usages]),
        Series("Prompt reused", "%", [_percent(u.cached_tokens, u.prompt_tokens) for u in usages], most=100),
        Series("Drafts kept", "%", [_percent(u.accepted_tokens, u.drafted_tokens) for u in usages], most=100),
        Series("Memory", "GB", [entry.memory / 1e9 if entry.memory is not None else None for entry in log]),
    ]


def _speed(usage: Usage) -> float | None:
    """The first token is the prefill's work."""
    if usage.completion_tokens < 2 or usage.decode_seconds <= 0:
        return None
    return (usage.completion_tokens - 1) / usage.decode_seconds


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
