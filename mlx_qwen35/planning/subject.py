"""What a plan is of: a size of the family at some bits, or a checkpoint as it is stored. Headers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_qwen35.hub.family import FamilyEntry
from mlx_qwen35.hub.headers import TensorEntry
from mlx_qwen35.hub.memory import MTP_PREFIXES, VISION_PREFIXES, weights_as_loaded
from mlx_qwen35.hub.text_sizes import TextSizes

BITS = (16, 8, 6, 4, 3)
GROUP_SIZE = 64


@dataclass(frozen=True)
class Subject:
    """Weights and shapes of one network at one precision.

    label: how its weights are stored   text: config.json's text_config   weights: bytes as loaded, MTP layer included
    always, routed: bytes of weights that one decoded token reads, whatever it is; of all routed experts together
    """

    label: str
    text: Mapping[str, Any]
    weights: int
    always: float
    routed: float

    @property
    def sizes(self) -> TextSizes:
        return TextSizes.from_config(self.text)

    def step_bytes(self, context: int, batch: int = 1, kv_bits: int = 16) -> float:
        """Of one step that decodes a token for each of `batch` sequences of `context` tokens: the least it must read
        and write. Weights once; of the experts those that some token chooses, if they choose at random; each state in
        and out; each KV cache once.
        """
        idle = 1 - (self.text.get("num_experts_per_tok") or 0) / (self.text.get("num_experts") or 1)
        sizes = self.sizes
        state = 2 * (sizes.recurrent_state_bytes + sizes.conv_tail_bytes())
        per_sequence = state + context * sizes.kv_bytes_per_token(kv_bits)
        return self.always + self.routed * (1 - idle**batch) + batch * per_sequence


def of_family(entry: FamilyEntry, bits: int) -> Subject:
    """A released size, all matrices at so many bits with groups of GROUP_SIZE (routers as the converter keeps them)."""
    weights = entry.weight_bytes(bits, GROUP_SIZE, mtp=True)
    stored = bits if bits == 16 else bits + 32 / GROUP_SIZE
    expert = 3 * entry.hidden * entry.expert_width * entry.layers
    routed = entry.experts * expert * stored / 8
    always = (entry.active_parameters - entry.experts_per_token * expert) * stored / 8
    return Subject(f"{bits} bits", entry.text_config, weights, always, routed)


def of_checkpoint(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> Subject:
    """A checkpoint under any of the family's spellings, from its config and tensor headers. Decides nothing about
    whether it loads.
    """
    always, routed = 0.0, 0.0
    has_head = any("lm_head." in name for name in tensors)
    for name, entry in tensors.items():
        if name.startswith(VISION_PREFIXES + MTP_PREFIXES) or (has_head and "embed_tokens." in name):
            continue  # read for images, for drafts, or one row of it
        if ".experts." in name or ".switch_mlp." in name:
            routed += entry.nbytes
        else:
            always += entry.nbytes
    return Subject("as stored", config.get("text_config", config), weights_as_loaded(tensors), always, routed)
