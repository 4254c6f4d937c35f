"""How often the MTP layer's first draft is what the model itself would have said, at temperature 0.

Each wanted answer is read in one pass; at every place of it, the MTP layer drafts the token after next from the trunk's
hidden state and the next token, and the draft counts as accepted when it is the trunk's own first choice there.
"""

from __future__ import annotations

from pathlib import Path

from examples.demo_model.encoding import Encoded, encode
from examples.demo_model.samples import Sample


def acceptance(folder: Path, samples: list[Sample]) -> float:
    """-> accepted share of all drafts over the answers of `samples`."""
    import mlx.core as mx

    from mlx_qwen35.models.weights import load_model

    model = load_model(folder).model
    accepted = drafts = 0
    for encoded in (encode(sample) for sample in samples):
        right, of = _one(mx, model, encoded)
        accepted, drafts = accepted + right, drafts + of
    return accepted / drafts


def _one(mx, model, encoded: Encoded) -> tuple[int, int]:
    ids = mx.array([encoded.prompt + encoded.completion])
    hidden = model.hidden_states(ids)
    # Position t drafts token t + 2; the first draft is made at the prompt's last token but one.
    first, last = len(encoded.prompt) - 1, ids.shape[1] - 2
    drafted = model.mtp(hidden[:, :-1], model.embed(ids[:, 1:]))
    drafts = model.logits(drafted[:, first:last]).argmax(-1)
    choices = model.logits(hidden[:, first + 1 : last + 1]).argmax(-1)
    return int((drafts == choices).sum().item()), last - first
