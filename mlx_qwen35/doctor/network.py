"""The network computed in two ways that should agree: by the engine with a feature on, and in one plain pass.

An answer is right if each of its tokens is the one a plain pass draws after what stands before it, or stands at a
near-tie: matrix products of other sizes round differently. That is the rule of the one-lane tests, with the width of a
near-tie in units of the last place of what this machine computes in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_qwen35.doctor.findings import NotHere, Wrong
from mlx_qwen35.generation.engine import Engine
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.request import Line, Request
from mlx_qwen35.generation.start import make_caches, start_engine
from mlx_qwen35.metal_kernels.operations import override
from mlx_qwen35.metal_kernels.selection import Selection
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window
from mlx_qwen35.options import GIB, CacheOptions

PROMPT, ANSWER, LONG = 150, 24, 2_048  # tokens
CACHE_BYTES = 2 * GIB
FLOAT32_TIE = 1e-3
ULPS = 4  # of the largest logit, in the dtype of activations
# Where two experts' scores nearly tie, rounding chooses another one, and that is a visible part of the result.
WITH_EXPERTS = 4
SAME_CHOICE = 0.9  # of tokens, with a KV cache in 8 bits; released sizes reach 0.99


@dataclass(frozen=True)
class Patient:
    """A loaded network, on the thread that owns MLX. known: ids below it have a token"""

    folder: Path
    model: Model
    thread: MLXThread
    known: int

    def prompt(self, number: int, length: int = PROMPT) -> list[int]:
        """Ids without a meaning, other ones for each number; every eighth stretch repeats, so that drafts find some."""
        return [(7919 * (number + 1) + 31 * (i % 40) + i // 40) % self.known for i in range(length)]


def weights(patient: Patient) -> str:
    """Every parameter is finite."""

    def look() -> str:
        parameters = tree_flatten(patient.model.parameters())
        assert isinstance(parameters, list)
        for name, parameter in parameters:
            if mx.issubdtype(parameter.dtype, mx.floating) and not mx.isfinite(parameter).all().item():
                raise Wrong(f"{name} holds NaN or infinity: the file is damaged, or was converted wrongly.")
        return f"{len(parameters):,} parameters are finite"

    return patient.thread.call(look)


def kernels(patient: Patient) -> str:
    """What is chosen here against the definitions, on this network: a prefill, decoding, and a window of drafts."""
    from mlx_qwen35.counting.check import compare_kernels

    rejected: list[str] = []
    chosen = Selection(override("auto"), None, rejected.append)
    error, bound = patient.thread.call(lambda: compare_kernels(patient.model, chosen))
    if rejected:
        raise Wrong("; ".join(rejected))
    if not error < bound:
        raise Wrong(f"Logits differ from the definitions' by {error:.1e} of the largest one.")
    names = sorted({f"{key.split()[0]}={c.name}" for key, c in chosen.chosen().items()})
    return f"{', '.join(names) or 'the fast forms, none of Metal'}; logits differ by {error:.1e} of the largest one"


def finite(patient: Patient) -> str:
    """Logits over a long prompt."""

    def look() -> str:
        logits = plain_logits(patient.model, patient.prompt(9, LONG))
        if not mx.isfinite(logits).all().item():
            raise Wrong("Logits are NaN or infinite.")
        spread = (logits.max(axis=-1) - logits.min(axis=-1)).min().item()
        if not spread > 0:  # pyright: ignore[reportOperatorIssue]
            raise Wrong("Some logits are all the same.")
        return f"{LONG:,} tokens"

    return patient.thread.call(look)


def chunked(patient: Patient) -> str:
    """A prompt in one window against the same, token by token."""

    def look() -> str:
        ids = mx.array(patient.prompt(1), mx.int32)
        cache, rows = make_caches(patient.model, 16), []
        for i in range(len(ids)):
            rows.append(patient.model.logits(patient.model.step([Window(ids[i : i + 1], cache)])))
            mx.eval(rows[-1])
        found, wanted = mx.concatenate(rows), plain_logits(patient.model, ids.tolist())  # pyright: ignore
        error = (mx.abs(found - wanted).max() / mx.abs(wanted).max()).item()
        if not error < _tie(patient.model, wanted) / mx.abs(wanted).max().item():  # pyright: ignore
            raise Wrong(f"They differ by {error:.1e} of the largest logit.")
        return f"differ by {error:.1e} of the largest logit"

    return patient.thread.call(look)


def batch(patient: Patient) -> str:
    """Four answers at once, against a plain pass each."""
    with engine(patient, draft="off") as running:
        prompts = [patient.prompt(i, PROMPT - 7 * i) for i in range(4)]
        lines = [running.submit(_request(patient, ids)) for ids in prompts]
        answers = [tokens_of(line) for line in lines]
    return _judged(patient, zip(prompts, answers))


def drafts(patient: Patient) -> str:
    """Three tokens guessed ahead."""
    if not patient.model.config.mtp_layers:
        raise NotHere("the checkpoint has no MTP layer")
    with engine(patient, draft=3) as running:
        line = running.submit(_request(patient, ids := patient.prompt(1)))
        answer = tokens_of(line)
    told = _judged(patient, [(ids, answer)])
    return f"{told}; {line.decoded.accepted} of {line.decoded.drafted} drafts stayed"


def restored(patient: Patient) -> str:
    """A prompt that goes on from an earlier one, remembered in memory, then on disk by the next engine."""
    first = patient.prompt(2)
    longer = [*first, *patient.prompt(3, 40)]
    with tempfile.TemporaryDirectory(prefix="mlx-qwen35-doctor-") as folder:
        notes = []
        for place, warm in (("memory", True), ("disk", False)):
            with engine(patient, prefix_bytes=GIB, disk=Path(folder), draft="off") as running:
                if warm:
                    tokens_of(running.submit(_request(patient, first)))
                line = running.submit(_request(patient, longer))
                answer = tokens_of(line)
            if not line.reuse.cached:
                raise Wrong(f"Nothing was reused from {place}.")
            _judged(patient, [(longer, answer)])
            notes.append(f"{line.reuse.cached} of {len(longer)} tokens from {place}")
    return ", ".join(notes)


def quantized_kv(patient: Patient) -> str:
    """The most likely next token with keys and values in 8 bits, against 16."""

    def look() -> str:
        ids = patient.prompt(4, 4 * PROMPT)
        plain, coarse = (mx.argmax(plain_logits(patient.model, ids, bits), axis=-1) for bits in (16, 8))
        same = (plain == coarse).astype(mx.float32).mean().item()
        if not same >= SAME_CHOICE:  # pyright: ignore[reportOperatorIssue]
            raise Wrong(f"Only {same:.1%} of the tokens are the same.")
        return f"{same:.1%} of the tokens are the same"

    return patient.thread.call(look)


def plain_logits(model: Model, ids: list[int], kv_bits: int = 16) -> mx.array:
    """Logits of every position of a text, [T, V], in one pass: no engine, no store."""
    hidden = model.step([Window(mx.array(ids, mx.int32), make_caches(model, kv_bits))])
    return model.logits(hidden).astype(mx.float32)


@contextmanager
def engine(patient: Patient, draft: str | int, prefix_bytes: int = 0, disk: Path | None = None) -> Iterator[Engine]:
    options = CacheOptions(prefix_bytes=prefix_bytes, disk=disk, draft=draft)
    warned: list[str] = []
    made = patient.thread.call(
        lambda: start_engine(patient.model, patient.thread, patient.folder, CACHE_BYTES, options, warned.append)
    )
    try:
        yield made
    finally:
        made.close()


def tokens_of(line: Line) -> list[int]:
    return [item for item in line if isinstance(item, int)]


def _request(patient: Patient, ids: Sequence[int]) -> Request:
    return Request(ids, patient.known, ANSWER, checkpoints=(len(ids) - 1,))


def _judged(patient: Patient, answers: Iterator[tuple[list[int], list[int]]] | Sequence) -> str:
    """By the rule at the top. Raises Wrong."""
    worst, count = 0.0, 0
    for ids, answer in answers:
        if len(answer) != ANSWER:
            raise Wrong(f"An answer has {len(answer)} tokens in place of {ANSWER}.")
        short, bound = patient.thread.call(lambda: _shortfall(patient, ids, answer))  # noqa: B023 (called at once)
        if not short <= bound:
            raise Wrong(f"A token is {short:.2g} behind the one that plain decoding draws; a near-tie is {bound:.2g}.")
        worst, count = max(worst, short), count + len(answer)
    return f"{count} tokens, the worst {worst:.1g} behind plain decoding's" if worst else f"{count} tokens, all equal"


def _shortfall(patient: Patient, ids: Sequence[int], answer: Sequence[int]) -> tuple[float, float]:
    """How far the worst token is behind the best, and how far a near-tie may be."""
    logits = plain_logits(patient.model, [*ids, *answer[:-1]])[len(ids) - 1 :, : patient.known]
    taken = mx.take_along_axis(logits, mx.array(list(answer))[:, None], axis=-1)[:, 0]
    return (logits.max(axis=-1) - taken).max().item(), _tie(patient.model, logits)  # pyright: ignore


def _tie(model: Model, logits: mx.array) -> float:
    dtype = model.embed(mx.zeros(1, mx.int32)).dtype  # of the residual stream, and so of the hidden states
    if dtype == mx.float32:
        return FLOAT32_TIE
    more = WITH_EXPERTS if model.config.experts else 1
    return max(FLOAT32_TIE, more * ULPS * mx.finfo(dtype).eps * mx.abs(logits).max().item())  # pyright: ignore
