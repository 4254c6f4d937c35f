"""A small checkpoint that speaks from a script: real architecture and vocabulary, weights solved and not trained.

What it says is a function of four things that the network has to remember in its different caches, so a wrong tail,
state or cache says something else:

- the last four tokens (layer 0: the convolutions' tails bring back the three before this one),
- the last *voice word* of the text, which chooses the reply (layer 1: a recurrent state written at such words only),
- the last *topic* word, which fills `{topic}` in it (layer 2: the same),
- the *name*, wherever it stood, which fills `{name}` (layer 3: one attention head looks for it).

Layer 3's feed-forward is a table: one row a place of a reply, open where context and voice match, that writes the next
token's code. All numbers are exact or saturated in float32; there is no training and no chance. What it says
is puppet.py's.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from tests.support.puppet import LAGS, LAST_TOKEN, Script

WIDTH, ONES, OVERLAP = 16, 5, 3  # a code has 5 ones among 16 places, and shares at most 3 with any other
HIDDEN, VOCAB, CONTEXT = 136, 248_320, 65_536
CONST, FILL, FLAGS = 0, 1, {"voice": 2, "topic": 3, "name": 4}
# Fields of the residual: this token's code and value, the codes before it, what is remembered.
CODE, VALUE, *LAG_CODES, VOICE, TOPIC, NAME = (slice(at, at + WIDTH) for at in range(5, 5 + 8 * WIDTH, WIDTH))
ROW_NORM = 16.0  # squares of every embedding row, so that the first norm divides all tokens by the same number
HEAD_DIM = 32


def write_puppet(folder: Path, script: Script, tokenizer_folder: Path, template: Path) -> Path:
    """Write a checkpoint in the original form into `folder` (made if absent), and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    (folder / "chat_template.jinja").write_bytes(template.read_bytes())
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    stop = script.tokenizer.encode(LAST_TOKEN)[0]
    tensors = _tensors(script)
    units = tensors["model.language_model.layers.3.mlp.up_proj.weight"].shape[0]
    (folder / "config.json").write_text(json.dumps(_config(units, stop), indent=1))
    arrays = {name: mx.array(value.astype(np.float32)) for name, value in tensors.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "pt"})
    return folder


