"""Projections of one input as one matrix: one matmul in place of two to four, joined when a layer has been loaded.

A class names those that share an input in `JOINED`; of these, the ones that are stored alike are joined. Checkpoints,
and all that is done before loading, know nothing of it; what reads a projection's output asks `project` for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.metal_kernels.delta_rows import Columns

# MLX's fast product of a vector and a packed matrix takes only rows in whole eights, and the router's 257th would
# move it to the slower one. Seven more rows cost less, and the routing kernel needs eight columns anyway.
ROWS = 8


class Joined(nn.Module):
    """The matrix of several projections: rows of one after those of another, zeros up to whole eights."""

    def __init__(self, names: Sequence[str], projections: Sequence[nn.Module]) -> None:
        """projections: alike; the first one becomes the joined one. Nothing is evaluated."""
        super().__init__()
        rows = [p["weight"].shape[0] for p in projections]
        # Where each one's outputs begin. Pairs: a dictionary would be taken for one of parameters.
        self.columns = tuple((name, sum(rows[:i])) for i, name in enumerate(names))
        self.matrix = projections[0]
        for part in _arrays(self.matrix):
            stored = [p[part] for p in projections]
            more = mx.zeros((-sum(rows) % ROWS, stored[0].shape[1]), stored[0].dtype)
            self.matrix[part] = mx.concatenate([*stored, more])


def project(owner: nn.Module, names: Sequence[str], x: mx.array) -> list[Columns]:
    """Outputs of the projections `names` of `owner`, which are called on x: [..., C] flattened to [N, C].

    Those that loading has joined are columns of one product, with other columns beside them; see `Columns`.
    """
    rows, made = x if x.ndim == 2 else x.reshape(-1, x.shape[-1]), {}
    for joined in owner.get("joined", ()):
        product = joined["matrix"](rows)
        for name, first in joined["columns"]:
            made[name] = Columns(product, first)
    return [made.get(name) or Columns(owner[name](rows)) for name in names]


def stored(owner: nn.Module, name: str) -> tuple[nn.Module, int]:
    """The matrix that holds a projection's rows, its own or a joined one, and the first of them there."""
    for joined in owner.get("joined", ()):
        for other, first in joined.columns:
            if other == name:
                return joined.matrix, first
    return owner[name], 0


def join(part: nn.Module) -> None:
    """Join what is alike in `part`, in place. Nothing is evaluated; then that holds both for a moment."""
    for owner in part.modules():
        alike: dict[Any, list[str]] = {}
        for name in getattr(type(owner), "JOINED", ()):
            if type(owner.get(name)) in (nn.Linear, nn.QuantizedLinear) and "bias" not in owner[name]:
                alike.setdefault(_stored_as(owner[name]), []).append(name)
        groups = [names for names in alike.values() if len(names) > 1]
        if groups:
            owner.joined = [Joined(names, [owner.pop(name) for name in names]) for names in groups]


def _arrays(projection: nn.Module) -> dict[str, mx.array]:
    return {name: array for name, array in projection.items() if isinstance(array, mx.array)}


def _stored_as(projection: nn.Module) -> tuple[Any, ...]:
    """What has to be equal for rows to stand in one matrix."""
    packing = [getattr(projection, name, None) for name in ("bits", "group_size", "mode")]
    return (*packing, *((name, array.dtype, array.shape[1]) for name, array in sorted(_arrays(projection).items())))
