"""What is wrong with a request, said before it waits for a place."""

from __future__ import annotations

from mlx_qwen35.errors import RequestError, TooLongError
from mlx_qwen35.generation.request import Request
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.models.context import room
from mlx_qwen35.options import DRAFT_VALUES, KV_BITS, MOST_LOGPROBS, is_draft


def check(request: Request, config: ModelConfig) -> None:
    """Raises RequestError."""
    if not request.ids:
        raise RequestError("The prompt is empty; give at least one token.")
    if not 0 <= min(request.ids) <= max(request.ids) < config.vocab_size:
        raise RequestError(f"The prompt has an id outside the vocabulary (0 to {config.vocab_size - 1}).")
    context = config.max_context
    if len(request.ids) >= context:
        raise TooLongError(f"The prompt has {len(request.ids):,} tokens; {room(config)}.")
    if request.max_tokens < 1:
        raise RequestError(f"max_tokens is {request.max_tokens}; it should be at least 1.")
    if request.draft is not None and not is_draft(request.draft):
        raise RequestError(f"draft is {request.draft!r:.40}; it should be {DRAFT_VALUES}.")
    if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
        raise RequestError(f"logprobs is {request.logprobs}; it should be between 0 and {MOST_LOGPROBS}.")
    if request.kv_bits not in KV_BITS:
        raise RequestError(f"kv_bits is {request.kv_bits}; it should be 16, 8 or 4.")
