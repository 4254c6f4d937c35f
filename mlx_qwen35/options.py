"""The numbers that shape an answer, as plain data that every part may hold. No mlx, no text."""

from __future__ import annotations

from dataclasses import dataclass


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
