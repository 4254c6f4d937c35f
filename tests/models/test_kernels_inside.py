"""Kernels inside the network: every candidate of every operation, emulated, gives what transformers or one long window
gives, so that an argument or a stride that is swapped at a call shows, whichever candidate is called.

Beside the demo checkpoint, whose key and value heads are alike, networks of unlike sizes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
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
from tests.reference import CASES, recorded
from tests.reference.tiny import write_case, write_checkpoint
from tests.reference.tiny_cases import TinyCase
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


@dataclass(frozen=True)
class Played:
    """The text that stayed, and the logits at each of its positions, or at those that are known."""

    text: list[int]
    logits: mx.array
    positions: mx.array


AFTER = DECODED + 6  # tokens behind the prompt


def play(model: Model, text: Sequence[int], prompt: int) -> Played:
    """A prompt, tokens decoded after it, a window of drafts of which two stay, some tokens more.

    text: what to feed; where it ends, the network's own choice. Of the drafts those that do not stay are others.
    """
    cache, kept, logits = model.make_cache(), list(text[:prompt]), []

    def step(ids: Sequence[int], stay: int | None = None) -> None:
        window = Window(mx.array(list(ids), mx.int32), cache, draft=stay is not None)
        logits.append(model.logits(model.step([window])).astype(mx.float32)[: stay or len(ids)])
        if stay is not None:
            commit(cache, len(ids), stay)

    def following() -> int:
        if len(kept) < len(text):
            kept.append(text[len(kept)])
        else:
            kept.append(int(logits[-1][-1].argmax().item()))  # pyright: ignore[reportArgumentType]
        return kept[-1]

    step(kept)
    for _ in range(DECODED):
        step([following()])
    step([following(), following(), *random_ids(6, DRAFT - 2, 100)], stay=2)
    step([following()])
    step([following(), following(), following()])
    return Played(kept, mx.concatenate(logits), mx.arange(len(kept)))


def truth(name: str, model: Model) -> Played:
    """By transformers where that is recorded, else by one window over the whole text, with the definitions."""
    with using(Selection(Override(REFERENCE))):
        if name in CASES:
            expected = recorded(name)
            positions = mx.array(expected["positions_200"].astype("int32"))
            return Played(expected["tokens"][:200].tolist(), mx.array(expected["logits_200"]), positions)
        text = play(model, random_ids(5, PROMPT, 100), PROMPT).text
        return Played(text, model(mx.array([text]))[0].astype(mx.float32), mx.arange(len(text)))


@pytest.mark.parametrize("name", ["demo", "dense", "moe", "moe packed", "family's heads"])
def test_every_candidate_gives_what_is_true(name: str, metal: Session | None) -> None:
    model = loaded(name)
    true, ran = truth(name, model), set[str]()
    for turn in range(-1, ROUNDS):
        with using(Nth(turn)) as chosen:
            prompt = len(true.text) - AFTER
            found = play(model, true.text if name in CASES else true.text[:prompt], prompt)
        assert isinstance(chosen, Nth)
        ran |= chosen.ran
        assert found.text == true.text, f"with {sorted(chosen.ran)}"
        assert distance(found.logits[true.positions], true.logits) < CLOSE, f"with {sorted(chosen.ran)}"
    assert ran >= EXPECTED[name] | {f"{operation}=metal" for operation in ALWAYS}
    if metal:
        assert all(launch.warnings == () for launch in metal.launches)


ALWAYS = ("add_rms_norm", "delta_step", "attention_prologue")
EXPERTS = {"route=metal", "expert_mlp=metal"}
EXPECTED = {
    "demo": {"gated_delta=metal"} | EXPERTS,
    "dense": set[str](),
    "moe": EXPERTS,
    "moe packed": EXPERTS,
    "family's heads": {"gated_delta=metal"},
}
