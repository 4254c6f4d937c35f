"""mlx-lm's own conversion, GPTQ and DWQ of the demo checkpoint, each written to a folder. Used by quantization_quality.

They run in float32, since MLX's CPU backend cannot gather bfloat16 experts; scales are saved in bfloat16 like ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_map

from examples.demo_model.samples import CHECKPOINT
from mlx_qwen35.convert.rounding import ROUTERS
from mlx_qwen35.convert.texts import Tokens

LENGTH = 256  # tokens of a training row for the peers, which take rows of one length


def converted(folder: Path, bits: int, keep_routers: bool = False) -> Path:
    """`mlx_lm.convert -q`. keep_routers: leave them unpacked, for which its function takes a predicate"""
    from mlx_lm import convert

    out = folder / "converted"
    predicate = (lambda path, *_: not f"{path}.weight".endswith(ROUTERS)) if keep_routers else None
    convert(str(CHECKPOINT), str(out), quantize=True, q_bits=bits, q_group_size=64, quant_predicate=predicate)
    return out


def gptq(folder: Path, bits: int, texts: Sequence[Tokens]) -> Path:
    from mlx_lm.quant.gptq import gptq_quantize

    model, config = _loaded(CHECKPOINT)
    data = mx.array(_rows(texts))
    model, config["quantization"] = gptq_quantize(model, data, bits, 64, bits, 64)
    return _saved(model, config, folder / "gptq")


def dwq(folder: Path, bits: int, texts: Sequence[Tokens]) -> Path:
    """Scales and biases of a stock conversion, trained against the source's logits: mlx-lm's defaults otherwise."""
    from mlx_lm.quant.dwq import dwq_quantize

    teacher, _ = _loaded(CHECKPOINT)
    student, config = _loaded(converted(folder, bits))
    rows = [(row.tolist(), 0) for row in _rows(texts)]

    def targets(batch: mx.array, _index: int, split: str) -> mx.array:
        return teacher(batch)

    dwq_quantize(
        student,
        targets,
        optimizers.Adam(learning_rate=1e-6, bias_correction=True),
        rows[4:],
        rows[:4],
        batch_size=4,
        max_seq_length=LENGTH + 1,
        seed=0,
        dtype=mx.float32,
    )
    return _saved(student, config, folder / "dwq")


PEERS: dict[str, Callable[[Path, int, Sequence[Tokens]], Path]] = {"mlx_lm gptq": gptq, "mlx_lm dwq": dwq}


def _rows(texts: Sequence[Tokens]) -> np.ndarray:
    """[N, LENGTH]: the texts end to end, cut into rows, as mlx-lm's own tools take them."""
    ids = np.concatenate([t.ids for t in texts])[:16_384]
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH).astype(np.int32)


def _loaded(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    from mlx_lm.utils import load_model

    model, config = load_model(folder)
    return _cast(model, (mx.bfloat16, mx.float16), mx.float32), config


def _cast(model: nn.Module, dtypes: tuple[mx.Dtype, ...], to: mx.Dtype) -> nn.Module:
    model.update(tree_map(lambda a: a.astype(to) if a.dtype in dtypes else a, model.parameters()))
    return model


def _saved(model: nn.Module, config: dict[str, Any], folder: Path) -> Path:
    """A checkpoint as mlx-lm saves it, with our tokenizer files beside it."""
    from mlx_lm.utils import save_config, save_model

    save_model(folder, _cast(model, (mx.float32,), mx.bfloat16))
    config["quantization_config"] = config["quantization"]
    save_config(config, folder / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((CHECKPOINT / name).read_bytes())
    stored = json.loads((folder / "config.json").read_text())
    assert "quantization" in stored
    return folder
