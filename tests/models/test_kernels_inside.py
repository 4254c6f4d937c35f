"""Kernels inside the network: every candidate of every operation, emulated, gives what the definitions give.

Beside the demo checkpoint, whose key and value heads are alike, networks of unlike sizes: an argument or a stride that
is swapped at a call shows in one of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_qwen35.demo_checkpoint
from mlx_qwen35.metal_kernels.operations import ACTIVATIONS, OPERATIONS, using
from mlx_qwen35.metal_kernels.override import REFERENCE, Override
from mlx_qwen35.metal_kernels.selection import Candidate, Operation, Selection
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from mlx_qwen35.models.windows import Window, commit
from tests.metal_emulator import Session
from tests.reference.tiny import write_case, write_checkpoint
from tests.reference.tiny_cases import CASES, TinyCase
from tests.support.networks import distance, random_ids

pytestmark = pytest.mark.metal
PROMPT, DECODED, DRAFT = 70, 16, 4
# float32 sums in another order, through up to eight layers: what was seen stays below 2e-5 of the largest logit.
CLOSE = 1e-4
KERNELS = [operation for operation in OPERATIONS if operation is not ACTIVATIONS]
ROUNDS = max(len(operation.candidates) for operation in KERNELS) - 1

# Widths of the family's DeltaNet heads, for the kernels that take no others; else as small as can be.
FAMILYS_HEADS = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "vocab_size": 160,
    "intermediate_size": 96,
    "rope_parameters": {"mrope_section": [3, 3, 2]},
}


class Nth(Selection):
    """Of each operation the candidate number `turn` after the definition, or the last before it that takes such
    arguments. Remembers which ones ran."""

    def __init__(self, turn: int) -> None:
        super().__init__(Override())
        self.turn, self.ran = turn, set[str]()

    def choose(self, operation: Operation, arguments: Sequence[Any]) -> Candidate:
        fitting = [c for c in operation.candidates[: self.turn + 2] if c.fits(*arguments)]
        self.ran.add(f"{operation.name}={fitting[-1].name}")
        return fitting[-1]

    def run(self, operation: Operation, arguments: Sequence[Any]) -> Any:
        return self.choose(operation, arguments).call(*arguments)  # a failure is a failure


def loaded(name: str) -> Model:
    """As on a Mac, but in float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        if name == "demo":
            path = Path(mlx_qwen35.demo_checkpoint.__path__[0])
        elif name == "family's heads":
            write_case(TinyCase(name, "", tokens=120, text=FAMILYS_HEADS), path)
        else:
            write_checkpoint(name.removesuffix(" packed"), path)
        model = load_model(path, adapt=False).model
        model.set_dtype(mx.float32)
        if name.endswith(" packed"):
            nn.quantize(model, group_size=32, bits=4)
        mx.eval(model.parameters())
    return model


def play(model: Model) -> tuple[list[int], mx.array]:
    """A prompt, tokens decoded from it, a window of drafts of which two stay, one token more. Greedy choices, logits."""
    cache, kept, tokens = model.make_cache(), [], []

    def step(ids: Sequence[int], draft: bool = False) -> int:
        logits = model.logits(model.step([Window(mx.array(ids, mx.int32), cache, draft)])).astype(mx.float32)
        kept.append(logits)
        tokens.append(int(logits[-1].argmax().item()))  # pyright: ignore[reportArgumentType]
        return tokens[-1]

    step(random_ids(5, PROMPT, 100))
    for _ in range(DECODED):
        step([tokens[-1]])
    step([tokens[-1], *random_ids(6, DRAFT - 1, 100)], draft=True)
    commit(cache, DRAFT, 2)
    step([tokens[-1]])
    return tokens, mx.concatenate(kept)


@pytest.mark.parametrize("name", ["demo", "moe", "moe packed", "family's heads"])
def test_every_candidate_gives_the_definitions_tokens(name: str, metal: Session | None) -> None:
    model = loaded(name)
    with using(Selection(Override(REFERENCE))):
        wanted, logits = play(model)
    ran: set[str] = set()
    for turn in range(ROUNDS):
        with using(Nth(turn)) as chosen:
            found, theirs = play(model)
        assert isinstance(chosen, Nth)
        if chosen.ran <= ran:
            continue
        ran |= chosen.ran
        assert found == wanted, f"with {sorted(chosen.ran)}"
        assert distance(theirs, logits) < CLOSE, f"with {sorted(chosen.ran)}"
    assert ran >= EXPECTED[name] | {"add_rms_norm=metal", "delta_step=metal"}
    if metal:
        assert all(launch.warnings == () for launch in metal.launches)


# Beside the demo's, what only some networks can show.
EXPECTED = {
    "demo": set[str](),
    "moe": set[str](),
    "moe packed": set[str](),
    "family's heads": {"gated_delta=metal"},
}
