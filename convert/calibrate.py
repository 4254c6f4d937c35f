"""Calibration: texts go through the network one layer at a time, and each layer's inputs are summed up.

In every layer first the mixer, then the feed-forward is watched, rounded in memory as the conversion will round it,
and run again, so that statistics downstream are those of the quantized network. What is live is one layer and the
hidden states of the texts. An interrupted calibration continues at the layer it was in. Knows nothing of output files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_qwen35.convert.layerwise import EMBEDDING, HEAD, MTP, NORM, LayerwiseModel, Read, mixer
from mlx_qwen35.convert.observing import Watch, matrices, watched
from mlx_qwen35.convert.rounded_model import rounded
from mlx_qwen35.convert.rounding import Packing
from mlx_qwen35.convert.statistics import COVERED, CalibrationStore, Moments
from mlx_qwen35.convert.texts import Batch, Tokens, batches, limited
from mlx_qwen35.models.model import MTP as MTPModule
from mlx_qwen35.models.weights import Survey

TOKENS = 131_072
INPUTS = "inputs.json"
Progress = Callable[[int, int], None]  # layers done, in all


@dataclass(frozen=True)
class Plan:
    """What calibration must know of the conversion: the packing of each parameter, by its name in the network."""

    packings: Mapping[str, Packing | None]
    quality: str
    dtype: mx.Dtype = mx.bfloat16  # of the values before packing, and of scales


def calibrate(
    source: Path | Survey,
    plan: Plan,
    texts: Sequence[Tokens],
    folder: Path,
    tokens: int = TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
    read: Read | None = None,
) -> CalibrationStore:
    """Gather statistics of every packed parameter's inputs into `folder`, or take up an interrupted run there.

    texts: ids of the source's own tokenizer; `seed` shuffles them and up to `tokens` ids are used
    read: makes a parameter of an unusual source (see LayerwiseModel)
    Raises ConfigError and CheckpointError, as loading the source would.
    """
    store = CalibrationStore(folder)
    chosen = limited(texts, tokens, seed)
    fingerprint = _fingerprint(source, plan, chosen)
    if store.is_complete and _recorded(folder) == fingerprint:
        return store
    if _recorded(folder) != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / INPUTS).write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
    run = _Run(LayerwiseModel(source, read), plan, store, list(batches(chosen)))
    run.all(progress)
    return store


class _Run:
    """One pass through the network. `states` are the hidden states of each batch, [B, T, C]."""

    def __init__(self, model: LayerwiseModel, plan: Plan, store: CalibrationStore, given: list[Batch]) -> None:
        self.model, self.plan, self.store, self.batches = model, plan, store, given
        self.real = [mx.array(np.flatnonzero(batch.real)) for batch in given]
        self.states: list[mx.array] = []
        self.hessians = plan.quality == "best"

    def all(self, progress: Progress | None) -> None:
        paths = self.model.layer_paths
        done = self._resume()
        for i, path in enumerate(paths):
            if i < done:
                continue
            self._layer(path)
            self._save(i + 1)
            if progress:
                progress(i + 1, len(paths))
        self._head()
        if self.model.has_mtp:
            self._mtp()
        for state in self.store.folder.glob("state-*.safetensors"):
            state.unlink()
        self.store.finish(self._summary())

    def _embedded(self) -> list[mx.array]:
        embedding = self.model.load(EMBEDDING)
        for name, module, weight in matrices(embedding):
            if packing := self.plan.packings.get(f"{EMBEDDING}.{name}"):
                # A tied embedding is rounded for the head, whose inputs are known last; this comes near it.
                module.weight = rounded(weight, packing, "fast", self.plan.dtype)
        states = [embedding(mx.array(batch.ids)) for batch in self.batches]
        mx.eval(states)
        self.model.release(embedding)
        return states

    def _layer(self, path: str) -> None:
        layer, watch = self.model.layer(path), Watch(self.hessians)
        watched(layer, path, watch)
        part = path.removeprefix("language_model.model.")

        def mix(x: mx.array) -> mx.array:
            return x + mixer(layer, layer.input_layernorm(x))

        def feed_forward(x: mx.array) -> mx.array:
            return x + layer.mlp(layer.post_attention_layernorm(x))

        for step, names in ((mix, ("linear_attn", "self_attn")), (feed_forward, ("mlp",))):
            watch.active = True
            self._through(step, watch)
            self.store.put(part, _with_pooled(watch.moments))
            for name in names:
                if name in layer:
                    self._round(layer[name], f"{path}.{name}")
            watch.active = False
            self.states = self._through(step, watch)
        self.model.release(layer)

    def _through(self, step: Callable[[mx.array], mx.array], watch: Watch) -> list[mx.array]:
        outputs = []
        for x, real in zip(self.states, self.real):
            watch.real = real
            y = step(x)
            mx.eval(y)
            outputs.append(y)
            mx.clear_cache()
        return outputs

    def _round(self, part: nn.Module, path: str) -> None:
        """Give every packed matrix in `part` the values it will have after conversion."""
        for name, module, weight in matrices(part):
            target = f"{path}.{name}"
            packing = self.plan.packings.get(target)
            if packing is None:
                continue
            quality = self.plan.quality
            if weight.ndim == 2:
                module.weight = rounded(weight, packing, quality, self.plan.dtype, self.store, target)
                continue
            experts = [
                rounded(weight[e], packing, quality, self.plan.dtype, self.store, target, e) for e in range(len(weight))
            ]
            stacked = mx.stack(experts)
            mx.eval(stacked)
            module.weight = stacked

    def _head(self) -> None:
        """The inputs of the head; of the embedding, where that is the head too."""
        norm = self.model.load(NORM)
        self.states = [norm(x) for x in self.states]
        mx.eval(self.states)
        watch = Watch(self.hessians)
        for x, real in zip(self.states, self.real):
            watch.real = real
            watch.see(EMBEDDING if self.model.config.tie_embeddings else HEAD, x)
        seen = watch.moments
        if EMBEDDING in seen and not self.hessians:
            seen[EMBEDDING] = _looked_up(seen[EMBEDDING])
        self.store.put("head", seen)

    def _mtp(self) -> None:
        """The MTP layer sees the trunk's hidden state at t and the embedding of token t + 1."""
        module, watch = self.model.load(MTP), Watch(self.hessians)
        assert isinstance(module, MTPModule)
        watched(module, MTP, watch)
        for hidden, embedded, batch in zip(self.states, self._embedded(), self.batches):
            watch.real = mx.array(np.flatnonzero(batch.real[:, 1:]))
            mx.eval(module(hidden[:, :-1], embedded[:, 1:]))
        for part in ("mtp", "mtp.layers.0"):
            found = {
                k: v for k, v in _with_pooled(watch.moments).items() if k.startswith("mtp.layers.") == (part != "mtp")
            }
            self.store.put(part, found)
        self.model.release(module)

    def _resume(self) -> int:
        """How many layers are done; their output becomes `states`."""
        saved = sorted(self.store.folder.glob("state-*.safetensors"), key=lambda p: int(p.stem.partition("-")[2]))
        if not saved:
            self.states = self._embedded()
            return 0
        arrays = mx.load(str(saved[-1]))
        assert isinstance(arrays, dict)
        self.states = [arrays[str(i)] for i in range(len(self.batches))]
        return int(saved[-1].stem.partition("-")[2])

    def _save(self, layers: int) -> None:
        folder = self.store.folder
        partial, target = folder / "partial.safetensors", folder / f"state-{layers}.safetensors"
        mx.save_safetensors(str(partial), {str(i): x for i, x in enumerate(self.states)})
        partial.replace(target)
        (folder / f"state-{layers - 1}.safetensors").unlink(missing_ok=True)

    def _summary(self) -> dict[str, object]:
        routing, uncovered = {}, 0
        experts = self.model.config.experts.count if self.model.config.experts else 0
        for path in self.model.layer_paths if experts else ():
            routing[path] = counts = self.store.routed(f"{path}.mlp.switch_mlp.down_proj.weight", experts)
            uncovered += sum(count < COVERED for count in counts)
        return {
            "tokens": sum(int(batch.real.sum()) for batch in self.batches),
            "texts": sum(len(batch.domains) for batch in self.batches),
            "experts_uncovered": uncovered,
            "tokens_per_expert": routing,
        }


