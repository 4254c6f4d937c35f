"""A checkpoint's files: the template and the tokenizer, and whether the weights are what was downloaded."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from unicodedata import normalize

from mlx_qwen35.chat.template import END_TURN, TURN, ChatTemplate
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.doctor.findings import NotHere, Wrong
from mlx_qwen35.hub.headers import read_checkpoint
from mlx_qwen35.hub.progress import gigabytes
from mlx_qwen35.models.config import read_config

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And now?"},
]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "?", "parameters": {"type": "object", "properties": {}}},
}
TEXTS = (
    "Hello, world!\n\n  def f(x):\n\treturn x ** 2  # done\n",
    "Grüße, ça va? Привет, 世界! こんにちは 안녕하세요 مرحبا",
    "👩‍👩‍👧‍👦 🇳🇴 e\u0301 \u200b ﬁ ½ ∑",
    "0123456789 " * 5,
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def headers(folder: Path) -> str:
    """Every tensor that the files promise is there, in full. Raises CheckpointError."""
    found = read_checkpoint(folder)
    size = sum(entry.nbytes for entry in found.tensors.values())
    return f"{len(found.tensors):,} tensors, {gigabytes(size)}"


def checksums(folder: Path) -> str:
    """Files of the hub's cache are named by their sha256."""
    named = [(p, p.resolve().name) for p in sorted(folder.glob("*.safetensors")) if _SHA256.fullmatch(p.resolve().name)]
    if not named:
        raise NotHere("no checksums beside a checkpoint that is no download")
    for path, digest in named:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise Wrong(f"{path.name} is not what the hub holds: delete it and download it again.")
    return f"{len(named)} files are what the hub holds"


def template(folder: Path) -> str:
    """Turns, thinking on and off, and tools, as the family writes them."""
    made = ChatTemplate.from_folder(folder)
    for thinks, ends in ((True, "<think>\n"), (False, "<think>\n\n</think>\n\n")):
        text = made.render(CONVERSATION, enable_thinking=thinks)
        for message in CONVERSATION:
            if f"{TURN}{message['role']}\n" not in text or message["content"] not in text:
                raise Wrong(f"The template loses a {message['role']} turn.")
        if not text.endswith(f"{TURN}assistant\n{ends}"):
            raise Wrong(f"With thinking {'on' if thinks else 'off'} the prompt ends with {text[-40:]!r}.")
        if text.count(END_TURN) < len(CONVERSATION):
            raise Wrong("The template leaves turns open.")
    with_tools = made.render(CONVERSATION, tools=[TOOL])
    if "weather" not in with_tools or "<tool_call>" not in with_tools:
        raise Wrong("The template does not show tools.")
    return f"thinks {'by default' if made.thinking_by_default else 'if asked'}; tools"


def tokenizer(folder: Path) -> str:
    """Texts come back from ids as they were; the marks of turns are single ids; no id is past the embedding."""
    made, rows = Tokenizer.from_folder(folder), read_config(folder).vocab_size
    if made.vocab_size > rows:
        raise Wrong(f"{made.vocab_size:,} tokens, but only {rows:,} rows of the embedding.")
    for text in TEXTS:
        ids = made.encode(text)
        if normalize("NFC", made.decode(ids)) != normalize("NFC", text):  # the family's tokenizer composes accents
            raise Wrong(f"{text[:20]!r}... does not come back from its ids.")
        if max(ids) >= rows:
            raise Wrong("An id lies past the embedding.")
    for mark in (TURN, END_TURN):
        if made.encode(mark) != [made.token_id(mark)]:
            raise Wrong(f"{mark} is not one token.")
    if not made.stop_ids:
        raise Wrong("No token ends an answer.")
    return f"{made.vocab_size:,} tokens, {len(made.stop_ids)} of them end an answer"
