"""A tiny random network with the family's real vocabulary: 248,320 rows, of which 248,077 have a token. Says noise."""

import json
import shutil
from pathlib import Path

from tests.reference.tiny import write_case
from tests.reference.tiny_cases import TinyCase
from tests.support.real_tokenizer import folder as real_tokenizer
from tests.support.tiny_chat import TEMPLATE

ROWS, TOKENS, END = 248_320, 248_077, 248_046
CASE = TinyCase(
    "wide",
    "dense, tied, with an MTP layer; the real vocabulary over a network of nothing",
    tokens=TOKENS,
    tied=True,
    text={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 24,
        "max_position_embeddings": 65_536,
        "vocab_size": ROWS,
        "rope_parameters": {"mrope_section": [2, 1, 1]},
    },
)


def write_wide(folder: Path) -> Path:
    """Write the checkpoint into `folder` and return it; skips the calling test where the tokenizer is absent."""
    tokenizer = real_tokenizer()
    write_case(CASE, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    shutil.copy(TEMPLATE, folder / "chat_template.jinja")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = END
    (folder / "config.json").write_text(json.dumps(config))
    return folder
