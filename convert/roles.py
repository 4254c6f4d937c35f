"""What part of the network a parameter is, by its name alone; formats are chosen by role (recipes.py, sizing.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass

# The first mark that a parameter's name contains decides.
_MARKS = (
    ("mtp.fc.", "mtp_join"),
    (".embed_tokens.", "embedding"),
    (".lm_head.", "head"),
    (".mlp.gate.", "router"),
    (".shared_expert_gate.", "shared_gate"),
    (".shared_expert.", "shared_expert"),
    (".switch_mlp.down_proj.", "experts_down"),
    (".switch_mlp.", "experts_in"),
    (".mlp.down_proj.", "feed_forward_down"),
    (".mlp.", "feed_forward_in"),
    (".linear_attn.in_proj_a.", "delta_rates"),
    (".linear_attn.in_proj_b.", "delta_rates"),
    (".linear_attn.in_proj_", "delta_in"),
    (".linear_attn.out_proj.", "delta_out"),
    (".self_attn.o_proj.", "attention_out"),
    (".self_attn.q_norm.", "small"),
    (".self_attn.k_norm.", "small"),
    (".self_attn.", "attention_in"),
)
ROLES = {
    "embedding": "embedding",
    "head": "output head",
    "router": "routers",
    "shared_gate": "gates of shared experts",
    "experts_in": "experts, gate and up",
    "experts_down": "experts, down",
    "shared_expert": "shared experts",
    "feed_forward_in": "feed-forward, gate and up",
    "feed_forward_down": "feed-forward, down",
    "delta_in": "DeltaNet, inputs",
    "delta_rates": "DeltaNet, decay and rate (a, b)",
    "delta_out": "DeltaNet, output",
    "attention_in": "attention, q k v",
    "attention_out": "attention, output",
    "mtp": "MTP layer",
    "mtp_experts": "MTP layer, experts",
    "mtp_join": "MTP layer, joining matrix",
    "small": "norms, convolutions, decays",
    "vision": "vision tower",
}
VISION = "vision_tower."
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Place:
    """Where a parameter stands. layer: its number, or None outside the layers."""

    role: str
    layer: int | None
    mtp: bool


def place_of(target: str) -> Place:
    """The place of a parameter with this name, in the network's spelling or with `vision_tower.` in front."""
    found = _LAYER.search(target)
    layer, mtp = int(found[1]) if found else None, target.startswith("mtp.")
    if target.startswith(VISION):
        return Place("vision", layer, False)
    role = next((role for mark, role in _MARKS if mark in target), "small")
    if mtp and role not in ("router", "shared_gate", "mtp_join", "small"):
        role = "mtp_experts" if role.startswith("experts") else "mtp"
    return Place(role, layer, mtp)


def token_share(place: Place, chosen_of_experts: float, tied: bool) -> float:
    """The part of a parameter that is read for one token of plain decoding.

    chosen_of_experts: experts a token uses, as a fraction of all
    """
    if place.mtp or place.role == "vision":
        return 0.0  # read for drafts and images only
    if place.role == "embedding":
        return 1.0 if tied else 0.0  # one row of it, unless it is the head too
    return chosen_of_experts if place.role.startswith("experts") else 1.0
