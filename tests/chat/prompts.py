"""Helpers of the transcript tests: tokenizers with their templates, and answers sampled as no tokenizer spells them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from mlx_qwen35.chat.template import ChatTemplate
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.chat.transcript import Transcript
from tests.chat.conversations import PRESENT, TEMPLATES
from tests.support import real_tokenizer

Messages = list[dict[str, Any]]


@cache
def tokenizer(name: str) -> Tokenizer:
    """`demo`, or `real` (skips loudly where it cannot be built)."""
    return Tokenizer.from_folder(TEMPLATES["demo"].parent if name == "demo" else real_tokenizer.folder())


@cache
def template(name: str) -> ChatTemplate:
    if name not in PRESENT:
        pytest.skip(f"REAL TEMPLATE NOT TESTED: {TEMPLATES[name]} is absent")
    return ChatTemplate(PRESENT[name])


class Chat:
    """One checkpoint's tokenizer and template, with a transcript of its own."""

    def __init__(self, name: str) -> None:
        self.tokenizer = tokenizer("demo" if name == "demo" else "real")
        self.template = template(name)
        self.transcript = Transcript(self.tokenizer, self.template)

    def prompt(self, messages: Messages, **options: Any):
        return self.transcript.prompt(self.template.render(messages, **options))

    def answer(self, messages: Messages, message: dict[str, Any], **options: Any) -> str:
        """The text a model has to generate for the template to render it again as it was."""
        prompt = self.template.render(messages, **options)
        whole = self.template.render([*messages, message], **{**options, "add_generation_prompt": False})
        assert whole.startswith(prompt)
        return whole[len(prompt) :].removesuffix("\n")


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def sample(tokenizer: Tokenizer, text: str, seed: int, rate: float = 0.3) -> list[int]:
    """Ids that spell `text`, some tokens of the usual spelling broken in two or into bytes."""
    dice = random.Random(seed)
    ids: list[int] = []
    for token in tokenizer.encode(text):
        data = tokenizer.token_bytes(token)
        if len(data) < 2 or tokenizer.encode(data.decode("utf-8", "ignore")) != [token] or dice.random() > rate:
            ids.append(token)
        elif _is_special(data) or dice.random() < 0.5:
            ids.extend([token] if _is_special(data) else [single_bytes(tokenizer)[byte] for byte in data])
        else:
            cut = dice.randrange(1, len(data))
            for part in (data[:cut], data[cut:]):
                known = [] if b"\xef\xbf\xbd" in part else _whole(tokenizer, part)
                ids.extend(known or [single_bytes(tokenizer)[byte] for byte in part])
    return ids


def _is_special(data: bytes) -> bool:
    return data.startswith(b"<") and data.endswith(b">")


def _whole(tokenizer: Tokenizer, part: bytes) -> list[int]:
    try:
        return tokenizer.encode(part.decode())
    except UnicodeDecodeError:
        return []


@cache
def single_bytes(tokenizer: Tokenizer) -> dict[int, int]:
    """The token of each byte."""
    pieces = ((tokenizer.token_bytes(token), token) for token in range(min(tokenizer.vocab_size, 2000)))
    return {piece[0]: token for piece, token in pieces if len(piece) == 1}
