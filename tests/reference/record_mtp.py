"""The MTP layer, which transformers skips on load, wired from transformers' own decoder layer and norms.

Embedding then hidden; the hidden state after the trunk's final norm; positions of the hidden states, not shifted;
shared embedding and head; a draft's own hidden state (after mtp.norm) feeds the next draft.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import DynamicCache


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """`mtp.*` by the name after it, float32, experts stacked the way transformers' layer wants them."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {k[4:]: v.float() for k, v in load_file(file).items() if k.startswith("mtp.")}
    experts = "layers.0.mlp.experts"
    if f"{experts}.0.gate_proj.weight" in found:
        rows = []
        while f"{experts}.{len(rows)}.gate_proj.weight" in found:
            rows.append([found.pop(f"{experts}.{len(rows)}.{w}_proj.weight") for w in ("gate", "up", "down")])
        found[f"{experts}.gate_up_proj"] = torch.stack([torch.cat(row[:2]) for row in rows])
        found[f"{experts}.down_proj"] = torch.stack([row[2] for row in rows])
    return found


class Mtp:
    """One MTP layer with its own KV cache over the trunk `model`."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        self.config = copy.deepcopy(model.config)
        self.config.num_hidden_layers = 1
        self.config.layer_types = ["full_attention"]
        weights = _tensors(folder)
        self.fc = weights.pop("fc.weight")
        self.embedding_norm = self._norm(weights.pop("pre_fc_norm_embedding.weight"))
        self.hidden_norm = self._norm(weights.pop("pre_fc_norm_hidden.weight"))
        self.norm = self._norm(weights.pop("norm.weight"))
        self.layer = type(model.model.layers[0])(self.config, 0).eval()
        self.layer.load_state_dict({k.removeprefix("layers.0."): v for k, v in weights.items()})
        self.cache = DynamicCache(config=self.config)
        self.length = 0

    def _norm(self, weight: torch.Tensor) -> Any:
        norm = type(self.model.model.norm)(weight.shape[0], eps=self.config.rms_norm_eps)
        norm.load_state_dict({"weight": weight})
        return norm

    def step(self, next_ids: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """next_ids: [T], the token after each hidden state [T, C]. Returns logits [T, V] and hidden [T, C]."""
        count = hidden.shape[0]
        embedded = self.model.get_input_embeddings()(next_ids)
        joined = torch.cat([self.embedding_norm(embedded), self.hidden_norm(hidden)], dim=-1)
        x = (joined @ self.fc.T)[None]
        positions = torch.arange(self.length, self.length + count)
        angles = self.model.model.rotary_emb(x, positions.view(1, 1, -1).expand(3, 1, -1))
        seen = torch.arange(self.length + count)
        mask = torch.where(seen[None, :] <= positions[:, None], 0.0, float("-inf"))[None, None]
        y = self.layer(x, position_embeddings=angles, attention_mask=mask, past_key_values=self.cache)
        self.length += count
        y = self.norm(y)[0]
        return self.model.lm_head(y), y


def record_mtp(model: Any, folder: Path, tokens: torch.Tensor, known: int) -> dict[str, np.ndarray]:
    """tokens: [1, T]. The trunk's first T - 1 hidden states with the tokens after them, then two chained drafts.

    `mtp_logits` [T-1, V], `mtp_hidden` [T-1, C]; `mtp_drafts` [2]: the first two drafted ids; `mtp_chained`
    [2, V]: the logits after feeding each of them back, which draft the second and the third token.
    """
    mtp = Mtp(model, folder)
    trunk = model.model(tokens, use_cache=False).last_hidden_state[0]
    logits, hidden = mtp.step(tokens[0, 1:], trunk[:-1])
    drafts, rows = [], []
    row, last = logits[-1], hidden[-1:]
    for _ in range(2):
        drafts.append(int(row[:known].argmax()))
        chained, last = mtp.step(torch.tensor(drafts[-1:]), last)
        row = chained[0]
        rows.append(row)
    return {
        "mtp_logits": logits.numpy(),
        "mtp_hidden": hidden.numpy(),
        "mtp_drafts": np.array(drafts),
        "mtp_chained": torch.stack(rows).numpy(),
    }
