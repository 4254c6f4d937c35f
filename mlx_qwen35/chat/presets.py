"""Sampling presets of the family, by mode and size. Knows nothing of how tokens are sampled.

Source: the "Best Practices" of the published model cards (27B, 35B-A3B, 4B; 0.8B has its own values for non-thinking
reasoning; Qwen3.6 drops the presence penalty of general thinking). The 2B card was not seen; 2B shares 0.8B's template
and is taken to share its values. All cards: min_p 0, repetition_penalty 1.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_qwen35.errors import RequestError
from mlx_qwen35.options import Sampling

FAMILY: dict[str, Sampling] = {
    "thinking": Sampling(1.0, 0.95, 20, presence_penalty=1.5),
    "thinking-coding": Sampling(0.6, 0.95, 20),
    "non-thinking": Sampling(0.7, 0.8, 20, presence_penalty=1.5),
    "non-thinking-reasoning": Sampling(1.0, 1.0, 40, presence_penalty=2.0),
}
_SMALL = {"non-thinking-reasoning": Sampling(1.0, 1.0, 20, presence_penalty=2.0)}
_QWEN36 = {"thinking": replace(FAMILY["thinking"], presence_penalty=0.0)}
BY_SIZE: dict[str, dict[str, Sampling]] = {
    "0.8b": _SMALL,
    "2b": _SMALL,
    "3.6-27b": _QWEN36,
    "3.6-35b-a3b": _QWEN36,
}


def choose(preset: str | None, thinking: bool, size: str | None = None) -> Sampling:
    """The values of `preset`, or of the mode's general preset when None, for a model size such as "27b".

    An unknown size has the family's values. Raises RequestError for an unknown preset.
    """
    name = preset or ("thinking" if thinking else "non-thinking")
    if name not in FAMILY:
        raise RequestError(f"There is no preset {name[:40]!r}; the presets are {', '.join(FAMILY)}.")
    return BY_SIZE.get((size or "").lower(), {}).get(name, FAMILY[name])
