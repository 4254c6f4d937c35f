"""The dtype of activations: bfloat16 as checkpoints have it, or float16 where the chip only emulates bfloat16.

M1 and M2 compute bfloat16 by way of float32. There float16 is a candidate of the same measured choice as the kernels:
a step of the network itself in either dtype, compared and timed. float16 ends at 65,504, and what a network reaches is
its weights' affair: so each loading looks at one step's numbers before float16 is used.
"""

from __future__ import annotations

import copy
import logging
import re

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_qwen35.metal_kernels.operations import ACTIVATIONS, selection
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window

_LOG = logging.getLogger(__name__)
FIRST_WITH_BFLOAT16 = 15  # generation of Apple's GPUs: M1 is 13, M2 14, M3 15
PROMPT = 8  # tokens, before one that is decoded


def fastest(model: Model) -> Model:
    """The network itself, or one in float16 that shares its packed weights. To be called on Metal."""
    if not emulates_bfloat16() or mx.bfloat16 not in (a.dtype for _, a in _arrays(model)):
        return model
    half = in_float16(model)
    arguments = (lambda: _logits(model), lambda: _logits(half), _shape_class(model))
    if selection().choose(ACTIVATIONS, arguments).name != "float16":
        return model
    if not mx.isfinite(_logits(half)).all():
        _LOG.warning("This checkpoint's numbers are too large for float16: it runs in bfloat16, slower on this chip.")
        return model
    return half


def emulates_bfloat16() -> bool:
    """Whether this chip's GPU has no bfloat16 of its own."""
    found = re.match(r"applegpu_g(\d+)", str(mx.device_info().get("architecture", "")))
    return found is not None and int(found[1]) < FIRST_WITH_BFLOAT16


def in_float16(model: Model) -> Model:
    """The same network with float16 in place of bfloat16. Everything else, packed weights too, is shared."""
    arrays = _arrays(model)
    shared = {id(array): array for _, array in arrays}
    half = copy.deepcopy(model, shared)
    cast = [(name, array.astype(mx.float16)) for name, array in arrays if array.dtype == mx.bfloat16]
    half.update(tree_unflatten(cast))
    mx.eval([array for _, array in cast])
    return half


def _arrays(model: Model) -> list[tuple[str, mx.array]]:
    flat = tree_flatten(model.parameters())
    assert isinstance(flat, list)
    return flat


def _logits(model: Model) -> mx.array:
    """Of a short prompt and of one more token: [PROMPT + 1, V], float32."""
    cache, ids = model.make_cache(), mx.arange(PROMPT + 1) % model.config.vocab_size
    hidden = [model.step([Window(ids[:PROMPT], cache)]), model.step([Window(ids[PROMPT:], cache)])]
    return model.logits(mx.concatenate(hidden)).astype(mx.float32)


def _shape_class(model: Model) -> str:
    c = model.config
    experts = f" {c.experts.count} experts" if c.experts else ""
    return (
        f"{len(c.layer_types)} layers x {c.hidden_size}{experts} {c.quantization.bits if c.quantization else 16} bits"
    )
