"""The page, put together: each part is made and wired in a module of its own.

Import it through `server.serve`, which switches Gradio's telemetry off first. Everything that people click has an
`elem_id`, which the browser tests use:

  conversation  question (its buttons: .submit-button, .stop-button)  status  chat-title  thinking
  approval  approval-text  approve  approve-always  deny
  chats-sidebar  new-chat  search-chats  chats (radio buttons)  chats-note  import-chat
  this-chat  rename-chat  export-markdown  export-json  delete-chat  delete-sure  delete-really  delete-not
  settings-sidebar  preset  temperature  top_p  top_k  min_p  presence_penalty  repetition_penalty
  thinking_budget  max_tokens  system  as_json  schema  tools  model-heading
  models  model  load-model  stop-loading  model-progress  answering (hidden)  strip  statistics  plots
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from mlx_qwen35 import demo_checkpoint
from mlx_qwen35.app import chat_panel, chats_panel, settings_panel
from mlx_qwen35.app.backend import ServerBackend
from mlx_qwen35.app.chat_panel import ChatPanel
from mlx_qwen35.app.desk import Backend, Desk
from mlx_qwen35.app.harmless import plain
from mlx_qwen35.app.models_panel import models_panel
from mlx_qwen35.app.stats_panel import stats_panel
from mlx_qwen35.app.strip import strip
from mlx_qwen35.hub.advice import real_checkpoint
from mlx_qwen35.requests import ChatRequest

DEMO_NOTE = (
    "**This is the demo model: a demonstration and a test bed, not a language model to rely on.** "
    "It knows a little about this project, small sums and tool calls. {real}"
)


def build(desk: Desk) -> gr.Blocks:
    """The page. Each browser tab has a conversation of its own."""
    with gr.Blocks(title="mlx-qwen35", fill_height=True, fill_width=True, analytics_enabled=False) as page:
        with gr.Sidebar(elem_id="chats-sidebar", width=280):
            chats = chats_panel.make()
        with gr.Column(scale=1, elem_id="chat"):
            model = gr.Markdown(heading(desk.runtime), elem_id="model-heading")
            tab, place, title, chatbot = chat_panel.make_conversation(desk)
            approval, approval_text, verdicts = chat_panel.make_approval()
            with gr.Row(elem_id="composer", equal_height=True):
                thinking = gr.Checkbox(
                    desk.runtime.thinks(ChatRequest([])),
                    label="Thinking",
                    container=False,
                    scale=0,
                    min_width=110,
                    elem_id="thinking",
                )
                question = chat_panel.make_question()
            status = gr.Markdown("", elem_id="status")
            strip(desk, tab)
        with gr.Sidebar(position="right", open=False, elem_id="settings-sidebar", width=340):
            answering = models_panel(desk)
            settings = settings_panel.make(desk, thinking)
            stats_panel(desk)
        chat = ChatPanel(tab, place, title, chatbot, status, question, approval, approval_text, verdicts)
        settings_panel.wire(desk, settings, answering)
        changed = chat_panel.wire(desk, chat, settings)
        chats_panel.wire(desk, page, chats, chat, settings, changed)
        gr.on(
            [page.load, answering.change],  # another model may have come since the page was built
            lambda: heading(desk.runtime),
            outputs=model,
            api_visibility="private",
            queue=False,
            show_progress="hidden",
        )
    return page


def heading(runtime: Backend) -> str:
    """The model's name, and its server's; under the demo's, what it is and is not, and how to get a real one."""
    if isinstance(runtime, ServerBackend):
        return f"### {plain(runtime.name)} · {plain(runtime.url)}"
    title = f"### {plain(Path(runtime.name).name or runtime.name)}"
    demo = Path(str(demo_checkpoint.__file__)).parent.resolve()
    is_demo = runtime.folder is not None and runtime.folder.resolve() == demo
    return f"{title}\n{DEMO_NOTE.format(real=real_checkpoint('app', '`'))}" if is_demo else title
