"""What plain decoding would have drawn: one pass over prompt and answer, alone, in one window, no engine, no store.

Plain decode and this pass round differently, as do batches of other sizes: a matrix product takes other kernels. So
an answer is right if each of its tokens is the one that plain decode draws, or stands at a near-tie: its logit is
within NEAR_TIE of the best, or, where a number is drawn, its share of the probability within a hundredth of that.
That is the promise "identical, or first different where plain decode's top two logits are within 1e-3", and strict,
since what comes after such a place is judged too, by what then stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_qwen35.generation.request import Request
from mlx_qwen35.generation.sampling import Sampler
from mlx_qwen35.generation.start import make_caches
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window

# Rounding moves the logits of these networks by some 1e-6. In quantized caches it moves a number that stands between
# two codes by a whole step of its group, once in thousands of numbers, and that moves logits by more: with 8 bits by up
# to 0.024 in thousands of examples, and a step of 4 bits is 17 times as large. A token that is missing or doubled moves
# them by 1 and more.
NEAR_TIE = {16: 1e-3, 8: 5e-2, 4: 3e-1}


def plain_logits(model: Model, ids: Sequence[int], kv_bits: int = 16) -> mx.array:
    """Logits of every position of a text, [T, V]."""
    return model.logits(model.step([Window(mx.array(list(ids), mx.int32), make_caches(model, kv_bits))]))


def shortfall(model: Model, request: Request, answer: Sequence[int]) -> float:
    """How far the worst token of an answer stands behind the one that plain decode draws; 0 where it is the one."""
    if not answer:
        return 0.0
    prompt = mx.array(list(request.ids), mx.uint32)
    logits = plain_logits(model, [*request.ids, *answer[:-1]], request.kv_bits)[len(request.ids) - 1 :]
    sampler = _Replayed(request.sampling, request.known_tokens, request.seed, request.logit_bias)
    worst = 0.0
    for i, token in enumerate(answer):
        sampler(logits[i : i + 1], prompt, mx.array(list(answer[:i]), mx.uint32))
        worst = max(worst, sampler.behind[token].item())  # pyright: ignore
    return worst


def assert_plain(model: Model, request: Request, answer: Sequence[int]) -> None:
    """The answer, or its beginning, is what plain decode draws, up to near-ties."""
    assert shortfall(model, request, answer) <= NEAR_TIE[request.kv_bits]


class _Replayed(Sampler):
    """Keeps how far each token was from being drawn."""

    behind: mx.array  # [V]

    def drawn(self, logits: mx.array, lots: Sequence[float]) -> mx.array:
        found = super().drawn(logits, lots)
        if self.sampling.temperature == 0:
            self.behind = (logits.max() - logits)[0]
            return found
        # The token is drawn in whose share of the summed probabilities the lot falls.
        above = mx.cumsum(mx.softmax(self.filtered(logits)[0], axis=-1))
        below = mx.concatenate([mx.zeros(1), above[:-1]])
        self.behind = 100 * mx.maximum(0, mx.maximum(below - lots[0], lots[0] - above))
        # Up to the rounding of a sum over the vocabulary.
        assert self.behind[found].item() <= 1e-3, "this is not how tokens are drawn"  # pyright: ignore
        return found
