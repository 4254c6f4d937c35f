"""The page: Gradio components, and the few functions behind them. Thin over the desk; serves nothing by itself.

Import it through `server.make_app`, which switches Gradio's telemetry off first.
"""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import gradio as gr
from gradio.themes import Base, Default

from mlx_qwen35 import demo_checkpoint
from mlx_qwen35.app.conversation import Answer, Question, Turn, blocks_of, messages_of, paced, status_line
from mlx_qwen35.app.desk import Backend, Desk
from mlx_qwen35.chat.events import Event
from mlx_qwen35.chat.presets import FAMILY as PRESETS
from mlx_qwen35.errors import UserError
from mlx_qwen35.hub.advice import real_checkpoint
from mlx_qwen35.options import Sampling
from mlx_qwen35.requests import ChatRequest

REPAINT = 0.05  # seconds; the eye sees no more, and each repaint costs the whole conversation
AUTOMATIC = ""  # the preset that fits thinking on or off
SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "$", "right": "$", "display": False},
    {"left": "\\(", "right": "\\)", "display": False},
]
DEMO_NOTE = (
    "**This is the demo model: a demonstration and a test bed, not a language model to rely on.** "
    "It knows a little about this project, small sums and tool calls. {real}"
)
STYLE = """
#numbers *, #status * { font-size: var(--text-sm); }
#numbers { align-self: center; flex: 1 1 16em; }
#thinking { flex: 0 0 8.5em; min-width: 8.5em; }
"""


def theme() -> Base:
    """System fonts only: the page loads nothing that does not come from this computer."""
    return Default(font=SANS, font_mono=MONO)


def build(desk: Desk) -> gr.Blocks:
    """The page. Each browser tab has a conversation of its own."""
    runtime = desk.runtime
    thinks = runtime.thinks(ChatRequest([]))
    with gr.Blocks(title=f"{runtime.name} · mlx-qwen35", fill_height=True, analytics_enabled=False) as page:
        gr.Markdown(heading(runtime))
        conversation = gr.State([])
        chatbot = gr.Chatbot(
            show_label=False,
            scale=1,
            min_height=240,
            sanitize_html=True,
            latex_delimiters=LATEX,
            buttons=["copy"],
            placeholder="Ask something.",
            feedback_options=None,
            elem_id="conversation",
        )
        question = gr.Textbox(
            show_label=False,
            placeholder="Your message (Enter sends, Shift+Enter breaks the line)",
            max_lines=12,
            submit_btn=True,
            autofocus=True,
            elem_id="question",
        )
        with gr.Row(equal_height=True):
            thinking = gr.Checkbox(thinks, label="Thinking", container=False, elem_id="thinking")
            preset = gr.Dropdown(
                [("Preset: automatic", AUTOMATIC), *((name, name) for name in PRESETS)],
                value=AUTOMATIC,
                show_label=False,
                container=False,
                scale=0,
                min_width=220,
            )
            numbers = gr.Markdown(numbers_line(runtime, thinks, AUTOMATIC), elem_id="numbers")
        with gr.Accordion("System prompt", open=False):
            system = gr.Textbox("", show_label=False, placeholder="None", lines=2, max_lines=12, elem_id="system")
        with gr.Row():
            status = gr.Markdown("", elem_id="status")
            fresh = gr.Button("New conversation", size="sm", scale=0, min_width=160)

        def chat(question: str, turns: list[Turn], system: str, thinking: bool, preset: str) -> Iterator[Any]:
            yield from respond(runtime, question, turns, system, thinking, preset)

        shown = [chatbot, status, conversation, question]
        # At once, so that a question which waits for another page's answer can be withdrawn.
        question.submit(
            lambda: gr.Textbox(submit_btn=False, stop_btn=True),
            outputs=question,
            api_visibility="private",
            queue=False,
            show_progress="hidden",
        )
        answering = question.submit(
            chat,
            [question, conversation, system, thinking, preset],
            shown,
            api_name="chat",
            show_progress="minimal",
            show_progress_on=status,  # the place in the queue
            concurrency_limit=1,  # the runtime answers one after another; the others wait in the page's queue
        )
        # Also after a stop, which closes `respond` wherever it is.
        answering.then(at_rest, conversation, shown, api_visibility="private", queue=False, show_progress="hidden")
        question.stop(None, cancels=answering, api_visibility="private", queue=False)
        # Two steps, since what still runs would write over an emptied page.
        gr.on([fresh.click, chatbot.clear], None, cancels=answering, api_visibility="private", queue=False).then(
            lambda: at_rest([]), outputs=shown, api_name="reset", queue=False, show_progress="hidden"
        )
        gr.on(
            [thinking.change, preset.change],
            lambda thinking, preset: numbers_line(runtime, thinking, preset),
            [thinking, preset],
            numbers,
            api_name="sampling",
            queue=False,
            show_progress="hidden",
        )
    return page


def respond(
    runtime: Backend, question: str, turns: Sequence[Turn], system: str, thinking: bool, preset: str
) -> Iterator[tuple[Any, ...]]:
    """Ask the model; yield the page's values as the answer grows. Closing this generator stops the model."""
    if not question.strip():
        yield tuple(gr.skip() for _ in range(4))
        return
    answer = Answer()
    turns = [*turns, Question(question)]
    request = ChatRequest(messages_of(turns, system), enable_thinking=thinking, preset=preset or None)
    turns = [*turns, answer]
    yield _values(turns, "")
    try:
        # A generator, so that closing it cancels.
        with closing(cast(Generator[Event, None, None], runtime.chat(request))) as events:
            for _ in paced(events, answer, REPAINT):
                yield _values(turns)
    except UserError as error:
        answer.stop(str(error))
    except Exception:
        # A defect of this program: Gradio would cover the page with a bare "Error".
        traceback.print_exc()
        answer.stop("The program failed at this; its terminal shows where. The conversation goes on without it.")
    finally:
        answer.stop()
    yield at_rest(turns)


def at_rest(turns: Sequence[Turn]) -> tuple[Any, ...]:
    """The page's values when nothing runs, however the last answer ended."""
    return _values(turns, gr.Textbox(submit_btn=True, stop_btn=False))


def _values(turns: Sequence[Turn], question: Any = None) -> tuple[Any, ...]:
    line = status_line(turns[-1]) if turns and isinstance(turns[-1], Answer) else ""
    return blocks_of(turns), line, turns, gr.skip() if question is None else question


def heading(runtime: Backend) -> str:
    """The model's name; under the demo's, what it is and is not, and how to get a real one."""
    title = f"### {Path(runtime.name).name or runtime.name}"
    is_demo = (
        runtime.folder is not None and runtime.folder.resolve() == Path(str(demo_checkpoint.__file__)).parent.resolve()
    )
    return f"{title}\n{DEMO_NOTE.format(real=real_checkpoint('app', '`'))}" if is_demo else title


def numbers_line(runtime: Backend, thinking: bool, preset: str) -> str:
    """The sampling numbers that `runtime` would use, in one line."""
    try:
        return describe(runtime.sampling(ChatRequest([], enable_thinking=thinking, preset=preset or None)))
    except UserError as error:
        return str(error)


def describe(sampling: Sampling) -> str:
    """Temperature, and the filters and penalties that are on."""
    if sampling.temperature == 0:
        return "always the likeliest token (temperature 0)"
    parts = [f"temperature {sampling.temperature:g}"]
    off = Sampling()
    for name in ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        value = getattr(sampling, name)
        if value != getattr(off, name):
            parts.append(f"{name.replace('_', '-', 1) if name[0] in 'tm' else name.replace('_', ' ')} {value:g}")
    return " · ".join(parts)
