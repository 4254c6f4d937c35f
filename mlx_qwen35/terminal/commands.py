"""The commands of the terminal chat: lines that begin with a slash and change how the conversation goes on."""

from __future__ import annotations

import difflib
import os
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_qwen35.chat import presets
from mlx_qwen35.chat.events import Usage
from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.keeping import Keeper
from mlx_qwen35.conversations.markdown import export
from mlx_qwen35.errors import UserError
from mlx_qwen35.options import GIB
from mlx_qwen35.terminal import asking_again, saved_chats, themes
from mlx_qwen35.terminal.answering import Answer, counted
from mlx_qwen35.terminal.safe_text import one_line, safe

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_qwen35.requests import ChatRequest
    from mlx_qwen35.runtime import Runtime
    from mlx_qwen35.tools.toolbox import Toolbox

SUMMED = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "prefill_seconds",
    "decode_seconds",
)
_COMMAND = re.compile(r"/([A-Za-z?]*)(?:\s+(.*))?", re.DOTALL)


@dataclass
class ChatState:
    """Everything a command may look at or change. say: prints lines for the person."""

    runtime: Runtime
    conversation: Conversation
    say: Callable[[str], None]
    keeper: Keeper = field(default_factory=Keeper)
    toolbox: Toolbox | None = None
    show_thinking: bool = True
    last: Answer | None = None
    answers: int = 0
    total: Usage = field(default_factory=Usage)
    leaving: bool = False
    console: Console | None = None
    theme: str = themes.AUTO
    offers: bool = False  # whether the prompt can begin with a text to change
    offered: str = ""  # the last question, to be changed at the next prompt
    asked_again: str = ""  # in place of the last question, as soon as the command has run

    def request(self, question: str = "") -> ChatRequest:
        """The request that would ask `question` now."""
        return self.conversation.request(question, self.toolbox.declarations() if self.toolbox else None)

    def count(self, answer: Answer) -> None:
        """Add a finished answer to the totals."""
        self.last, self.answers = answer, self.answers + 1
        sums = {name: getattr(self.total, name) + getattr(answer.usage, name) for name in SUMMED}
        self.total = replace(self.total, **sums)


@dataclass(frozen=True)
class Command:
    usage: str
    help: str
    run: Callable[[ChatState, str], None]
    choices: tuple[str, ...] = ()


def is_command(entry: str) -> bool:
    """Whether an entry is a command, and not a question that begins with a slash (such as a path)."""
    return "\n" not in entry.strip() and _COMMAND.fullmatch(entry.strip()) is not None


def run(state: ChatState, entry: str) -> None:
    """Run a command. Raises UserError, one line, for one that does not exist or cannot be done."""
    found = _COMMAND.fullmatch(entry.strip())
    name, argument = (found[1].lower(), (found[2] or "").strip()) if found else ("", "")
    command = COMMANDS.get({"exit": "quit", "?": "help", "": "help"}.get(name, name))
    if command is None:
        close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        advice = f"did you mean /{close[0]}?" if close else "/help lists the commands."
        raise UserError(f"There is no command /{name}; {advice}")
    command.run(state, argument)


def completions(entry: str) -> Iterable[str]:
    """Commands, and choices of a command, that begin with what is typed."""
    if not entry.startswith("/"):
        return []
    known = [f"/{name}" for name in COMMANDS]
    known += [f"/{name} {choice}" for name, command in COMMANDS.items() for choice in command.choices]
    # A choice is offered after its command is typed, so that the first list stays short.
    return [text for text in known if text.startswith(entry) and (" " in entry) == (" " in text)]


def _think(state: ChatState, argument: str) -> None:
    if argument:
        thinking = {"on": True, "off": False, "auto": None}.get(argument.lower(), "")
        if thinking == "":
            raise UserError(f"/think takes on, off or auto, not {argument[:40]!r}.")
        state.conversation.change(thinking=thinking)
    state.say(f"thinking is {'on' if state.runtime.thinks(state.request()) else 'off'}")


