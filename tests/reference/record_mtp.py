"""The MTP layer through transformers' MtpModel, which wires any model's `mtp.*` around its own decoder layer.

transformers 5.23 skips `mtp.*` when it loads Qwen3.5, because its config class lacks the two fields set here; the
generic model then reads this family's names as they are.

It numbers positions by the drafted-from token, one later than the hidden state's. Rotary angles only enter as
differences within the layer's own cache, so for text the two ways are the same; here they are not shifted.
"""

from typing import Any

import numpy as np
import torch
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel


class Mtp:
    """The MTP layer over the trunk `model` (which was loaded from its checkpoint's folder), with its own cache."""

    def __init__(self, model: Any) -> None:
        model.config.num_mtp_layers = 1
        model.config.mtp_layer_types = ["full_attention"]
        self.head = model.lm_head
        self.layer = MtpModel.from_pretrained(model).eval()
        self.layer.set_attn_implementation("eager")
        self.cache = MtpCache(config=model.config.get_mtp_config())
        self.length = 0

    def step(self, next_ids: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """next_ids: [1, T], the token after each hidden state [1, T, C]. Returns logits [T, V], hidden [1, T, C]."""
        positions = torch.arange(self.length, self.length + next_ids.shape[1])[None]
        self.length += next_ids.shape[1]
        hidden = self.layer.forward_layer(0, hidden, positions, self.cache, input_ids=next_ids)
        return self.head(hidden)[0], hidden


def record_mtp(model: Any, tokens: torch.Tensor, known: int) -> dict[str, np.ndarray]:
    """tokens: [1, T]. The trunk's first T - 1 hidden states with the tokens after them, then two chained drafts."""
    mtp = Mtp(model)
    trunk = model.model(tokens, use_cache=False).last_hidden_state
    logits, hidden = mtp.step(tokens[:, 1:], trunk[:, :-1])
    drafts, rows = [], []
    row, last = logits[-1], hidden[:, -1:]
    for _ in range(2):
        drafts.append(int(row[:known].argmax()))
        chained, last = mtp.step(torch.tensor([drafts[-1:]]), last)
        row = chained[0]
        rows.append(row)
    return {
        "mtp_logits": logits.numpy(),
        "mtp_hidden": hidden[0].numpy(),
        "mtp_drafts": np.array(drafts),
        "mtp_chained": torch.stack(rows).numpy(),
    }
