"""The operations the network calls by name, each with its candidates. Which one runs is selection.py's to decide.

`MLX_QWEN35_KERNELS=reference` takes the definitions, `auto` measures (the default), `name=candidate,...` fixes some.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_qwen35.metal_kernels import attention_prologue as prologue
from mlx_qwen35.metal_kernels import delta_chunk, delta_rule, delta_step_mx, rms_norm, router
from mlx_qwen35.metal_kernels import delta_step as delta_step_kernel
from mlx_qwen35.metal_kernels import expert_mlp as expert_mlp_kernel
from mlx_qwen35.metal_kernels.attention_prologue import Heads
from mlx_qwen35.metal_kernels.choices import ChoiceFile, choices_file, this_machine
from mlx_qwen35.metal_kernels.delta_rows import Columns, DeltaMemory, DeltaWeights, Projected, Stepped, StepRows
from mlx_qwen35.metal_kernels.expert_weights import ExpertWeights
from mlx_qwen35.metal_kernels.override import REFERENCE, VARIABLE, Override, parse_override
from mlx_qwen35.metal_kernels.selection import Candidate, Operation, Selection, seeded


def _delta_example(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array | None
) -> tuple[Any, ...]:
    """Keys of unit length, decays and rates as the network has them: other values let the state grow without bound."""
    q, k, v, log_decay, beta, state = seeded(q, k, v, log_decay, beta, state)
    q, k = (x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    return q, k, v, -0.1 * mx.abs(log_decay), mx.sigmoid(beta), state


def _one_dtype(x: mx.array, residual: mx.array, *_: Any) -> bool:
    return x.dtype == residual.dtype and x.shape[-1] >= rms_norm.SMALLEST


ADD_RMS_NORM = Operation(
    "add_rms_norm",
    (
        Candidate(REFERENCE, rms_norm.add_rms_norm_reference),
        Candidate("mx.fast", rms_norm.add_rms_norm),
        Candidate("metal", rms_norm.add_rms_norm_metal, True, _one_dtype),
    ),
)
# More threadgroups a head fill a large chip where there are few heads. Each of them reads q and k of a long window; in
# a short one the norm then takes a launch of its own.
GATED_DELTA = Operation(
    "gated_delta",
    (
        Candidate(REFERENCE, delta_rule.gated_delta_stepwise),
        Candidate("fast", delta_rule.gated_delta),
        Candidate("mx.fast", delta_rule.gated_delta_mx, True, lambda q, *_: q.shape[-1] % 32 == 0),
        *(
            Candidate(name, partial(delta_chunk.delta_chunk, splits=n), True, partial(delta_chunk.fits, n))
            for name, n in (("metal-1", 1), ("metal-4", 4), ("metal", 2))
        ),
    ),
    example=_delta_example,
)
DELTA_STEP = Operation(
    "delta_step",
    (
        Candidate(REFERENCE, delta_step_kernel.delta_step_reference),
        Candidate("fast", delta_step_mx.delta_step_mx),
        Candidate("mx.fast", delta_step_mx.delta_step_mx_fast, True, lambda _, weights, *__: weights.Dk % 32 == 0),
        *(
            Candidate(name, partial(delta_step_kernel.delta_step, splits=n), True, partial(delta_step_kernel.fits, n))
            for name, n in (("metal-4", 4), ("metal-2", 2), ("metal", 1))
        ),
    ),
    example=delta_step_mx.step_example,
    shape_class=delta_step_mx.step_class,
)
ATTENTION_PROLOGUE = Operation(
    "attention_prologue",
    (
        Candidate(REFERENCE, prologue.attention_prologue_reference),
        Candidate("mx.fast", prologue.attention_prologue),
        Candidate("metal", prologue.attention_prologue_metal, True, prologue.fits),
    ),
    example=prologue.example,
    shape_class=prologue.shape_class,
)
# Arguments: two ways to make the logits of one step, and what they are for; models/activations.py. The largest logit
# moves by some hundredths between the two dtypes, more where rounding makes a router choose another expert; what has
# overflowed is infinite or nothing alike.
ACTIVATIONS = Operation(
    "activations",
    (
        Candidate(REFERENCE, lambda stored, *_: stored()),
        Candidate("stored", lambda stored, *_: stored()),
        Candidate("float16", lambda _, half, *__: half(), True),
    ),
    example=lambda *arguments: arguments,
    shape_class=lambda *arguments: arguments[-1],
    tolerance={mx.float32: 0.25},
)
ROUTE = Operation(
    "route",
    (
        Candidate(REFERENCE, router.route_reference),
        Candidate("fast", router.route),
        Candidate("metal", router.route_metal, True, router.fits),
    ),
    example=router.route_example,
    shape_class=router.route_class,
)
# Small threadgroups are more of them: of large ones, the second launch has 64 at 35B-A3B, for up to 80 cores.
EXPERT_MLP = Operation(
    "expert_mlp",
    (
        Candidate(REFERENCE, expert_mlp_kernel.expert_mlp_reference),
        Candidate("fast", expert_mlp_kernel.expert_mlp),
        *(
            Candidate(name, partial(expert_mlp_kernel.expert_mlp_metal, simdgroups=n), True, expert_mlp_kernel.fits)
            for name, n in (("metal-2", 2), ("metal", expert_mlp_kernel.SIMDGROUPS))
        ),
    ),
    example=expert_mlp_kernel.experts_example,
    shape_class=expert_mlp_kernel.experts_class,
)
OPERATIONS = (ADD_RMS_NORM, GATED_DELTA, DELTA_STEP, ATTENTION_PROLOGUE, ROUTE, EXPERT_MLP, ACTIVATIONS)


def add_rms_norm(x: mx.array, residual: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """The sum, and its norm. Shapes as in `rms_norm.add_rms_norm_reference`."""
    return selection().run(ADD_RMS_NORM, (x, residual, weight, eps))


def gated_delta(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array | None
) -> tuple[mx.array, mx.array]:
    """The gated delta rule over a window of any length. Shapes as in `delta_rule.gated_delta`."""
    return selection().run(GATED_DELTA, (q, k, v, log_decay, beta, state))


def delta_step(
    projected: Projected, weights: DeltaWeights, memory: DeltaMemory, rows: StepRows, draft: bool
) -> Stepped:
    """A DeltaNet layer between its projections, for short windows. Shapes as in `delta_step.delta_step_reference`."""
    return selection().run(DELTA_STEP, (projected, weights, memory, rows, draft))


def attention_prologue(q: Columns, k: Columns, heads: Heads, angles: mx.array) -> tuple[mx.array, mx.array]:
    """Queries and keys, normed and rotated. Shapes as in `attention_prologue.attention_prologue_reference`."""
    return selection().run(ATTENTION_PROLOGUE, (q, k, heads, angles))


def route(logits: mx.array, experts: int, chosen: int) -> tuple[mx.array, mx.array]:
    """A token's experts, largest first, and their weights. Shapes as in `router.route_reference`."""
    return selection().run(ROUTE, (logits, experts, chosen))


def expert_mlp(x: mx.array, chosen: mx.array, weights: mx.array, experts: ExpertWeights) -> mx.array:
    """The experts' feed-forward of a few tokens. Shapes as in `expert_mlp.expert_mlp_reference`."""
    return selection().run(EXPERT_MLP, (x, chosen, weights, experts))


_selections: list[Selection] = []


def selection() -> Selection:
    """The process's own, made on first use. Raises ConfigError where the environment asks for what there is not."""
    if not _selections:
        _selections.append(Selection(override(), ChoiceFile(choices_file(), this_machine)))
    return _selections[-1]


def override(text: str | None = None) -> Override:
    """What `text`, or else the environment, asks for."""
    known = {o.name: [c.name for c in o.candidates] for o in OPERATIONS}
    return parse_override(os.environ.get(VARIABLE, "") if text is None else text, known)


@contextlib.contextmanager
def using(other: Selection) -> Iterator[Selection]:
    """Inside, `other` chooses."""
    before = list(_selections)
    _selections.append(other)
    try:
        yield other
    finally:
        _selections[:] = before