def _config(units: int, stop: int) -> dict:
    rope = {"rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1]}
    text = {
        "model_type": "qwen3_5_text",
        "hidden_size": HIDDEN,
        "intermediate_size": units,
        "num_hidden_layers": 4,
        "full_attention_interval": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": LAGS,
        "linear_key_head_dim": WIDTH,
        "linear_value_head_dim": WIDTH,
        "linear_conv_kernel_dim": LAGS + 1,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "eos_token_id": stop,
        "dtype": "float32",
        "rope_parameters": {"mrope_interleaved": True, **rope},
    }
    names = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5"}
    return {**names, "text_config": text, "tie_word_embeddings": True, "eos_token_id": stop}


def _codes(count: int) -> np.ndarray:
    """[count, WIDTH] of zeros and ones, the first that overlap little enough, in the order of the binary numbers."""
    codes: list[np.ndarray] = []
    for places in itertools.combinations(range(WIDTH), ONES):
        code = np.zeros(WIDTH)
        code[list(places)] = 1
        if all(code @ other <= OVERLAP for other in codes):
            codes.append(code)
    if len(codes) < count:
        raise ValueError(f"a puppet knows {len(codes)} tokens by code, but its script needs {count}")
    return np.array(codes[:count])


def _tensors(script: Script) -> dict[str, np.ndarray]:
    codes = dict(zip(script.coded(), _codes(len(script.coded()))))
    special = {"voice": script.voice_ids, "topic": script.topics, "name": script.names}
    words = [token for group in special.values() for token in group.values()]
    values = dict(zip(words, _codes(len(words))))
    tensors = {"embed_tokens.weight": _embedding(script, special, codes, values), "norm.weight": np.full(HIDDEN, 3.0)}
    up, gate, down = _lookup(script, codes, values)
    for i in range(4):
        at = f"layers.{i}"
        tensors |= {f"{at}.{name}.weight": np.zeros(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")}
        # Only the last feed-forward says something; it sees what all layers remember.
        for name, matrix in (("up_proj", up), ("gate_proj", gate), ("down_proj", down)):
            tensors[f"{at}.mlp.{name}.weight"] = matrix if i == 3 else np.zeros_like(matrix)
    known = ROW_NORM + LAGS * ONES
    tensors |= {f"layers.0.linear_attn.{name}": value for name, value in _lag_layer().items()}
    for i, kind, target, squares in ((1, "voice", VOICE, known), (2, "topic", TOPIC, known + ONES)):
        memory = _memory_layer(FLAGS[kind], target, squares)
        tensors |= {f"layers.{i}.linear_attn.{name}": value for name, value in memory.items()}
    tensors |= {f"layers.3.self_attn.{name}.weight": value for name, value in _name_layer().items()}
    return {f"model.language_model.{name}": value for name, value in tensors.items()}


def _embedding(script: Script, special: dict[str, dict[str, int]], codes: dict, values: dict) -> np.ndarray:
    rows = np.zeros((VOCAB, HIDDEN), np.float32)
    rows[:, CONST] = 1
    for token, code in codes.items():
        rows[token, CODE] = code
    for token, group in script.classes.items():
        if group in codes:
            rows[token, CODE] = codes[group]
    for kind, group in special.items():
        for token in group.values():
            rows[token, FLAGS[kind]] = 1
            rows[token, VALUE] = values[token]
    # The head is tied: what fills a row up must not make a token likely, so it is as small as the rest allows.
    rows[:, FILL] = np.sqrt(ROW_NORM - (rows**2).sum(-1))
    return rows


def _rms(squares: float) -> float:
    return float(np.sqrt(squares / HIDDEN))


def _delta_net(heads: Sequence[tuple[slice, int]], targets: Sequence[slice], squares: float) -> dict[str, np.ndarray]:
    """Value head h brings the field heads[h][0] of heads[h][1] tokens ago into targets[h], as zeros and ones.

    squares: of the layer's input, summed, where a reply is being said. Query and key are one constant direction.
    """
    strong = 8.0  # after the norm: silu leaves it as it is, and zero stays zero
    qkv, conv = np.zeros(((2 + LAGS) * WIDTH, HIDDEN)), np.zeros(((2 + LAGS) * WIDTH, 1, LAGS + 1))
    qkv[[0, WIDTH], CONST] = strong
    conv[:, 0, LAGS] = 1
    out = np.zeros((HIDDEN, LAGS * WIDTH))
    z = strong / _rms(squares)
    for h, ((source, lag), target) in enumerate(zip(heads, targets)):
        rows = slice((2 + h) * WIDTH, (3 + h) * WIDTH)
        qkv[rows, source] = strong * np.eye(WIDTH)
        conv[rows] = 0
        conv[rows, 0, LAGS - lag] = 1
        out[target, h * WIDTH : (h + 1) * WIDTH] = np.eye(WIDTH) / (np.sqrt(WIDTH / ONES) * z)
    gate = np.zeros((LAGS * WIDTH, HIDDEN))
    gate[:, CONST] = strong
    return {
        "in_proj_qkv.weight": qkv,
        "conv1d.weight": conv,
        "in_proj_z.weight": gate,
        "in_proj_a.weight": np.zeros((LAGS, HIDDEN)),
        "norm.weight": np.ones(WIDTH),
        "out_proj.weight": out,
    }


def _lag_layer() -> dict[str, np.ndarray]:
    """The codes of the tokens one, two and three back, by the convolution; the state keeps the newest token only."""
    beta = np.zeros((LAGS, HIDDEN))
    beta[:, CONST] = 40
    forget = {"A_log": np.full(LAGS, 5.0), "dt_bias": np.full(LAGS, 5.0), "in_proj_b.weight": beta}
    return {**_delta_net([(CODE, lag) for lag in (1, 2, 3)], LAG_CODES, ROW_NORM), **forget}


def _memory_layer(flag: int, target: slice, squares: float) -> dict[str, np.ndarray]:
    """The value of the last token with the flag: only such a token writes, and nothing is forgotten."""
    beta = np.zeros((LAGS, HIDDEN))
    beta[0, flag], beta[0, CONST] = 80, -40
    keep = {"A_log": np.full(LAGS, -20.0), "dt_bias": np.full(LAGS, -20.0), "in_proj_b.weight": beta}
    return {**_delta_net([(VALUE, 0)], [target], squares), **keep}


def _name_layer() -> dict[str, np.ndarray]:
    """One head that looks for the token with the name flag, wherever it stands, and brings its value."""
    q, k = np.zeros((4 * HEAD_DIM, HIDDEN)), np.zeros((HEAD_DIM, HIDDEN))
    v, o = np.zeros((HEAD_DIM, HIDDEN)), np.zeros((HIDDEN, 2 * HEAD_DIM))
    q[HEAD_DIM - 1, CONST] = k[HEAD_DIM - 1, FLAGS["name"]] = 1  # a dim that is not rotated
    v[:WIDTH, VALUE] = np.eye(WIDTH)
    o[NAME, :WIDTH] = np.eye(WIDTH)
    # Stored as offsets from one: 4 * 4 * sqrt(32) = 90 nats over any other token.
    norms = {"q_norm": np.full(HEAD_DIM, 3.0), "k_norm": np.full(HEAD_DIM, 3.0)}
    return {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": o, **norms}


def _lookup(script: Script, codes: dict, values: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """up, gate [units, HIDDEN] and down [HIDDEN, units] of the table."""
    loud, sharp = 20.0, 60.0
    slots = {script.classes[next(iter(script.topics.values()))]: TOPIC}
    slots |= {script.classes[next(iter(script.names.values()))]: NAME}
    gates, ups, downs = [], [], []

    def unit(gate: np.ndarray, up: int, written: np.ndarray) -> None:
        row, column = np.zeros(HIDDEN), np.zeros(HIDDEN)
        row[up] = 1
        column[: VALUE.stop] = written
        gates.append(gate)
        ups.append(row)
        downs.append(column * loud * _rms(60) ** 2 / sharp)

    for (word, context), token in script.table.items():
        gate = np.zeros(HIDDEN)
        gate[VOICE] = values[script.voice_ids[word]]
        for field, seen in zip((CODE, *LAG_CODES), context):
            gate[field] = codes[seen]
        # All five fields match, or the gate is shut: one that does not match has at least two ones fewer.
        gate[CONST] = 1 - ONES * (2 + LAGS)
        written = np.zeros(VALUE.stop)
        written[CODE] = codes[token]
        unit(sharp * gate, CONST, written)
        # A slot's place also hands on the remembered word's value, place by place of its code.
        for d in range(WIDTH if token in slots else 0):
            written = np.zeros(VALUE.stop)
            written[VALUE.start + d] = 1
            unit(sharp * gate, slots[token].start + d, written)
    return np.array(ups), np.array(gates), np.array(downs).T
