"""Which drafted tokens stay: those that plain decoding would have drawn. Pure; knows no sequence and no cache.

A draft may only change when a token is found, never which. So each position of a window is drawn as plain decode draws
it: from the trunk's own logits, by the answer's own sampler, with the number that this position has in the answer's
sequence of random numbers. A draft is accepted where it is that very token, and from the first one that is not, what
was drawn stands in its place.

This is rejection sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318) with the uniform number
shared between draft, test and residual: what comes out has the trunk's distribution, and more than there, with a seed
it is the same text as without drafts. Drafts are drawn by the same sampler with the same numbers, so that where draft
and trunk agree on the probabilities they agree on the token.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_qwen35.generation.sampling import Place, Sampler


def places(sampler: Sampler, prompt: mx.array, answer: mx.array, drafts: mx.array | None, depth: int) -> list[Place]:
    """Where the tokens after a window are drawn: after its first token, and after each of its drafts.

    prompt, answer: ids so far, [n] each   drafts: [depth]; penalties see those before a place
    """
    lots = sampler.lots(depth + 1)
    if drafts is None or not sampler.counts_tokens:
        return [Place(sampler, prompt, answer, lot) for lot in lots]
    told = drafts.astype(mx.uint32)
    return [Place(sampler, prompt, mx.concatenate([answer, told[:i]]), lot) for i, lot in enumerate(lots)]


def accepted(drafts: Sequence[int], drawn: Sequence[int]) -> int:
    """How many drafts stay.   drawn: [drafts + 1], drawn after the window's first token and after each draft"""
    return next((i for i, (draft, token) in enumerate(zip(drafts, drawn)) if draft != token), len(drafts))
