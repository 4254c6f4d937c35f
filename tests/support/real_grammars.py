"""Grammars over the family's real vocabulary, which takes seconds to read: once for all tests of a process."""

from __future__ import annotations

import functools

from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.generation.grammars import Grammars, Vocabulary
from tests.support.real_tokenizer import folder


@functools.cache
def real_tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(folder())


@functools.cache
def real_grammars() -> Grammars:
    tokenizer = real_tokenizer()
    return Grammars(Vocabulary(tokenizer.pieces(), tokenizer.named_ids, tokenizer.stop_ids, tokenizer.encode))
