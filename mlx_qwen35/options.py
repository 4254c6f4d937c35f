"""What users may choose, as plain data that every part may hold. No mlx, no text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
USUAL_CONTEXT = 8_192  # tokens the memory plan counts when the user names no context
PLAIN = 16  # kv_bits of a cache that is not quantized
KV_BITS = (16, 8, 4)
MOST_DRAFTS = 4  # tokens guessed ahead of one that is drawn
MOST_LOGPROBS = 20  # alternatives told beside a drawn token
DRAFTS = ("auto", "off", *range(1, MOST_DRAFTS + 1))
DRAFT_VALUES = f'"auto", "off", or 1 to {MOST_DRAFTS}'
Draft = str | int  # one of DRAFTS


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the most likely one; 0 or 1 switches a filter off.

    Order: penalties, temperature, top-k, top-p, min-p. Presence and frequency count the answer's own tokens,
    repetition the prompt's too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class CacheOptions:
    """What is remembered, and how.

    kv_bits: of keys and values: 16, 8 or 4
    prefix_bytes: memory for prefixes of earlier texts, open sessions aside; None takes half of what caches may have, up
    to 8 GiB
    disk: folder in which prefixes outlive the process; None keeps them in memory only
    disk_bytes: of that folder, for all models together   disk_bytes_a_day: written at most, to spare the SSD
    max_sequences: answered at the same time; more wait
    draft: tokens guessed ahead by the MTP layer, or by what repeats, and checked together: "auto" finds out how many
    pay, 1 to 4 is a fixed number, "off" none, and then nothing is kept for it
    read_ahead: while nobody asks, compute what the next prompt of a conversation will begin with
    exact: a token's numbers never depend on what else is computed beside it, to the last bit
    """

    kv_bits: int = PLAIN
    prefix_bytes: int | None = None
    disk: Path | None = None
    disk_bytes: int = 20 * GIB
    disk_bytes_a_day: int = 40 * GIB
    max_sequences: int = 16
    draft: Draft = "auto"
    exact: bool = False
    read_ahead: bool = True


def is_draft(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value in DRAFTS
