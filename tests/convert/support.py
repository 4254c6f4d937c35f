"""Sources for the converter, and stock mlx-lm as the one to agree with."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from mlx_lm.utils import load_model as load_stock_model
from tokenizers import Tokenizer, models, pre_tokenizers

from mlx_qwen35.convert import Options
from tests.reference import token_ids, write_checkpoint
from tests.reference.tiny_cases import CASES

# Stock mlx-lm reads no per-expert experts; and a flat config only under the name of the whole model.
STOCK_READS = [name for name, case in CASES.items() if not case.separate_experts]
OTHER_FILES = {
    "generation_config.json": '{"temperature":1.0,\n\n  "top_k": 20}',  # spacing that no re-save would keep
    "chat_template.jinja": "{%- for m in messages %}\r\n{{ m.content }}{% endfor %}",
    "preprocessor_config.json": '{"size": {"longest_edge": 16777216, "shortest_edge": 65536}}\n',
    "merges.txt": "#version: 0.2\n\u0120 t\n",
    "LICENSE": "Apache-2.0\n",
}


def as_stock(bits: int | None = 4, group_size: int | None = 32, **others: Any) -> Options:
    """What mlx_lm.convert does with a source: the vision tower goes, and nothing is measured."""
    return Options(bits, group_size, **({"quality": "stock", "vision": "drop", "check_drafts": False} | others))


def write_source(name: str, folder: Path) -> Path:
    """A tiny checkpoint with the files that real ones have beside the weights, and some that must stay behind."""
    write_checkpoint(name, folder)
    if CASES[name].flat:
        # Stock knows this model by the name of the whole one only.
        config = json.loads((folder / "config.json").read_text())
        config["model_type"] = "qwen3_5"
        (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(CASES[name].tokens)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w1", "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    for file, content in OTHER_FILES.items():
        (folder / file).write_bytes(content.encode())
    (folder / "modeling_evil.py").write_text("raise SystemExit('this must never run')")
    (folder / "README.md").write_text("The card of the original.")
    return folder


def in_float32(model: nn.Module) -> nn.Module:
    """Stock's network computing in float32: on CPU it cannot run bfloat16 experts, and bfloat16 rounds."""
    floating = (mx.bfloat16, mx.float16)
    model.update(tree_map(lambda a: a.astype(mx.float32) if a.dtype in floating else a, model.parameters()))
    return model


def stock(folder: Path) -> nn.Module:
    """Loaded by stock mlx-lm, strictly, in float32."""
    return in_float32(load_stock_model(folder, strict=True)[0])


def tokens(name: str, length: int) -> mx.array:
    return mx.array(token_ids(CASES[name])[:length].astype(np.int32))[None]


def largest_difference(a: mx.array, b: mx.array) -> float:
    return float(np.abs(np.array(a - b)).max())


def all_tensors(folder: Path) -> dict[str, mx.array]:
    """Every tensor of the model*.safetensors in a folder."""
    tensors: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= mx.load(str(file))  # pyright: ignore[reportOperatorIssue]
    return tensors
