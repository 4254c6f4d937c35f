"""Networks of the family's real shapes with few layers, made of arrays that are never computed, and a step of ours.

It runs as the engine runs it. Stock's is in stock.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.convert.packing import Packing
from mlx_qwen35.convert.recipes import formats_of
from mlx_qwen35.convert.roles import place_of
from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.metal_kernels.operations import using
from mlx_qwen35.metal_kernels.override import Override
from mlx_qwen35.metal_kernels.selection import Candidate, Operation, Selection
from mlx_qwen35.models.config import LINEAR, ModelConfig, parse_config
from mlx_qwen35.models.joined import join
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.tensor_names import is_zero_centred_norm
from mlx_qwen35.models.windows import Window

PACKING = Packing(4, 64)
RESERVED = 256  # tokens of room in a KV buffer behind what it holds
WIDE = (".A_log", ".dt_bias", "linear_attn.norm.weight")  # float32 in our network


@dataclass(frozen=True)
class Step:
    """One step of a network. load: gives it its parameters   run: states, then ids -> what the step leaves

    parameters: by name   state_bytes: of recurrent states and conv tails, read and written once at the least
    """

    load: Callable[[Sequence[mx.array]], None]
    run: Callable[[Sequence[mx.array]], list[mx.array]]
    parameters: dict[str, mx.array]
    states: list[mx.array]
    config: ModelConfig
    tokens: int
    context: int

    @property
    def inputs(self) -> list[mx.array]:
        """Of `function`; the parameters come first."""
        return [*self.parameters.values(), *self.states, mx.zeros(self.tokens, mx.int32)]

    def function(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """The step as a function of everything it reads."""
        count = len(self.parameters)
        self.load(arrays[:count])
        return self.run(arrays[count:])

    @property
    def state_bytes(self) -> int:
        config = self.config
        state = 4 * config.num_value_heads * config.value_dim * config.key_dim
        return config.layer_types.count(LINEAR) * (state + 2 * (config.conv_width - 1) * _conv_dim(config))


class Kernels(Selection):
    """In place of measuring: the last candidate that takes the arguments. Candidates stand in the order of hope."""

    def choose(self, operation: Operation, arguments: Sequence[Any]) -> Candidate:
        return [c for c in operation.candidates if c.fits(*arguments)][-1]


def config_of(size: str, kinds: Sequence[str]) -> dict[str, Any]:
    """A config.json of the family's `size` with layers of these kinds."""
    entry = FAMILY[size]
    name = "qwen3_5_moe" if entry.experts else "qwen3_5"
    rotary = {"rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25}
    text = entry.text_config | {
        "model_type": f"{name}_text",
        "num_hidden_layers": len(kinds),
        "mtp_num_hidden_layers": 0,  # a token that is decoded plainly reads nothing of it
        "layer_types": list(kinds),
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": entry.tied,
        "rope_parameters": rotary | {"mrope_section": [11, 11, 10], "mrope_interleaved": True},
    }
    return {"model_type": name, "text_config": text, "tie_word_embeddings": entry.tied}


def our_step(size: str, kinds: Sequence[str], recipe: str, tokens: int, context: int) -> Step:
    """A window of `tokens` after `context` of them, as the engine runs it, up to the next token."""
    config = parse_config(config_of(size, kinds))
    model = Model(config)
    model.eval()
    quantize(model, recipe)
    join(model)
    parameters = {n: _empty(p, _our_dtype(n, p)) for n, p in parameters_of(model)}

    def caches(states: Sequence[mx.array]) -> list[Any]:
        rest, made = list(states), model.make_cache()
        for cache in made if context else []:
            first, second = rest.pop(0), rest.pop(0)
            if isinstance(cache, DeltaState):
                cache.restore((first, second), context)
            elif isinstance(cache, KVCache):
                cache.keys, cache.values, cache.length = first, second, context
        return made

    def run(arrays: Sequence[mx.array]) -> list[mx.array]:
        made = caches(arrays[:-1])
        with using(Kernels(Override())):
            hidden = model.step([Window(arrays[-1], made)])
            token = mx.argmax(model.logits(hidden[-1:]).astype(mx.float32), axis=-1)
        return [*_kept(made), *([token] if tokens == 1 else [])]

    load = loader(model, list(parameters))
    return Step(load, run, parameters, states_of(config, context), config, tokens, context)


def loader(model: nn.Module, names: Sequence[str]) -> Callable[[Sequence[mx.array]], None]:
    """Gives the network its parameters, in the order of `names`."""

    def load(arrays: Sequence[mx.array]) -> None:
        model.update(tree_unflatten(list(zip(names, arrays))))

    return load


def quantize(model: nn.Module, recipe: str) -> None:
    choose = formats_of(recipe, PACKING)

    def packing(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        full = path if path.startswith("language_model.") else f"language_model.{path}"
        chosen = choose(full, place_of(f"{full}.weight"), module["weight"].shape[-1]).packing
        return False if chosen is None else {"bits": chosen.bits, "group_size": chosen.group_size, "mode": chosen.mode}

    nn.quantize(model, class_predicate=packing)


def parameters_of(model: nn.Module) -> list[tuple[str, mx.array]]:
    flat = tree_flatten(model.parameters())
    assert isinstance(flat, list)
    return flat


def _empty(parameter: mx.array, dtype: mx.Dtype) -> mx.array:
    return mx.zeros(parameter.shape, dtype)


def _our_dtype(name: str, parameter: mx.array) -> mx.Dtype:
    """As `weights.load_model` leaves them."""
    if parameter.dtype in (mx.uint32, mx.uint8):
        return parameter.dtype
    return mx.float32 if is_zero_centred_norm(name) or name.endswith(WIDE) else mx.bfloat16


def states_of(config: ModelConfig, context: int) -> list[mx.array]:
    """Two arrays a layer: conv tail and S, or keys and values. None at the start of a text."""
    made: list[mx.array] = []
    for kind in config.layer_types if context else []:
        if kind == LINEAR:
            made.append(mx.zeros((1, config.conv_width - 1, _conv_dim(config)), mx.bfloat16))
            made.append(mx.zeros((1, config.num_value_heads, config.value_dim, config.key_dim), mx.float32))
        else:
            shape = (1, config.num_kv_heads, context + RESERVED, config.head_dim)
            made += [mx.zeros(shape, mx.bfloat16), mx.zeros(shape, mx.bfloat16)]
    return made


def _conv_dim(config: ModelConfig) -> int:
    return 2 * config.num_key_heads * config.key_dim + config.num_value_heads * config.value_dim


def _kept(caches: Sequence[Any]) -> list[Any]:
    pairs = [(c.conv_tail, c.delta) if isinstance(c, DeltaState) else (c.keys, c.values) for c in caches]
    return [x for pair in pairs for x in pair]
