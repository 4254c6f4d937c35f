"""A tiny random checkpoint that can be chatted with: it answers nonsense, at once, until its token limit.

The weights and the tokenizer are tests.reference's, the chat template is the demo's. Tests that need the real path
from a folder to an answer use it; use the `tiny_chat` fixture (conftest.py), which writes it once a session.
"""

import json
import shutil
from pathlib import Path

from tests.reference import write_checkpoint

TEMPLATE = Path(__file__).parents[2] / "mlx_qwen35" / "demo_checkpoint" / "chat_template.jinja"
CONTEXT = 65_536


def write_tiny_chat(folder: Path, case: str = "dense", context: int = CONTEXT) -> Path:
    """Write a checkpoint that `Runtime.load` takes into `folder`, and return the folder."""
    write_checkpoint(case, folder)
    shutil.copy(TEMPLATE, folder / "chat_template.jinja")
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    text["max_position_embeddings"] = context
    # Without a token that ends an answer, tests know how long one is: until its limit, or until it is stopped.
    del text["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(tokenizer.replace("<|im_end|>", "<|end|>").replace("<|endoftext|>", "<|e|>"))
    return folder
