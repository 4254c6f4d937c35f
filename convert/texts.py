"""Texts to calibrate and to measure with: reading, tokenizing with the checkpoint's own tokenizer, batching.

A file holds one JSON object a line: {"domain", "text"} as it stands, or {"domain", "messages", "tools", "thinking"}
for the checkpoint's chat template. Any other file is taken as plain text, one text a paragraph. Knows no mlx.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlx_qwen35.chat.messages import normalise_messages, normalise_tools
from mlx_qwen35.chat.template import ChatTemplate
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.errors import RequestError, UserError

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 2048  # tokens of one text; what is longer is cut into several
BATCH = 4096  # tokens of a batch, padding included


@dataclass(frozen=True)
class Text:
    """One text: as it stands, or as a conversation for the chat template."""

    domain: str
    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool | None = None


@dataclass(frozen=True)
class Tokens:
    """The ids of one text."""

    domain: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Texts side by side, padded on the right, which a causal network does not see.

    ids: [B, T]   real: [B, T], False where padded   domains: of each row
    """

    ids: NDArray[np.int32]
    real: NDArray[np.bool_]
    domains: tuple[str, ...]


def bundled(part: Literal["calibration", "evaluation"]) -> list[Text]:
    """Our own corpus. The two parts share no text."""
    return read_texts(CORPUS / f"{part}.jsonl")


def read_texts(path: Path) -> list[Text]:
    """Raises RequestError, one line, for a file that cannot be read or a line that is no text."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as text: {error}.") from None
    if path.suffix != ".jsonl":
        return [Text("text", part.strip()) for part in content.split("\n\n") if part.strip()]
    texts = [_text(line, f"{path}:{number}") for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    if not texts:
        raise RequestError(f"{path} holds no texts.")
    return texts


def _text(line: str, where: str) -> Text:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where}: not JSON: {error.msg}.") from None
    known = {"domain", "text", "messages", "tools", "thinking"}
    if not isinstance(found, dict) or not (found.get("text") or found.get("messages")):
        raise RequestError(f"{where}: each line needs an object with text or messages.")
    if unknown := sorted(set(found) - known):
        raise RequestError(f"{where}: {', '.join(unknown)} is unknown; known are {', '.join(sorted(known))}.")
    return Text(
        str(found.get("domain", "text")),
        str(found.get("text", "")),
        tuple(found.get("messages") or ()),
        tuple(found.get("tools") or ()),
        found.get("thinking"),
    )


def tokenized(folder: Path, texts: Iterable[Text], longest: int = LONGEST) -> list[Tokens]:
    """Through the tokenizer and the chat template in `folder`; texts over `longest` tokens are cut into several."""
    tokenizer = Tokenizer.from_folder(folder)
    template: ChatTemplate | None = None
    pieces = []
    for text in texts:
        written = text.text
        if text.messages:
            template = template or ChatTemplate.from_folder(folder)
            written = _rendered(template, text)
        ids = tokenizer.encode(written)
        pieces += [Tokens(text.domain, tuple(ids[i : i + longest])) for i in range(0, len(ids), longest)]
    return [p for p in pieces if len(p.ids) > 1]


def _rendered(template: ChatTemplate, text: Text) -> str:
    messages = normalise_messages(list(text.messages))
    tools = normalise_tools(list(text.tools) or None)
    try:
        return template.render(messages, tools, text.thinking, add_generation_prompt=False)
    except UserError:
        # Some templates refuse a system turn or a tool; the words themselves still are text of that domain.
        return "\n\n".join(str(m.get("content", "")) for m in text.messages)


def limited(tokens: Sequence[Tokens], most: int, seed: int = 0) -> list[Tokens]:
    """Texts in an order that `seed` shuffles, up to `most` tokens in all; the last one is cut to fit."""
    order = list(tokens)
    Random(seed).shuffle(order)
    chosen, left = [], most
    for piece in order:
        if left < 2:
            break
        chosen.append(Tokens(piece.domain, piece.ids[:left]))
        left -= len(piece.ids)
    return chosen


def batches(tokens: Sequence[Tokens], size: int = BATCH) -> Iterator[Batch]:
    """Texts of like lengths together, in batches of at most `size` places (or one text, where that is longer)."""
    waiting: list[Tokens] = []
    for piece in sorted(tokens, key=lambda t: len(t.ids)):
        if waiting and (len(waiting) + 1) * len(piece.ids) > size:
            yield _padded(waiting)
            waiting = []
        waiting.append(piece)
    if waiting:
        yield _padded(waiting)


def _padded(tokens: list[Tokens]) -> Batch:
    longest = max(len(t.ids) for t in tokens)
    ids, real = np.zeros((len(tokens), longest), np.int32), np.zeros((len(tokens), longest), np.bool_)
    for row, piece in enumerate(tokens):
        ids[row, : len(piece.ids)] = piece.ids
        real[row, : len(piece.ids)] = True
    return Batch(ids, real, tuple(t.domain for t in tokens))
