"""`/metrics` for Prometheus: what the engine counts, and what the server does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlx_qwen35.generation.stats import Stats

# name of the engine's number -> (metric, kind, what it says)
ENGINE = {
    "rows": ("answers_running", "gauge", "Answers in the batch."),
    "waiting": ("answers_waiting", "gauge", "Answers that wait for a place in the batch."),
    "requests": ("answers_total", "counter", "Answers begun since the start."),
    "prompt_tokens": ("prompt_tokens_total", "counter", "Prompt tokens of them."),
    "cached_tokens": ("cached_tokens_total", "counter", "Prompt tokens that were not computed again."),
    "answer_tokens": ("answer_tokens_total", "counter", "Tokens generated."),
    "drafted_tokens": ("drafted_tokens_total", "counter", "Tokens guessed ahead."),
    "accepted_tokens": ("accepted_tokens_total", "counter", "Tokens guessed ahead that stayed."),
    "ahead_tokens": ("read_ahead_tokens_total", "counter", "Tokens of next prompts computed while nobody asked."),
    "ahead_used_tokens": ("read_ahead_used_tokens_total", "counter", "Those of them that a prompt began with."),
    "tokens_per_step": ("tokens_per_draft_step", "gauge", "What an answer got of a step with drafts, since the start."),
    "set_aside": ("set_aside_total", "counter", "Answers that gave up their place and read their text again."),
    "evictions": ("evictions_total", "counter", "Remembered texts that made room."),
    "queue_seconds": ("queue_seconds", "gauge", "Mean wait of the last answers for a place."),
    "prefill_speed": ("prefill_tokens_per_second", "gauge", "Speed of the last steps."),
    "decode_speed": ("decode_tokens_per_second", "gauge", "Speed of the last steps."),
    "batch": ("batch", "gauge", "Answers in the last decode steps, on average."),
    "live_bytes": ("live_cache_bytes", "gauge", "Caches of running answers."),
    "prefix_bytes": ("prefix_cache_bytes", "gauge", "Remembered texts in memory."),
    "active_bytes": ("active_memory_bytes", "gauge", "Memory of MLX."),
    "peak_bytes": ("peak_memory_bytes", "gauge", "The most it ever was."),
}


@dataclass
class Tally:
    """Responses by path and status. Paths are those of endpoints, never what a client sent."""

    responses: Counter[tuple[str, int]] = field(default_factory=Counter)

    def count(self, path: str, status: int) -> None:
        self.responses[path, status] += 1


def exposition(stats: Stats, tally: Tally, open_answers: int) -> str:
    """The text that Prometheus reads."""
    return "\n".join(_lines(stats, tally, open_answers)) + "\n"


def _lines(stats: Stats, tally: Tally, open_answers: int) -> Iterator[str]:
    for name, (metric, kind, says) in ENGINE.items():
        yield from _head(metric, kind, says)
        yield (
            f"mlx_qwen35_{metric} {getattr(stats, name):g}"
            if kind == "gauge"
            else (f"mlx_qwen35_{metric} {getattr(stats, name)}")
        )
    yield from _head("open_answers", "gauge", "Answers that the server owes, running or waiting.")
    yield f"mlx_qwen35_open_answers {open_answers}"
    yield from _head("http_responses_total", "counter", "Responses by endpoint and status; 499 for clients that left.")
    for (path, status), count in sorted(tally.responses.items()):
        yield f'mlx_qwen35_http_responses_total{{path="{path}",status="{status}"}} {count}'


def _head(metric: str, kind: str, says: str) -> Iterator[str]:
    yield f"# HELP mlx_qwen35_{metric} {says}"
    yield f"# TYPE mlx_qwen35_{metric} {kind}"
