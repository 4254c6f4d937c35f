"""The terminal chat: read, answer, repeat, until its user leaves."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.text import Text

from mlx_qwen35 import __version__
from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.keeping import Keeper
from mlx_qwen35.errors import UserError
from mlx_qwen35.runtime import Runtime
from mlx_qwen35.terminal import commands, saved_chats, themes
from mlx_qwen35.terminal.answering import Answer
from mlx_qwen35.terminal.asking_again import without_last_question
from mlx_qwen35.terminal.commands import ChatState
from mlx_qwen35.terminal.loading import demo_notice, is_demo
from mlx_qwen35.terminal.prompt import LinePrompt, Prompt, TerminalPrompt, keys_unseen
from mlx_qwen35.terminal.safe_text import one_line, safe
from mlx_qwen35.terminal.status import LiveStatus, fitting, of_usage
from mlx_qwen35.terminal.turn import Turn
from mlx_qwen35.terminal.views import PlainView, RichView, View, make_console
from mlx_qwen35.tools.pump import EventPump
from mlx_qwen35.tools.toolbox import Toolbox

FAREWELL_SECONDS = 2.0  # for an answer that was stopped to let go of the model


class Chat:
    """One conversation between a person at a terminal and a loaded model."""

    def __init__(
        self,
        runtime: Runtime,
        conversation: Conversation,
        keeper: Keeper,
        debug: bool = False,
        toolbox: Toolbox | None = None,
        theme: str = themes.AUTO,
    ) -> None:
        self._console = make_console()
        if self._console:
            themes.use(self._console, theme, os.environ)
        self._prompt: Prompt = (
            TerminalPrompt(commands.completions, keeper.keeps) if sys.stdout.isatty() else LinePrompt()
        )
        self._state = ChatState(runtime, conversation, self.say, keeper, toolbox)
        self._state.console, self._state.theme, self._state.offers = self._console, theme, self._prompt.offers
        self._debug = debug
        self._pump: EventPump | None = None

    def run(self) -> None:
        # As an exception it lets prompt_toolkit give the terminal back in its ordinary state.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        self._banner()
        interrupted = False
        while not self._state.leaving:
            try:
                offered, self._state.offered = self._state.offered, ""
                entry = self._prompt.read(offered)
            except KeyboardInterrupt:
                if interrupted:
                    break
                interrupted = True
                self.say("(Ctrl-C again, or Ctrl-D, leaves)")
                continue
            interrupted = False
            if entry is None:
                break
            if entry.strip():
                self._obey(entry, bool(offered))
        if self._pump:
            self._pump.join(FAREWELL_SECONDS)

    def say(self, text: str) -> None:
        """Print for the person: beside the answer, never into it."""
        _say(self._console, text)

    def _banner(self) -> None:
        runtime, state = self._state.runtime, self._state
        thinking = "on" if runtime.thinks(state.request()) else "off"
        name = one_line(runtime.name, 120)
        self.say(f"mlx-qwen35 {__version__} · {name} · thinking {thinking} · /help for commands, Ctrl-D leaves")
        if is_demo(runtime.name):
            self.say(demo_notice())
        if state.toolbox:
            self.say(f"tools: {', '.join(state.toolbox.tools) or 'none'}")
        for note in (*runtime.notes, *(state.toolbox.notes if state.toolbox else ())):
            self.say(one_line(note))
        if state.conversation.messages:
            saved_chats.say_where_it_stood(state)

    def _obey(self, entry: str, edited: bool) -> None:
        """Run a command or answer a question; what goes wrong costs one line, not the conversation.

        edited: a question takes the last one's place
        """
        state = self._state
        try:
            if commands.is_command(entry):
                commands.run(state, entry)
                if not state.asked_again:
                    return
                (entry, state.asked_again), edited = (state.asked_again, ""), True
            with without_last_question(state.conversation) if edited else nullcontext():
                self._ask(entry)
        except UserError as error:
            self._complain(str(error))
        except KeyboardInterrupt:
            self.say("(stopped)")
        except Exception as error:
            self._complain(f"{type(error).__name__}: {error}. This is a defect; --debug shows more.")

    def _ask(self, question: str) -> None:
        turn = Turn(self._state, question, self._view, lambda text, style: _say(self._console, text, style))
        self._pump = turn.pump
        with keys_unseen(), _stops_on_interrupt(turn.pump):
            try:
                turn.run(self._prompt.confirm)
            finally:
                self._keep(turn)
        self._remark(turn.answer, turn.begun)
        self._say_status(turn.answer)
        if self._console:
            self._console.print()

    def _keep(self, turn: Turn) -> None:
        """What was said stays in the conversation, also when it was stopped or failed half-way."""
        if turn.keep() and (trouble := self._state.keeper.keep(self._state.conversation, self._state.runtime.name)):
            self.say(one_line(trouble))

    def _view(self) -> View:
        if self._console is None:
            return PlainView()
        runtime = self._state.runtime
        return RichView(self._console, self._state.show_thinking, LiveStatus(runtime.stats, runtime.config.max_context))

    def _say_status(self, answer: Answer) -> None:
        """What stood in the live line, for good. Without colours /stats says it, so that answers stand alone."""
        if self._console and answer.usage.completion_tokens:
            parts = of_usage(answer.usage, self._state.runtime.config.max_context)
            self.say(fitting(parts, self._console.width))

    def _remark(self, answer: Answer, begun: bool) -> None:
        if answer.reason == "length":
            self.say(answer.cut_off())
        elif answer.reason == "cancelled":
            kept = "what is here stays in the conversation" if begun else "the question is not kept"
            self.say(f"(stopped; {kept})")

    def _complain(self, line: str) -> None:
        if self._debug:
            traceback.print_exc()
        _say(self._console, f"mlx-qwen35: {line}", "error")


@contextmanager
def _stops_on_interrupt(pump: EventPump) -> Iterator[None]:
    """Let Ctrl-C stop the answer and nothing else."""
    before = signal.signal(signal.SIGINT, lambda number, frame: pump.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(console: Console | None, text: str, style: str = "dim") -> None:
    if console:
        console.print(Text(safe(text), style=style), soft_wrap=False)
    else:
        # The answer alone goes to stdout, unless a person looks at both.
        print(safe(text), file=sys.stdout if sys.stdout.isatty() else sys.stderr, flush=True)
