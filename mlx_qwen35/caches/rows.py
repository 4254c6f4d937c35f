"""What the caches of attention layers offer, in whatever format, and one sequence's caches layer by layer.

Each sequence keeps cache objects of its own, so sequences join and leave freely, and formats may differ in one step.
"""

from __future__ import annotations

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.draft_memory import DraftKV, LastHidden
from mlx_qwen35.caches.kv import AttentionCache, SequenceKV

__all__ = ["AttentionCache", "SequenceKV"]

LayerCache = SequenceKV | DeltaState | DraftKV | LastHidden
SequenceCache = list[LayerCache]  # one sequence's memory: layer by layer, then what the MTP layer remembers, if it does


def attention_layers(cache: SequenceCache) -> list[SequenceKV | DraftKV]:
    """What is stored in spans."""
    return [layer for layer in cache if not isinstance(layer, (DeltaState, LastHidden))]


def recurrent_layers(cache: SequenceCache) -> list[DeltaState | LastHidden]:
    """What is stored at checkpoints."""
    return [layer for layer in cache if isinstance(layer, (DeltaState, LastHidden))]


def draft_kv(cache: SequenceCache) -> DraftKV | None:
    return next((layer for layer in cache if isinstance(layer, DraftKV)), None)