def _thinking(state: ChatState, argument: str) -> None:
    if argument.lower() not in ("", "show", "hide"):
        raise UserError(f"/thinking takes show or hide, not {argument[:40]!r}.")
    state.show_thinking = argument.lower() == "show" if argument else not state.show_thinking
    state.say(f"thinking is {'shown' if state.show_thinking else 'hidden: one line stands for it'}")
    if state.show_thinking and state.last and state.last.reasoning:
        state.say(safe("".join(state.last.reasoning)).strip())


def _preset(state: ChatState, argument: str) -> None:
    name = argument.lower()
    if name and name != "auto" and name not in presets.FAMILY:
        close = difflib.get_close_matches(name, presets.FAMILY, n=1)
        advice = f"did you mean {close[0]}?" if close else f"the presets are {', '.join(presets.FAMILY)}, and auto."
        raise UserError(f"There is no preset {argument[:40]!r}; {advice}")
    if name:
        state.conversation.change(preset=None if name == "auto" else name)
    else:
        state.say(f"presets: {', '.join(presets.FAMILY)}, and auto")
    state.say(f"preset {state.conversation.settings.preset or 'auto'}: {_sampling(state)}")


def _system(state: ChatState, argument: str) -> None:
    if argument:
        state.conversation.change(system="" if argument == "none" else argument)
    system = state.conversation.settings.system
    state.say(f"system prompt: {safe(system)}" if system else "no system prompt")


def _reset(state: ChatState, argument: str) -> None:
    # A new one, since the old one may be kept.
    state.conversation = Conversation(state.conversation.settings)
    state.keeper.part()
    state.say("the conversation starts anew; its settings stay")


def _save(state: ChatState, argument: str) -> None:
    path = _path(argument, "/save")
    state.conversation.save(path, state.runtime.name)
    state.say(f"saved {_count(state)} to {safe(str(path))}")


def _load(state: ChatState, argument: str) -> None:
    state.conversation = Conversation.load(_path(argument, "/load"))
    state.keeper.part()
    state.say(f"loaded {_count(state)}")


def _export(state: ChatState, argument: str) -> None:
    path = _path(argument, "/export")
    export(state.conversation, path, state.runtime.name)
    state.say(f"exported {_count(state)} to {safe(str(path))}")


def _stats(state: ChatState, argument: str) -> None:
    state.say(f"{safe(state.runtime.name)}, thinking {'on' if state.runtime.thinks(state.request()) else 'off'}")
    state.say(f"sampling: {_sampling(state)}")
    if state.last:
        state.say(f"last answer: {_speeds(state.last.usage)}")
        used = state.last.usage.prompt_tokens + state.last.usage.completion_tokens
        state.say(f"context: {used:,} of {state.runtime.config.max_context:,} tokens")
        if state.last.usage.cache_note:
            state.say(f"reuse: {safe(state.last.usage.cache_note)}")
    state.say(f"{counted(state.answers, 'answer')}: {_speeds(state.total)}")
    s = state.runtime.stats()
    if s.drafted_tokens:
        state.say(f"drafts: {s.accepted_tokens:,} of {s.drafted_tokens:,} stayed; the last step: {s.draft_note}")
    if s.ahead_tokens:
        state.say(f"read ahead while nobody asked: {s.ahead_tokens:,} tokens, {s.ahead_used_tokens:,} of them used")
    state.say(
        f"memory: {s.active_bytes / GIB:.2f} GiB in use, {s.peak_bytes / GIB:.2f} at most; "
        f"{s.prefix_bytes / GIB:.2f} GiB of earlier texts are remembered"
    )


def _theme(state: ChatState, argument: str) -> None:
    name = argument.lower() or state.theme
    if name not in themes.NAMES:
        raise UserError(f"/theme takes {', '.join(themes.NAMES[:-1])} or {themes.NAMES[-1]}, not {argument[:40]!r}.")
    if state.console is None:
        state.say("no colours here")
        return
    state.theme = name
    used = themes.use(state.console, name, os.environ)
    state.say(f"theme {name}" if name == used else f"theme {name}: {used}")


