"""Every kernel a checkpoint needs, checked and timed on this Mac, and what was chosen. For `kernels --check` and CI."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from mlx_qwen35.errors import UserError
from mlx_qwen35.metal_kernels.operations import override, using
from mlx_qwen35.metal_kernels.selection import Selection
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from mlx_qwen35.models.windows import Window, commit

PROMPT, ANSWER, DRAFT = 70, 4, 4
# Two implementations round differently; a wrong one is far beyond it. Where routing is a near-tie, as it is with random
# weights, rounding changes an expert, and that is a visible part of the result.
TOLERANCE, WITH_EXPERTS = 0.05, 0.5


def check_kernels(folder: Path) -> list[str]:
    """Run the checkpoint once with the definitions and once with what is chosen afresh; lines of what was chosen.

    Raises UserError, naming every kernel that was rejected, or where the two runs disagree.
    """
    if not mx.metal.is_available():
        raise UserError("kernels --check needs Metal, which this machine does not have; make test emulates it.")
    return check_model(load_model(folder).model)


def check_model(model: Model) -> list[str]:
    """The same for a network that is loaded."""
    rejected: list[str] = []
    chosen = Selection(override("auto"), None, rejected.append)
    error, bound = compare_kernels(model, chosen)
    if rejected:
        raise UserError("; ".join(rejected))
    if not error < bound:  # NaN is not
        raise UserError(f"The kernels' logits differ from the definitions' by {error:.1e} of the largest one.")
    lines = [f"{key}: {candidate.name}" for key, candidate in sorted(chosen.chosen().items())]
    return [*lines, f"logits differ by {error:.1e} of the largest one"]


def compare_kernels(model: Model, chosen: Selection) -> tuple[float, float]:
    """How far the logits with what `chosen` chooses are from the definitions', as a part of the largest one, and how
    far they may be.
    """
    with using(chosen):
        found = _logits(model)
    with using(Selection(override("reference"))):
        wanted = _logits(model)
    error = float(mx.abs(found - wanted).max() / mx.abs(wanted).max())
    return error, WITH_EXPERTS if model.config.experts else TOLERANCE


def _logits(model: Model) -> mx.array:
    """Of a prefill, of decoded tokens and of a window of drafts, half of which stay. The tokens are fixed.   [N, V]"""
    cache, ids = model.make_cache(), mx.arange(PROMPT + ANSWER + DRAFT + 1) % model.config.vocab_size
    kept = [model.step([Window(ids[:PROMPT], cache)])[-1:]]
    for t in range(PROMPT, PROMPT + ANSWER):
        kept.append(model.step([Window(ids[t : t + 1], cache)]))
    end = PROMPT + ANSWER
    kept.append(model.step([Window(ids[end : end + DRAFT], cache, draft=True)]))
    commit(cache, DRAFT, DRAFT // 2)
    kept.append(model.step([Window(ids[-1:], cache)]))
    logits = model.logits(mx.concatenate(kept)).astype(mx.float32)
    mx.eval(logits)
    return logits
