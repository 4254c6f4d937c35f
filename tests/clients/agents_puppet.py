"""The puppet that serves agent programs: told to write a note it calls a shell tool, and then says that it did."""

from __future__ import annotations

from pathlib import Path

from mlx_qwen35.chat.tokenizer import Tokenizer
from tests.support import real_tokenizer
from tests.support.puppet import Script, Voice
from tests.support.puppet_weights import write_puppet
from tests.support.scripted import TEMPLATE

# What agent programs are told ends in one of these words, which says how their shell tool is called.
NOTE, NOTE_FILE, DONE = "near water", "note.txt", "The note is in its place now."
SHELL_TOOLS = {
    "salmon": ("bash", "command"),
    "turtle": ("Bash", "command"),
    "wolf": ("run_shell_command", "command"),
    "castle": ("exec_command", "cmd"),
}
# mini-swe-agent ends when a command of its prints this, and with no message.
SUBMITS = "lemon", "; echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


def agents_script(tokenizer: Tokenizer) -> Script:
    """Told of one of the words, it writes the note with a shell tool; when that has answered, it says so."""
    voices = [_shell_voice(word, tool, parameter, "") for word, (tool, parameter) in SHELL_TOOLS.items()]
    word, ending = SUBMITS
    voices += [_shell_voice(word, "bash", "command", ending), Voice("<tool_response>", "It went well.", DONE)]
    return Script(tokenizer, voices, ["copper"], ["Ada"])


def write_agents_puppet(folder: Path) -> Path:
    """A checkpoint of the real architecture and vocabulary that follows this script."""
    tokenizer = real_tokenizer.folder()
    return write_puppet(folder, agents_script(Tokenizer.from_folder(tokenizer)), tokenizer, TEMPLATE)


def _shell_voice(word: str, tool: str, parameter: str, ending: str) -> Voice:
    command = f"echo {NOTE} > {NOTE_FILE}{ending}"
    call = (
        f"<tool_call>\n<function={tool}>\n<parameter={parameter}>\n{command}\n</parameter>\n</function>\n</tool_call>"
    )
    return Voice(word, "A shell can write that.", call)
