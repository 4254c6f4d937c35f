"""The fields that OpenAI's two older endpoints share, with their types, and what they mean to the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from mlx_qwen35.chat.events import Usage
from mlx_qwen35.options import Sampling
from mlx_qwen35.server.protocol import Json, Refused, Served

Count = Annotated[int, Meta(ge=1, le=1 << 31)]
FoldAt = Annotated[int, Meta(ge=1, le=1 << 31)]
Choices = Annotated[int, Meta(ge=1, le=16)]
Bias = Annotated[dict[str, float], Meta(max_length=4096)]
StopText = Annotated[str, Meta(max_length=1024)]
Stops = StopText | Annotated[list[StopText], Meta(max_length=16)]


class StreamOptions(Struct):
    include_usage: bool | None = None


class Hosted(Struct, kw_only=True):
    """Known, and without effect on a local model."""

    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class Shared(Hosted, kw_only=True):
    """What shapes an answer; null is as if left out."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: Count | None = None
    stop: Stops | None = None
    seed: int | None = None
    logit_bias: Bias | None = None
    n: Choices | None = None
    preset: str | None = None
    # Without effect, too.
    metadata: Any = None
    store: Any = None


def answer_options(body: Shared) -> dict[str, Any]:
    """The fields of a request to the runtime that both endpoints set in the same way, but for the seed."""
    sampling = {name: value for name in vars(Sampling()) if (value := getattr(body, name)) is not None}
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    return {
        "preset": body.preset,
        "sampling": sampling,
        "max_tokens": body.max_tokens,
        "stop": tuple(stops),
        "logit_bias": _bias(body.logit_bias or {}),
    }


def seeds(seed: int | None, count: int) -> list[int | None]:
    """One for each choice: the same request gives the same choices, which differ from each other."""
    return [None if seed is None else (seed + i) % (1 << 64) for i in range(count)]


def _bias(given: dict[str, float]) -> dict[int, float]:
    for token in given:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise Refused(400, f"logit_bias names {token!r:.40}; token ids are needed.", param="logit_bias")
    return {int(token): bias for token, bias in given.items()}


def refuse_unsupported(field: str, reason: str = "") -> Refused:
    """For what a later release obeys: never ignored where it would change the answer."""
    text = reason or "is not supported in this release"
    return Refused(400, f"{field} {text}.", param=field, code="unsupported_parameter")


def usage_json(served: Served, usages: Sequence[Usage], choices: int) -> Json:
    """Usage of one response: each prompt counts once, as the first of its choices found it.

    choices: for each prompt
    """
    firsts = usages[::choices]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    answer = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in firsts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)},
        "cache": served.cache(firsts),
        "drafts": {
            name: sum(getattr(usage, name) for usage in usages)
            for name in ("decode_steps", "drafted_tokens", "accepted_tokens")
        },
    }
