"""Prefill and decode of one sequence. Token ids in, token ids out; knows nothing of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.errors import CheckpointError, RequestError
from mlx_qwen35.generation.sampling import Sampler
from mlx_qwen35.hub.memory import prefill_window
from mlx_qwen35.models.model import Model

CLEAR_EVERY = 256  # tokens; how often freed buffers go back to the system, since caches outgrow them

Progress = Callable[[int, int], None]  # prompt tokens done, in all


def generate(
    model: Model,
    prompt: Sequence[int],
    sampler: Sampler,
    max_tokens: int,
    progress: Progress | None = None,
) -> Iterator[int]:
    """Yield up to `max_tokens` ids after `prompt`. It does not stop by itself: the caller knows the stop ids.

    Raises RequestError for an empty prompt or one that leaves no room in the context, and CheckpointError when the
    network's numbers are not finite.
    """
    room = model.config.max_context - len(prompt)
    if not prompt:
        raise RequestError("The prompt is empty; give at least one token.")
    if room < 1:
        raise RequestError(
            f"The prompt has {len(prompt)} tokens; this model's context holds {model.config.max_context}, "
            "the answer included."
        )
    cache = model.make_cache()
    logits = prefill(model, prompt, cache, progress)
    prompt_ids = mx.array(list(prompt))
    answer = mx.zeros(0, mx.uint32)
    token = sampler(logits, prompt_ids, answer)
    finite = mx.isfinite(logits.max())
    mx.async_eval(token, finite)
    for i in range(min(max_tokens, room)):
        following = None
        if i + 1 < min(max_tokens, room):
            # The next step is queued before this token is read, so that the device never waits for Python.
            answer = mx.concatenate([answer, token[None].astype(mx.uint32)])
            logits = model(token[None, None], cache)[0, -1]
            following = sampler(logits, prompt_ids, answer), mx.isfinite(logits.max())
            mx.async_eval(*following, answer)
        if not finite.item():
            raise CheckpointError(
                f"The network's output is not finite after {len(prompt) + i} tokens; the checkpoint is damaged or its "
                "quantization too coarse. Try another conversion of it."
            )
        drawn = token.item()
        assert isinstance(drawn, int)
        yield drawn
        if following is None:
            return
        token, finite = following
        if i % CLEAR_EVERY == CLEAR_EVERY - 1:
            mx.clear_cache()


def prefill(
    model: Model, prompt: Sequence[int], cache: list[KVCache | DeltaState], progress: Progress | None = None
) -> mx.array:
    """Run `prompt` through the network window by window; return the last position's logits, [V]."""
    ids = mx.array(list(prompt))[None]
    total = ids.shape[1]
    window = prefill_window(model.config.num_heads, total)
    hidden = None
    for start in range(0, total, window):
        hidden = model.hidden_states(ids[:, start : start + window], cache)
        mx.eval(hidden, [c.state for c in cache])
        # Windows differ in size, so their freed buffers fit nothing that comes after.
        mx.clear_cache()
        if progress:
            progress(min(start + window, total), total)
    assert hidden is not None
    return model.logits(hidden[:, -1])[0]
