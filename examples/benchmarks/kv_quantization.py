"""What quantized keys and values cost in quality: the demo model's evaluation, read through each format of the cache.

    python -m examples.benchmarks.kv_quantization [--count 24] [--window 1]

The plain cache answers every prompt at temperature 0. Then each format reads the prompt and that answer, and at every
token of the answer its distribution is compared with the plain cache's: is the first choice the same (top-1), how far
are the two apart (KL divergence, in nats). Where all first choices of an answer agree, the format would have generated
the very same answer, so the share of those is the share of equal answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from examples.benchmarks.measure import print_conditions, print_table
from examples.demo_model.encoding import encode, tokenizer
from examples.demo_model.evaluate import LONGEST_ANSWER
from examples.demo_model.mixture import EVALUATIONS, evaluation_set
from examples.demo_model.samples import CHECKPOINT
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.caches.quantized_kv import QuantizedKVCache
from mlx_qwen35.caches.rows import SequenceKV, attention_layers
from mlx_qwen35.generation.cache_format import CacheSizes, one_token
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model


@dataclass(frozen=True)
class Format:
    """bar: the least top-1 agreement, in percent, of a format on offer"""

    name: str
    make: Callable[[], SequenceKV]
    bar: float | None = None


FORMATS = (
    Format("8 bits", lambda: QuantizedKVCache(8), 99.5),
    Format("4 bits", lambda: QuantizedKVCache(4), 98.0),
    Format("4 bits, keys not rotated", lambda: QuantizedKVCache(4, rotate_keys=False)),
)


@dataclass(frozen=True)
class Answered:
    """A prompt, what the plain cache answered, and the distributions it was drawn from: log-probabilities [T, V]."""

    prompt: list[int]
    answer: list[int]
    log_probs: mx.array


@dataclass(frozen=True)
class Comparison:
    """One format against the plain cache, over the tokens of all answers."""

    agrees: np.ndarray  # of each token: the same first choice?
    divergence: np.ndarray  # of each token, in nats
    equal_answers: int
    answers: int

    @property
    def top1(self) -> float:
        return 100 * float(self.agrees.mean())


def read_answer(
    model: Model,
    make: Callable[[], SequenceKV],
    prompt: Sequence[int],
    answer: Sequence[int],
    window: int | None = None,
) -> mx.array:
    """Log-probabilities [T, V] at each token of `answer`.

    window: tokens of it that are read at a time, the first ones together with the prompt; None for all at once
    """
    caches = model.make_cache(make)
    steps = window or len(answer)
    hidden = [model.hidden_states(mx.array([[*prompt, *answer[: steps - 1]]]), caches)[:, len(prompt) - 1 :]]
    for start in range(steps - 1, len(answer) - 1, steps):
        hidden.append(model.hidden_states(mx.array([answer[start : min(start + steps, len(answer) - 1)]]), caches))
        mx.eval(hidden[-1])
    logits = model.logits(mx.concatenate(hidden, axis=1))[0].astype(mx.float32)
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(log_probs)
    return log_probs


def greedy_answer(model: Model, prompt: list[int], wanted: list[int]) -> list[int]:
    """What the plain cache answers. As far as that is the wanted answer, one pass over it tells."""
    choices = np.array(read_answer(model, KVCache, prompt, wanted).argmax(-1))
    different = np.flatnonzero(choices != np.array(wanted))
    if not len(different):
        return wanted
    agreed = int(different[0])
    return _continued(model, prompt, [*wanted[:agreed], int(choices[agreed])])


def _continued(model: Model, prompt: list[int], answer: list[int]) -> list[int]:
    end, cache = tokenizer().token_to_id("<|im_end|>"), model.make_cache()
    window = [*prompt, *answer]
    while answer[-1] != end and len(answer) < LONGEST_ANSWER:
        token = model(mx.array([window]), cache)[0, -1].argmax().item()
        assert isinstance(token, int)
        answer, window = [*answer, token], [token]
    return answer


def answered(model: Model, count: int, skills: Iterable[str] = EVALUATIONS) -> list[Answered]:
    """The evaluation's first `count` prompts of each skill, answered with the plain cache."""
    found = []
    for encoded in (encode(sample) for name in skills for sample in evaluation_set(name, count)):
        answer = greedy_answer(model, encoded.prompt, encoded.completion)
        found.append(Answered(encoded.prompt, answer, read_answer(model, KVCache, encoded.prompt, answer)))
    return found


def compare(
    model: Model, make: Callable[[], SequenceKV], cases: Sequence[Answered], window: int | None = None
) -> Comparison:
    agrees, divergence, equal = [], [], 0
    for case in cases:
        ours = read_answer(model, make, case.prompt, case.answer, window)
        same = ours.argmax(-1) == case.log_probs.argmax(-1)
        apart = (mx.exp(case.log_probs) * (case.log_probs - ours)).sum(-1)
        agrees.append(np.array(same))
        divergence.append(np.array(apart))
        equal += bool(same.all())
    return Comparison(np.concatenate(agrees), np.concatenate(divergence), equal, len(cases))


def bits_per_number(model: Model, make: Callable[[], SequenceKV]) -> float:
    cache = one_token(model, lambda: model.make_cache(make))
    numbers = len(attention_layers(cache)) * 2 * model.config.num_kv_heads * model.config.head_dim
    return 8 * CacheSizes.of(cache).token / numbers


def row(kind: Format, found: Comparison, bits: float) -> tuple[str, ...]:
    bar = "" if kind.bar is None else f"{kind.bar} % {'held' if found.top1 >= kind.bar else 'MISSED'}"
    return (
        kind.name,
        f"{bits:.1f}",
        f"{found.top1:.2f} %",
        bar,
        f"{found.equal_answers} of {found.answers}",
        f"{found.divergence.mean():.1e}",
        f"{np.quantile(found.divergence, 0.99):.1e}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=24, help="prompts per skill (default 24)")
    parser.add_argument("--window", type=int, help="answer tokens read at a time (default all; 1 is how decode reads)")
    args = parser.parse_args()
    print_conditions("examples.benchmarks.kv_quantization")
    model = load_model(args.checkpoint).model
    cases = answered(model, args.count)
    print(f"{len(cases)} prompts, {sum(len(case.answer) for case in cases):,} answer tokens")
    found = [compare(model, kind.make, cases, args.window) for kind in FORMATS]
    head = ("keys and values", "bits a number", "top-1", "bar", "answers equal", "KL mean", "KL p99")
    print_table(
        head, [row(kind, comparison, bits_per_number(model, kind.make)) for kind, comparison in zip(FORMATS, found)]
    )
    if any(kind.bar is not None and comparison.top1 < kind.bar for kind, comparison in zip(FORMATS, found)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
