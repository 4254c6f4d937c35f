"""A layer whose inputs are watched and whose weights can be swapped: what calibration runs. One layer at a time."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from mlx_qwen35.convert.rounding import ROUTERS
from mlx_qwen35.convert.statistics import Moments, block_size, input_of
from mlx_qwen35.models.moe import Experts
from mlx_qwen35.models.off_metal import GroupedExperts

MATRICES = ("gate_proj", "up_proj", "down_proj")


class Watch:
    """Sums up inputs by entry. `real` says which rows of a flattened [B * T] batch are text and not padding."""

    def __init__(self, hessians: bool) -> None:
        """hessians: whether the whole of each is wanted, not only correlations among neighbours"""
        self.hessians = hessians
        self.whole: set[str] = set()  # entries of which it is wanted anyhow
        self.moments: dict[str, Moments] = {}
        self.real: mx.array | None = None  # indices
        self.active = True

    def see(self, entry: str, x: mx.array) -> None:
        """x: [..., in], every place of the batch"""
        if not self.active:
            return
        rows = x.reshape(-1, x.shape[-1])
        self.add(entry, rows if self.real is None else rows[self.real])

    def add(self, entry: str, rows: mx.array) -> None:
        """rows: [N, in], text only"""
        if not self.active or not rows.shape[0]:
            return
        rows = rows.astype(mx.float32)
        if self.hessians or entry in self.whole:
            outer = np.array(rows.T @ rows)
            second = np.diag(outer).astype(np.float64)
        else:
            parts = rows.reshape(rows.shape[0], -1, block_size(rows.shape[1])).swapaxes(0, 1)
            outer = np.array(parts.swapaxes(1, 2) @ parts)
            second = np.diagonal(outer, axis1=1, axis2=2).astype(np.float64).reshape(-1)
        found = Moments(rows.shape[0], second, outer)
        self.moments[entry] = self.moments[entry] + found if entry in self.moments else found


class WatchedLinear(nn.Module):
    """A linear map that shows its inputs before it computes."""

    def __init__(self, inner: nn.Module, entry: str, watch: Watch) -> None:
        super().__init__()
        self.inner = inner
        self._entry, self._watch = entry, watch

    def __call__(self, x: mx.array) -> mx.array:
        self._watch.see(self._entry, x)
        return self.inner(x)


class WatchedExperts(nn.Module):
    """Routed experts one by one, each for its own tokens; shows the inputs of every expert's down_proj."""

    def __init__(self, inner: nn.Module, entry: str, watch: Watch) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (inner[name] for name in MATRICES)
        self._entry, self._watch = entry, watch

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """x: [B, T, C]   chosen: [B, T, K] -> [B, T, K, C]"""
        K = chosen.shape[-1]
        rows, picked = x.reshape(-1, x.shape[-1]), np.array(chosen).reshape(-1)
        text = np.ones(len(picked), np.bool_) if self._watch.real is None else np.zeros(len(picked), np.bool_)
        if self._watch.real is not None:
            text.reshape(-1, K)[np.array(self._watch.real)] = True
        order = np.argsort(picked, kind="stable")
        outputs = []
        for expert, places in _by_expert(picked, order):
            # Text first, so that what the statistics see is a prefix.
            places = places[np.argsort(~text[places], kind="stable")]
            hidden, output = self._expert(rows[mx.array(places // K)], expert)
            entry = f"{self._entry}.down_proj"
            self._watch.add(f"{entry}:{expert}", hidden[: int(text[places].sum())])
            outputs.append((places, output))
            mx.eval(output)
        where = np.empty(len(picked), np.int64)
        where[np.concatenate([places for places, _ in outputs])] = np.arange(len(picked))
        return mx.concatenate([output for _, output in outputs])[mx.array(where)].reshape(*chosen.shape, -1)

    def _expert(self, rows: mx.array, expert: int) -> tuple[mx.array, mx.array]:
        """What goes into an expert's down_proj, and what comes out."""

        def through(name: str, x: mx.array) -> mx.array:
            weight = self[name].weight[expert]
            return x @ weight.astype(x.dtype).T

        hidden = nn.silu(through("gate_proj", rows)) * through("up_proj", rows)
        return hidden, through("down_proj", hidden)


def _by_expert(picked: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each chosen expert and the places in `picked` that chose it."""
    experts, starts = np.unique(picked[order], return_index=True)
    for expert, places in zip(experts, np.split(order, starts[1:])):
        yield int(expert), places


def watched(part: nn.Module, path: str, watch: Watch) -> None:
    """Wrap every linear map and every stack of experts in `part`, which stands at `path` of the network."""
    swaps: list[tuple[str, nn.Module]] = []
    seen: set[str] = set()
    experts = {name for name, module in part.named_modules() if isinstance(module, (Experts, GroupedExperts))}
    for name, module in part.named_modules():
        if name in experts:
            swaps.append((name, WatchedExperts(module, f"{path}.{name}", watch)))
        elif name.rpartition(".")[0] in experts or not _is_linear(module):
            continue
        else:
            parameter = f"{path}.{name}.weight"
            entry = input_of(parameter)
            if parameter.endswith(ROUTERS):
                watch.whole.add(entry)
            if entry not in seen:  # one of those that share an input is enough
                seen.add(entry)
                swaps.append((name, WatchedLinear(module, entry, watch)))
    part.update_modules(tree_unflatten(swaps))


def _is_linear(module: nn.Module) -> bool:
    weight = module.get("weight")
    return isinstance(weight, mx.array) and weight.ndim == 2


def matrices(part: nn.Module) -> Iterator[tuple[str, nn.Module, mx.array]]:
    """The parameters that may be rounded: name below `part`, its module, and its value."""
    for name, module in part.named_modules():
        weight = module.get("weight")
        if isinstance(weight, mx.array) and weight.ndim >= 2:
            yield f"{name}.weight".replace(".inner", "").removeprefix("."), module, weight
