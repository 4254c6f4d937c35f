"""The tensors of a tiny checkpoint, under the names of the released files, in float32.

Sized so that logits are of order 1 to 10, every norm weight matters, and each head's decay stays within 0.5 to
0.999: with transformers' own initialisation the recurrent state is forgotten at once and tests nothing.
"""

import math
from collections.abc import Iterator

import numpy as np

from tests.reference.tiny_cases import TinyCase, config, uniform

Named = Iterator[tuple[str, np.ndarray]]


class _Source:
    """Draws the tensors of one checkpoint; a tensor's name is its seed, so adding one changes no other."""

    def __init__(self, case: TinyCase) -> None:
        self.case = case
        self.text = config(case) if case.flat else config(case)["text_config"]
        self.width: int = self.text["hidden_size"]

    def draw(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> tuple[str, np.ndarray]:
        """Uniform: no transcendental function stands between the seed's bits and the file's."""
        spread = (2 * uniform(f"{self.case.name}/{name}", shape) - 1) * (std * math.sqrt(3))
        return name, (mean + spread).astype(np.float32)

    def faint(self, drawn: tuple[str, np.ndarray], *rows: slice) -> tuple[str, np.ndarray]:
        """The tensor with these rows a thousandth of the rest, where the case asks for that.

        What comes out of them has squares about as large as the norms' eps, so that an eps which is missing, or
        stands in the wrong place, changes the logits.
        """
        if self.case.faint:
            for part in rows:
                drawn[1][part] *= 2.0**-10
        return drawn

    def linear(self, name: str, out: int, width: int, gain: float = 1.0) -> tuple[str, np.ndarray]:
        return self.draw(f"{name}.weight", (out, width), gain / math.sqrt(width))

    def norm(self, name: str, width: int) -> tuple[str, np.ndarray]:
        """Zero-centred: what is stored is the offset from one."""
        return self.draw(f"{name}.weight", (width,), 0.25)


def all_tensors(case: TinyCase) -> Named:
    """Every tensor of the checkpoint, by its original name, before rounding to the type it is stored in."""
    source = _Source(case)
    trunk = "model." if case.flat else "model.language_model."
    vocab = (source.text["vocab_size"], source.width)
    # A tied head answers with the token it was given unless the layers outweigh the embedding.
    scale = (1.0 if case.tied else 2.5) / math.sqrt(source.width)
    yield source.faint(source.draw(f"{trunk}embed_tokens.weight", vocab, scale), slice(0, 8))
    yield source.norm(f"{trunk}norm", source.width)
    if not case.tied:
        yield source.draw("lm_head.weight", vocab, 2.5 / math.sqrt(source.width))
    for i, kind in enumerate(source.text["layer_types"]):
        experts = "separate" if case.separate_experts else "fused"
        yield from _layer(source, f"{trunk}layers.{i}", kind, experts)
    if case.mtp != "absent":
        yield from _mtp(source)
    if case.vision:
        yield from _vision(source)


def _layer(source: _Source, at: str, kind: str, experts: str) -> Named:
    yield source.norm(f"{at}.input_layernorm", source.width)
    yield source.norm(f"{at}.post_attention_layernorm", source.width)
    if kind == "linear_attention":
        yield from _delta_net(source, f"{at}.linear_attn")
    else:
        yield from _attention(source, f"{at}.self_attn")
    if source.case.moe:
        yield from _experts(source, f"{at}.mlp", experts)
    else:
        yield from _feed_forward(source, f"{at}.mlp", source.text["intermediate_size"])


def _delta_net(source: _Source, at: str) -> Named:
    text = source.text
    value_heads = text["linear_num_value_heads"]
    key, value = text["linear_key_head_dim"], text["linear_value_head_dim"]
    key_width, value_width = text["linear_num_key_heads"] * key, value_heads * value
    width = 2 * key_width + value_width
    first_query, first_key = slice(0, key), slice(key_width, key_width + key)
    last_value = slice(width - value, width)
    qkv = source.linear(f"{at}.in_proj_qkv", width, source.width)
    yield source.faint(qkv, first_query, first_key, last_value)
    yield source.linear(f"{at}.in_proj_z", value_width, source.width)
    yield source.linear(f"{at}.in_proj_b", value_heads, source.width)
    yield source.linear(f"{at}.in_proj_a", value_heads, source.width, gain=0.2)
    yield source.draw(f"{at}.conv1d.weight", (width, 1, 4), 0.6)
    yield from _decay(source, at, value_heads)
    yield source.draw(f"{at}.norm.weight", (value,), 0.25, mean=1.0)
    yield source.linear(f"{at}.out_proj", source.width, value_width)


def _decay(source: _Source, at: str, heads: int) -> Named:
    """A_log and dt_bias such that exp(-exp(A_log) softplus(dt_bias)) is the decay wanted of each head."""
    # One head in each of `heads` equal steps, so that every layer has a short memory and a long one.
    place = (np.arange(heads) + uniform(f"{source.case.name}/{at}.decay", (heads,))) / heads
    wanted = 1 - 0.38 * 0.005**place  # 0.62 to 0.998; the token's own part widens that to 0.5 to 0.999
    step = 0.3 + 0.6 * uniform(f"{source.case.name}/{at}.step", (heads,))  # softplus(dt_bias)
    yield f"{at}.A_log", np.log(-np.log(wanted) / step).astype(np.float32)
    yield f"{at}.dt_bias", np.log(np.expm1(step)).astype(np.float32)


def _attention(source: _Source, at: str) -> Named:
    text = source.text
    head = text["head_dim"]
    queries, kv = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    first_query = slice(0, head)  # per head: query, then gate
    yield source.faint(source.linear(f"{at}.q_proj", 2 * queries, source.width), first_query)
    first_key = slice(0, head if kv > head else 0)  # with one kv head all keys would be faint
    yield source.faint(source.linear(f"{at}.k_proj", kv, source.width), first_key)
    yield source.linear(f"{at}.v_proj", kv, source.width, gain=1.5)
    yield source.linear(f"{at}.o_proj", source.width, queries, gain=1.5)
    yield source.norm(f"{at}.q_norm", head)
    yield source.norm(f"{at}.k_norm", head)


def _feed_forward(source: _Source, at: str, width: int) -> Named:
    yield source.linear(f"{at}.gate_proj", width, source.width)
    yield source.linear(f"{at}.up_proj", width, source.width)
    yield source.linear(f"{at}.down_proj", source.width, width)


def _experts(source: _Source, at: str, form: str) -> Named:
    text = source.text
    count, width = text["num_experts"], text["moe_intermediate_size"]
    yield source.linear(f"{at}.gate", count, source.width)
    if form == "separate":
        for e in range(count):
            yield from _feed_forward(source, f"{at}.experts.{e}", width)
    else:
        gain = 1 / math.sqrt(source.width)
        yield source.draw(f"{at}.experts.gate_up_proj", (count, 2 * width, source.width), gain)
        yield source.draw(f"{at}.experts.down_proj", (count, source.width, width), 1 / math.sqrt(width))
    yield from _feed_forward(source, f"{at}.shared_expert", text["shared_expert_intermediate_size"])
    yield source.linear(f"{at}.shared_expert_gate", 1, source.width)


def _mtp(source: _Source) -> Named:
    yield source.linear("mtp.fc", source.width, 2 * source.width)
    yield source.norm("mtp.norm", source.width)
    yield source.norm("mtp.pre_fc_norm_embedding", source.width)
    yield source.norm("mtp.pre_fc_norm_hidden", source.width)
    yield from _layer(source, "mtp.layers.0", "full_attention", source.case.mtp)


def _vision(source: _Source) -> Named:
    """Not a whole tower: enough to be recognised, counted and skipped."""
    yield source.draw("model.visual.patch_embed.proj.weight", (32, 3, 2, 16, 16), 0.02)
    yield source.draw("model.visual.patch_embed.proj.bias", (32,), 0.02)
    yield source.draw("model.visual.pos_embed.weight", (16, 32), 0.02)
    yield source.draw("model.visual.blocks.0.norm1.weight", (32,), 0.02, mean=1.0)
    yield source.draw("model.visual.blocks.0.norm1.bias", (32,), 0.02)
    yield source.draw("model.visual.merger.norm.weight", (32,), 0.02, mean=1.0)
