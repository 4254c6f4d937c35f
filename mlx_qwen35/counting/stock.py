"""A step of the installed mlx-lm's own network, to count beside ours. The one module that runs mlx-lm's model."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx

from mlx_qwen35.counting.graph import stand_ins
from mlx_qwen35.counting.networks import Step, config_of, loader, parameters_of, quantize, states_of
from mlx_qwen35.errors import UserError
from mlx_qwen35.models.config import FULL, LINEAR, parse_config


def stock_step(size: str, kinds: Sequence[str], recipe: str, tokens: int, context: int) -> Step:
    """The same by mlx-lm: its model, its caches, and what its generate loop does with the logits."""
    described = config_of(size, kinds)
    config, text = parse_config(described), described["text_config"]
    module = _mlx_lm("models.qwen3_5")
    known = {k: v for k, v in text.items() if k in module.TextModelArgs.__dataclass_fields__}
    rotary = {"type": "default", **text["rope_parameters"]}
    # It knows no list of layer kinds, only an interval; at 2, layers number 0 and 1 are one of each.
    own = {"full_attention_interval": 2, "rope_parameters": rotary, "num_hidden_layers": 2}
    arguments = module.TextModelArgs(**known | own)
    model = module.TextModel(arguments)
    model.model.layers = [module.DecoderLayer(arguments, int(kind == FULL)) for kind in kinds]
    model.model.ssm_idx, model.model.fa_idx = kinds.index(LINEAR), kinds.index(FULL)
    model.eval()
    quantize(model, recipe)
    parameters = {n: mx.zeros(p.shape, _dtype(n, p)) for n, p in parameters_of(model)}

    def caches(states: Sequence[mx.array]) -> list[Any]:
        rest, made = list(states), model.make_cache()
        for cache, kind in zip(made, kinds) if context else []:
            first, second = rest.pop(0), rest.pop(0)
            if kind == LINEAR:
                cache[0], cache[1] = first, second
            else:
                cache.keys, cache.values, cache.offset = first, second, context
        return made

    def run(arrays: Sequence[mx.array]) -> list[mx.array]:
        made = caches(arrays[:-1])
        logits = model(arrays[-1][None], cache=made)[:, -1, :]
        logprobs = logits - mx.logsumexp(logits, keepdims=True)
        kept = [x for c in made for x in (c.cache if hasattr(c, "cache") else (c.keys, c.values))]
        return [*kept, *([mx.argmax(logprobs, axis=-1), logprobs] if tokens == 1 else [])]

    load = loader(model, list(parameters))
    named = {f"language_model.{n}": p for n, p in parameters.items()}
    return Step(load, run, named, states_of(config, context), config, tokens, context)


def _dtype(name: str, parameter: mx.array) -> mx.Dtype:
    """As mlx-lm converts them."""
    if parameter.dtype in (mx.uint32, mx.uint8):
        return parameter.dtype
    return mx.float32 if name.endswith("A_log") else mx.bfloat16


_stock: dict[str, ModuleType] = {}


def _mlx_lm(name: str) -> ModuleType:
    """A module of mlx-lm in a copy of our own: it builds its kernels at import, where it has to see Metal.

    The package itself, which imports transformers, is left out.
    """
    if name in _stock:
        return _stock[name]
    found = importlib.util.find_spec("mlx_lm")
    if found is None or found.origin is None:
        raise UserError("mlx-lm is not installed, and stock is counted from its code. Run: pip install mlx-lm")
    package = ModuleType("mlx_lm")
    package.__path__ = [str(Path(found.origin).parent)]
    theirs = {n: sys.modules.pop(n) for n in list(sys.modules) if n.split(".")[0] == "mlx_lm"}
    sys.modules["mlx_lm"] = package
    try:
        with stand_ins():
            _stock[name] = importlib.import_module(f"mlx_lm.{name}")
    finally:
        for n in [n for n in sys.modules if n.split(".")[0] == "mlx_lm"]:
            _stock[f"module {n}"] = sys.modules.pop(n)
        sys.modules.update(theirs)
    return _stock[name]