def _tools(state: ChatState, argument: str) -> None:
    if not state.toolbox or not state.toolbox.tools:
        state.say("no tools; they are chosen at the start: chat --tools calc,clock,files:FOLDER,mcp:FILE")
        return
    for tool in state.toolbox.tools.values():
        asked = ", asks before it runs" if tool.effect else ""
        state.say(f"{tool.name}{asked}: {one_line(tool.description, 200)}")


def _help(state: ChatState, argument: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    if state.console and max(map(len, lines)) > state.console.width:
        lines = [f"{command.usage}\n{_indented(command.help, state.console.width)}" for command in COMMANDS.values()]
    state.say("\n".join(lines))
    state.say("Enter sends, Esc-Enter begins a new line, Tab completes, Ctrl-C stops an answer, Ctrl-D leaves.")


def _indented(text: str, width: int) -> str:
    return textwrap.fill(text, max(width - 1, 10), initial_indent="  ", subsequent_indent="  ")


def _quit(state: ChatState, argument: str) -> None:
    state.leaving = True


COMMANDS: dict[str, Command] = {
    "think": Command("/think on|off|auto", "whether the model thinks before it answers", _think, ("on", "off", "auto")),
    "thinking": Command("/thinking show|hide", "show its thoughts, or one line for them", _thinking, ("show", "hide")),
    "preset": Command(
        "/preset NAME", "sampling values by name; without one, a list", _preset, (*presets.FAMILY, "auto")
    ),
    "edit": Command("/edit [TEXT]", "change your last question and ask it again", asking_again.edit),
    "again": Command("/again", "another answer to your last question", asking_again.again),
    "system": Command("/system TEXT", "the system prompt; the word none removes it", _system),
    "reset": Command("/reset", "forget the messages", _reset),
    "save": Command("/save FILE", "write messages and settings to a file", _save),
    "load": Command("/load FILE", "go on with a saved chat", _load),
    "chats": Command("/chats [WORDS]", "what was saved, newest first, or where these words stand", saved_chats.show),
    "resume": Command("/resume N", "go on with a chat of that list", saved_chats.resume),
    "rename": Command("/rename TITLE", "give this chat another title", saved_chats.rename),
    "branch": Command("/branch [N]", "go on in a copy, from answer N or the last", saved_chats.branch),
    "delete": Command("/delete N", "delete a chat of that list", saved_chats.delete),
    "export": Command("/export FILE", "write this chat as .md (Markdown) or .json", _export),
    "theme": Command("/theme NAME", "colours: auto, dark, light, or either", _theme, themes.NAMES),
    "tools": Command("/tools", "what the model may call", _tools),
    "stats": Command("/stats", "tokens, speeds and sampling", _stats),
    "help": Command("/help", "this list", _help),
    "quit": Command("/quit", "leave", _quit),
}


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UserError(f"{command} needs the name of a file.")
    try:
        return Path(argument).expanduser()
    except RuntimeError:  # ~somebody
        raise UserError(f"There is no home folder for {argument[:80]!r}.") from None


def _count(state: ChatState) -> str:
    return counted(len(state.conversation.messages), "message")


def _sampling(state: ChatState) -> str:
    chosen = state.runtime.sampling(state.request())
    return ", ".join(f"{name} {value:g}" for name, value in vars(chosen).items())


def _speeds(usage: Usage) -> str:
    read = usage.prompt_tokens - usage.cached_tokens
    parts = [f"{read:,} tokens read", f"{usage.completion_tokens:,} written"]
    if usage.reasoning_tokens:
        parts[1] += f" ({usage.reasoning_tokens:,} of them thinking)"
    if usage.prefill_seconds > 0:
        parts[0] += f" at {read / usage.prefill_seconds:,.0f} a second"
    if usage.cached_tokens:
        parts[0] += f" ({usage.cached_tokens:,} more were known)"
    if usage.decode_seconds > 0:
        parts[1] += f" at {usage.completion_tokens / usage.decode_seconds:,.1f} a second"
    if usage.accepted_tokens:
        parts[1] += f", {usage.tokens_per_step:.2f} a step"
    return ", ".join(parts)
