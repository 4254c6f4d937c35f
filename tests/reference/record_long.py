"""Records what transformers computes beyond the native context, with YaRN at three factors, into data/long.npz.

    python -m tests.reference.record_long

transformers multiplies positions and frequencies in float32, which at these positions leaves angles wrong by hundredths
of a radian. So everything is recorded twice: as it is, and with its product taken in float64, which is what the
formula says.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5

from tests.reference import DATA, token_ids
from tests.reference.record import load
from tests.reference.record_mtp import Mtp
from tests.reference.tiny import write_case
from tests.reference.tiny_cases import LONG, LONG_FACTORS, LONG_TOKENS, TinyCase

Rotary = modeling_qwen3_5.Qwen3_5TextRotaryEmbedding


def exact_angles(self, x, position_ids):
    """`Rotary.forward` with its product in float64."""
    positions = position_ids.expand(3, -1, -1)[..., None].double()
    angles = positions * self.inv_freq.double()
    cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
    sin, cos = self.recomposition_frequencies(sin), self.recomposition_frequencies(cos)
    return cos.to(x.dtype), sin.to(x.dtype)


def with_yarn(folder: Path, factor: float) -> None:
    """As the model cards say: the keys that are added to rope_parameters."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    native = text["max_position_embeddings"]
    text["rope_parameters"] |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": native}
    path.write_text(json.dumps(config))


def record(case: TinyCase, factor: float, first: int) -> dict[str, np.ndarray]:
    """Logits and the MTP layer's, at positions first, first + 1, ...; and the frequencies."""
    with tempfile.TemporaryDirectory() as folder:
        write_case(case, Path(folder))
        with_yarn(Path(folder), factor)
        model = load(Path(folder))
        tokens = torch.from_numpy(token_ids(case)[:LONG_TOKENS].astype(np.int64))[None]
        positions = torch.arange(first, first + LONG_TOKENS)[None]
        rotary = model.model.rotary_emb
        made = {"inverse_frequencies": rotary.inv_freq.numpy(), "scale": np.array(rotary.attention_scaling)}
        for name in ("as_is", "exact"):
            trunk = model.model(tokens, position_ids=positions, use_cache=False).last_hidden_state
            mtp = Mtp(model)
            mtp.length = first
            made[f"logits_{name}"] = model.lm_head(trunk)[0].numpy()
            made[f"mtp_logits_{name}"] = mtp.step(tokens[:, 1:], trunk[:, :-1])[0].numpy()
            Rotary.forward = exact_angles
        return made


@torch.no_grad()
def main() -> None:
    original, arrays = Rotary.forward, {}
    for factor, first in LONG_FACTORS.items():
        Rotary.forward = original
        arrays |= {f"{name}_{factor}": array for name, array in record(LONG, factor, first).items()}
        gap = np.abs(arrays[f"logits_exact_{factor}"] - arrays[f"logits_as_is_{factor}"]).max()
        print(f"factor {factor} at {first:,}: float32 angles move logits by {gap:.1e}")
    np.savez_compressed(DATA / "long.npz", **arrays)


if __name__ == "__main__":
    main()
