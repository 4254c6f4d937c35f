"""One format of caches: how a sequence's caches are made, what they take, and where its prefixes are remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen35.caches.blobs import Layouts
from mlx_qwen35.caches.kv import GROWTH
from mlx_qwen35.caches.prefix_tree import Node
from mlx_qwen35.caches.rows import SequenceCache, attention_layers, recurrent_layers
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window
from mlx_qwen35.options import MOST_DRAFTS

MIN_STRIDE = 1024  # tokens between checkpoints inside a long prompt, at least
STRIDE_SHARE = 2  # and as many that their KV takes this many times a checkpoint's bytes


@dataclass(frozen=True)
class CacheSizes:
    """token: bytes of KV a token takes   state: of a sequence's recurrent states, whatever its length"""

    token: int
    state: int

    @classmethod
    def of(cls, cache: SequenceCache) -> CacheSizes:
        """Measured on the caches of a sequence of one token."""
        token = sum(a.nbytes for layer in attention_layers(cache) for a in layer.segment(0, 1))
        return cls(token, sum(layer.nbytes for layer in recurrent_layers(cache)))

    def sequence(self, tokens: int) -> int:
        """Bytes of a live sequence: KV in whole growth steps, and two states, since a step makes the next from one."""
        longest = tokens + 1 + MOST_DRAFTS
        return -(-longest // GROWTH) * GROWTH * self.token + 2 * self.state

    def text(self, tokens: int) -> int:
        """Bytes of so many tokens that are remembered, with the checkpoint after them."""
        return tokens * self.token + self.state

    @property
    def stride(self) -> int:
        """Tokens between checkpoints inside a long prompt, such that KV stays the larger part of what is kept."""
        fair = STRIDE_SHARE * self.state // max(1, self.token)
        return max(MIN_STRIDE, -(-fair // MIN_STRIDE) * MIN_STRIDE)


@dataclass(frozen=True)
class CacheFormat:
    """make: caches of a new sequence   root: of its prefixes, in the store   layouts: of what the caches hold"""

    make: Callable[[], SequenceCache]
    sizes: CacheSizes
    root: Node
    layouts: Layouts


def one_token(model: Model, make: Callable[[], SequenceCache]) -> SequenceCache:
    """The caches of a text of one token: they show shapes, dtypes and sizes."""
    cache = make()
    mx.eval(model.step([Window(mx.array([0]), cache)]), [layer.state for layer in cache])
    return cache
