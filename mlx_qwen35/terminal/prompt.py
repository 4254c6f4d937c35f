"""Reading what a person types: one line or many, pasted or typed, with a history that only they can read."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlx_qwen35.hub.catalog import state_folder

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

PASTE_LINES, PASTE_CHARACTERS = 20, 4000  # a larger paste is shown as one line that stands for it
MAX_REMEMBERED = 1 << 16  # characters; a longer entry stays out of the history file
PROMPT = "> "


class Prompt(Protocol):
    offers: bool  # whether `read` shows the text it is given, to be changed

    def read(self, text: str = "") -> str | None:
        """The next entry; None at the end of input. KeyboardInterrupt for Ctrl-C at an empty prompt."""
        ...

    def confirm(self, question: str) -> str:
        """What is typed after the question was seen, one line. KeyboardInterrupt for Ctrl-C, "" at the end of input."""
        ...


class LinePrompt:
    """Where stdout is no terminal: a line of stdin at a time, the prompt on stderr."""

    offers = False

    def read(self, text: str = "") -> str | None:
        print(PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None

    def confirm(self, question: str) -> str:
        _forget_what_was_typed()
        print(question, end="", file=sys.stderr, flush=True)
        with _interrupts_raised():
            return sys.stdin.readline().strip()


class Pastes:
    """Large pastes, each shown as one short line: ten thousand lines would fill the screen, and be slow to edit."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def stand_in(self, text: str) -> str:
        """What to show for a pasted text: itself, or a line that stands for it."""
        lines = text.count("\n") + 1
        if lines <= PASTE_LINES and len(text) <= PASTE_CHARACTERS:
            return text
        size = f"{lines:,} lines" if lines > PASTE_LINES else f"{len(text):,} characters"
        name = f"[paste {len(self._texts) + 1}: {size}]"
        self._texts[name] = text
        return name

    def expand(self, entry: str) -> str:
        """The entry with every such line replaced by what it stands for."""
        if not self._texts:
            return entry
        # In one pass, so that a paste which quotes such a line stays as it was.
        return re.sub("|".join(map(re.escape, self._texts)), lambda found: self._texts[found[0]], entry)


class TerminalPrompt:
    """prompt_toolkit: Enter sends, Esc-Enter begins a line, Tab completes commands, arrows walk the history."""

    offers = True

    def __init__(self, completions: Callable[[str], Iterable[str]], remember: bool) -> None:
        """completions: whole entries that could become of the text typed so far   remember: entries, in a file"""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory

        self._pastes = Pastes()
        self._session: PromptSession[str] = PromptSession(
            message=PROMPT,
            multiline=True,
            prompt_continuation="  ",
            history=_history(state_folder() / "history", self._pastes) if remember else InMemoryHistory(),
            key_bindings=_key_bindings(self._pastes),
            completer=_completer(completions),
            complete_while_typing=False,
            enable_suspend=True,
        )

    def read(self, text: str = "") -> str | None:
        try:
            return self._pastes.expand(self._session.prompt(default=self._pastes.stand_in(text)))
        except EOFError:
            return None

    def confirm(self, question: str) -> str:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.input.typeahead import clear_typeahead

        # Keys that came with the last entry are kept apart from those that the terminal still holds.
        clear_typeahead(self._session.input)
        _forget_what_was_typed()
        try:
            return PromptSession(input=self._session.input, output=self._session.output).prompt(question).strip()
        except EOFError:
            return ""


def _forget_what_was_typed() -> None:
    """What was typed before a question was seen is no answer to it."""
    if sys.stdin.isatty():
        import termios

        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


@contextlib.contextmanager
def _interrupts_raised() -> Iterator[None]:
    """Ctrl-C as KeyboardInterrupt, whatever it does around this."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def keys_unseen() -> Iterator[None]:
    """While an answer is written, keys are kept for the next prompt but not echoed into the text."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = termios.tcgetattr(descriptor)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _key_bindings(pastes: Pastes) -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.keys import Keys

    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add(Keys.BracketedPaste)
    def _paste(event: KeyPressEvent) -> None:
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        event.current_buffer.insert_text(pastes.stand_in(text))

    @bindings.add("c-c")
    @bindings.add(Keys.SIGINT)
    def _clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return bindings


def _history(path: Path, pastes: Pastes) -> History:
    """A file that only its owner can read; in memory where none can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class PrivateHistory(FileHistory):
        def store_string(self, string: str) -> None:
            # In memory a paste stays the line that stands for it; only this session could expand that.
            if len(whole := pastes.expand(string)) <= MAX_REMEMBERED:
                # A disk that is full must not end the conversation.
                with contextlib.suppress(OSError):
                    super().store_string(whole)

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return PrivateHistory(str(path))


def _completer(completions: Callable[[str], Iterable[str]]):
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class Entries(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            return [Completion(entry, start_position=-len(text)) for entry in completions(text)]

    return Entries()