def _with_pooled(moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """Beside each expert's own entry one for all experts of its layer, for those that saw too little."""
    pooled: dict[str, Moments] = {}
    for entry, found in moments.items():
        if ":" in entry:
            name, alone = entry.partition(":")[0], Moments(found.tokens, found.second)
            pooled[name] = pooled[name] + alone if name in pooled else alone
    return {**moments, **pooled}


def _looked_up(moments: Moments) -> Moments:
    """Of a matrix that is the head and the embedding: what is looked up in it is a row, whose channels all count alike.

    Weighed for the head alone, it made `good` worse than `fast` at 8 bits on the demo checkpoint. `best` is not
    measured so, and keeps the head's.
    """
    # The diagonal of the blocks is not read where the second moments are given.
    return Moments(moments.tokens, moments.second + moments.second.mean(), moments.outer)


def _fingerprint(source: Path | Survey, plan: Plan, texts: Sequence[Tokens]) -> str:
    """Changes with whatever the statistics depend on."""
    digest = hashlib.sha256(f"{plan.quality} {plan.dtype} {sorted(plan.packings.items())}\n".encode())
    folder = source if isinstance(source, Path) else source.files.folder
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    for text in texts:
        digest.update(np.array(text.ids, np.int32).tobytes())
    return digest.hexdigest()


def _recorded(folder: Path) -> str | None:
    try:
        return json.loads((folder / INPUTS).read_text(encoding="utf-8")).get("fingerprint")
    except (OSError, ValueError, AttributeError):
        return None
