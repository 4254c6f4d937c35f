"""How far a quantized checkpoint is from its source: KL(source || quantized) over the known vocabulary, per token.

Both networks advance side by side, one layer at a time, so that a pair of any size can be scored in the memory of two
layers and the hidden states. Log-probabilities are float32, sums over tokens float64. The noise floor is the source
against itself with every text cut into two windows: what is below it, this machine's arithmetic cannot tell.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.convert.decoding import opened
from mlx_qwen35.convert.layerwise import EMBEDDING, NORM, LayerwiseModel, run
from mlx_qwen35.convert.rounded_model import RoundedModel
from mlx_qwen35.convert.texts import Batch, Tokens, batches
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.models.model import DecoderLayer

Contestant = LayerwiseModel | RoundedModel
Progress = Callable[[int, int], None]  # layers done, in all
POSITIONS = (16, 64, 256, 1024, 4096)  # where the classes of positions end
LOGITS = 64 << 20  # logits at once: a quarter of a gigabyte in float32
FLOOR_TOKENS = 4096  # about; two windows a text take longer than a batch, and a floor needs no more


@dataclass(frozen=True)
class Measure:
    """KL in nats over some tokens, and how often both networks' first choices are the same token.

    mean_error: the standard error of the mean, tokens taken as independent; a few of them may carry it
    """

    tokens: int
    mean: float
    mean_error: float
    median: float
    p95: float
    p99: float
    top1: float

    @staticmethod
    def of(kl: np.ndarray, same: np.ndarray) -> Measure:
        """kl: [N], float64   same: [N], bool"""
        median, p95, p99 = (float(q) for q in np.quantile(kl, (0.5, 0.95, 0.99)))
        mean, error = float(kl.mean()), float(kl.std() / np.sqrt(len(kl)))
        return Measure(len(kl), mean, error, median, p95, p99, float(same.mean()))


@dataclass(frozen=True)
class Comparison:
    """One quantized network against the source.

    layer_errors: |hidden - source's|^2 / |source's|^2 after each layer
    """

    overall: Measure
    by_domain: Mapping[str, Measure]
    by_position: Mapping[str, Measure]
    layer_errors: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """All contestants by name, and the source against itself."""

    comparisons: Mapping[str, Comparison]
    noise_floor: Measure


def eval_kl(
    source: Path | LayerwiseModel,
    contestants: Mapping[str, Path | Contestant],
    texts: Sequence[Tokens],
    progress: Progress | None = None,
) -> Evaluation:
    """Score contestants against `source` on `texts`, ids of the source's tokenizer.

    Folders may hold anything the converter reads, FP8 originals included.
    Raises ConfigError and CheckpointError, as loading would, and where a contestant is of another network.
    """
    reference = opened(source) if isinstance(source, Path) else source
    others = {n: opened(c) if isinstance(c, Path) else c for n, c in contestants.items()}
    for name, other in others.items():
        _check_alike(reference, other, name)
    given = list(batches(texts))
    streams = [_Stream(reference, given), *(_Stream(other, given) for other in others.values())]
    sampled = max(1, sum(batch.real.size for batch in given) // FLOOR_TOKENS)
    floor = streams[0].every(sampled, halved=True)
    paths = reference.layer_paths
    for i in range(len(paths)):
        layer = streams[0].advance(i)
        floor.advance(i, layer)
        reference.release(layer)
        for stream in streams[1:]:
            stream.model.release(stream.advance(i))
            stream.note_error(streams[0])
        if progress:
            progress(i + 1, len(paths))
    known = _known(reference)
    streams[0].prepare_head()
    floor.norm, floor.head = streams[0].norm, streams[0].head
    comparisons = {}
    for name, stream in zip(others, streams[1:]):
        stream.prepare_head()
        comparisons[name] = _compared(streams[0], stream, known)
        stream.model.release(stream.head)
    return Evaluation(comparisons, _compared(streams[0].every(sampled), floor, known).overall)


class _Stream:
    """One network's hidden states of every batch, [B, T, C], moving up layer by layer."""

    def __init__(self, model: Contestant, given: Sequence[Batch]) -> None:
        self.model, self.batches, self.halved = model, given, False
        self.layer_errors: list[float] = []
        self.norm: Any = None
        self.head: Any = None
        self.embedding: nn.Module = model.load(EMBEDDING)
        self.states = [self.embedding(mx.array(batch.ids)) for batch in given]
        mx.eval(self.states)
        if not model.config.tie_embeddings:
            model.release(self.embedding)

    def every(self, n: int, halved: bool = False) -> _Stream:
        """A stream of its own of every n-th batch, as far as this one is. halved: texts go on in two windows"""
        part = copy.copy(self)
        part.batches, part.states, part.halved = self.batches[::n], self.states[::n], halved
        return part

    def advance(self, i: int, loaded: DecoderLayer | None = None) -> DecoderLayer:
        """Through layer `i`, which is given or loaded; the caller releases it."""
        layer = loaded or self.model.layer(self.model.layer_paths[i])
        if self.halved:
            self.states = [self._in_two_windows(layer, i, x) for x in self.states]
        else:
            self.states = run(layer, self.states)
        return layer

    def _in_two_windows(self, layer: DecoderLayer, i: int, x: mx.array) -> mx.array:
        half = x.shape[1] // 2
        rows = []
        for b in range(x.shape[0]):  # caches hold one sequence each
            cache: Any = self.model.found.model.make_cache()[i]  # of a layer of the trunk, so none of the drafts'
            parts = [layer(part, cache) for part in (x[b : b + 1, :half], x[b : b + 1, half:]) if part.shape[1]]
            rows.append(mx.concatenate(parts, axis=1))
        y = mx.concatenate(rows)
        mx.eval(y)
        return y

    def note_error(self, source: _Stream) -> None:
        difference = size = 0.0
        for x, y, batch in zip(self.states, source.states, self.batches):
            real = mx.array(np.flatnonzero(batch.real))
            a, b = (s.reshape(-1, s.shape[-1])[real].astype(mx.float32) for s in (x, y))
            difference += float(np.array(((a - b) ** 2).sum()))
            size += float(np.array((b**2).sum()))
        self.layer_errors.append(difference / size)

    def prepare_head(self) -> None:
        self.norm = self.model.load(NORM)
        tied = self.model.config.tie_embeddings
        self.head = self.embedding if tied else self.model.load(self.model.head_path)

    def log_probabilities(self, rows: mx.array, known: int) -> mx.array:
        """rows: [N, C], before the final norm -> [N, known], float32"""
        normed = self.norm(rows)
        tied = self.model.config.tie_embeddings
        logits = (self.head.as_linear(normed) if tied else self.head(normed))[:, :known].astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _compared(source: _Stream, other: _Stream, known: int) -> Comparison:
    divergences, same = [], []
    for x, y, batch in zip(source.states, other.states, source.batches):
        real = np.flatnonzero(batch.real)
        step = max(1, LOGITS // known)
        for first in range(0, len(real), step):
            rows = mx.array(real[first : first + step])
            p, q = (
                stream.log_probabilities(states.reshape(-1, states.shape[-1])[rows], known)
                for stream, states in ((source, x), (other, y))
            )
            # Adding sum(q - p), which is zero, makes every term positive: nothing cancels where p and q are close.
            divergence = (mx.exp(p) * (p - q + mx.expm1(q - p))).sum(-1)
            agree = p.argmax(-1) == q.argmax(-1)
            mx.eval(divergence, agree)
            divergences.append(np.array(divergence, dtype=np.float64))
            same.append(np.array(agree))
            mx.clear_cache()
    kl, agrees = np.concatenate(divergences), np.concatenate(same)
    domains = np.concatenate([np.repeat(b.domains, b.real.sum(1)) for b in source.batches])
    places = np.concatenate([np.nonzero(b.real)[1] for b in source.batches])
    return Comparison(
        Measure.of(kl, agrees),
        {str(d): Measure.of(kl[domains == d], agrees[domains == d]) for d in sorted(set(domains))},
        _by_position(kl, agrees, places),
        tuple(other.layer_errors),
    )


def _by_position(kl: np.ndarray, same: np.ndarray, places: np.ndarray) -> dict[str, Measure]:
    found, start = {}, 0
    for end in (*POSITIONS, 1 << 62):
        inside = (places >= start) & (places < end)
        if inside.any():
            found[f"{start}-{end - 1}" if end < 1 << 62 else f"{start}-"] = Measure.of(kl[inside], same[inside])
        start = end
    return found


def _known(model: LayerwiseModel) -> int:
    """How many rows of the head mean something: the embedding is padded past the tokenizer's last id."""
    return min(Tokenizer.from_folder(model.found.files.folder).vocab_size, model.config.vocab_size)


def _check_alike(source: LayerwiseModel, other: Contestant, name: str) -> None:
    a, b = source.config, other.config
    if (a.vocab_size, a.layer_types, a.hidden_size) != (b.vocab_size, b.layer_types, b.hidden_size):
        raise CheckpointError(
            f"{name} is not of the same network as {source.found.files.folder}: {len(b.layer_types)} layers of "
            f"{b.hidden_size} with {b.vocab_size} tokens, against {len(a.layer_types)} of {a.hidden_size} with "
            f"{a.vocab_size}."
        )
