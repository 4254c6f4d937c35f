"""The network against transformers on torch CPU, float32, on tiny random checkpoints with awkward sizes.

Recorded by tests/reference/record.py; logits are of order 1 to 10. Tolerance 1e-4: both sides are float32 and sum
in different orders; transformers' own chunked and one-shot prefill differ by up to 4e-4 where decays are deep, and
each checkpoint was recorded with how closely transformers agrees with itself.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from tests.reference import CASES, recorded, write_checkpoint
from tests.support.float32 import load_float32

TOLERANCE = 1e-4
WITH_MTP = [name for name in CASES if "mtp_logits" in recorded(name)]


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory):
    """Each checkpoint's network, as the machine runs it ("adapted") and as Metal would run it, in float32 ("plain")."""
    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def network(name: str, form: str) -> Model:
        path: Path = folder / name
        if not path.exists():
            write_checkpoint(name, path)
        if form == "adapted":
            return load_float32(path).model
        model = load_model(path, adapt=False).model
        model.update(tree_map(lambda a: a.astype(mx.float32), model.parameters()))
        return model

    return network


def assert_close(what: str, ours: mx.array, reference: np.ndarray) -> None:
    difference = float(np.abs(np.array(ours) - reference).max())
    assert difference <= TOLERANCE, f"{what}: differs by {difference:.2e}"


def batch(tokens: np.ndarray) -> mx.array:
    return mx.array(tokens.astype(np.int32))[None]


@pytest.mark.parametrize("form", ["adapted", "plain"])
@pytest.mark.parametrize("name", CASES)
class TestAgainstTransformers:
    @pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
    def test_logits(self, networks, name: str, form: str, length: int) -> None:
        reference = recorded(name)
        logits = networks(name, form)(batch(reference["tokens"][:length]))[0]
        kept = mx.array(reference[f"positions_{length}"].astype(np.int32))
        assert_close(f"logits at length {length}", logits[kept], reference[f"logits_{length}"])

    @pytest.mark.parametrize("prefill", [1, 64, 100])
    def test_prefill_then_cached_decode(self, networks, name: str, form: str, prefill: int) -> None:
        reference, model = recorded(name), networks(name, form)
        expected = reference[f"cached_{prefill}"]
        tokens, cache = reference["tokens"], model.make_cache()
        logits = [model(batch(tokens[:prefill]), cache)[0, -1]]
        for t in range(prefill, prefill + len(expected) - 1):
            logits.append(model(batch(tokens[t : t + 1]), cache)[0, 0])
        assert_close(f"decode after a prefill of {prefill}", mx.stack(logits), expected)

    def test_windows_of_any_length_equal_one_pass(self, networks, name: str, form: str) -> None:
        reference, model = recorded(name), networks(name, form)
        cache, logits, start = model.make_cache(), [], 0
        for length in (3, 40, 1, 2, 33, 5, 116):
            logits.append(model(batch(reference["tokens"][start : start + length]), cache)[0])
            start += length
        kept = mx.array(reference["positions_200"].astype(np.int32))
        assert_close("windows of mixed lengths", mx.concatenate(logits)[kept], reference["logits_200"])

    def test_greedy_continuation(self, networks, name: str, form: str) -> None:
        reference, model = recorded(name), networks(name, form)
        cache, tokens = model.make_cache(), []
        known = CASES[name].tokens  # ids past the tokenizer's last are never sampled
        logits = model(batch(reference["greedy_prompt"]), cache)
        for _ in reference["greedy"]:
            tokens.append(int(mx.argmax(logits[0, -1, :known]).item()))
            logits = model(mx.array([[tokens[-1]]]), cache)
        assert tokens == reference["greedy"].tolist()

    def test_hidden_states_layer_by_layer(self, networks, name: str, form: str) -> None:
        reference, model = recorded(name), networks(name, form)
        length = reference["hidden_final"].shape[0]
        x = model.embed(batch(reference["tokens"][:length]))
        for i, layer in enumerate(model.layers):
            x = layer(x)
            assert_close(f"output of layer {i}", x[0], reference["hidden_layers"][i])
        assert_close("after the final norm", model.language_model.model.norm(x)[0], reference["hidden_final"])

    def test_unequal_positions_on_the_three_axes(self, networks, name: str, form: str) -> None:
        reference, model = recorded(name), networks(name, form)
        positions = mx.array(reference["mrope_positions"].astype(np.int32))[:, None]
        length = positions.shape[-1]
        logits = model(batch(reference["tokens"][:length]), positions=positions)[0]
        assert_close("logits at unequal positions", logits, reference["mrope_logits"])

    def test_text_positions_are_three_equal_axes(self, networks, name: str, form: str) -> None:
        reference, model = recorded(name), networks(name, form)
        positions = mx.broadcast_to(mx.arange(65), (3, 1, 65))
        logits = model(batch(reference["tokens"][:65]), positions=positions)[0]
        assert_close("explicit text positions", logits, reference["logits_65"])


@pytest.mark.parametrize("form", ["adapted", "plain"])
@pytest.mark.parametrize("name", WITH_MTP)
def test_mtp_drafts_and_chained_drafts(networks, name: str, form: str) -> None:
    from mlx_qwen35.caches.kv import KVCache

    reference, model = recorded(name), networks(name, form)
    length = reference["mtp_logits"].shape[0]
    tokens = batch(reference["tokens"][: length + 1])
    hidden = model.hidden_states(tokens[:, :-1])
    cache = KVCache()
    drafted = model.mtp(hidden, model.embed(tokens[:, 1:]), cache)
    assert_close("MTP hidden states", drafted[0], reference["mtp_hidden"])
    assert_close("MTP logits", model.logits(drafted)[0], reference["mtp_logits"])
    # Chained: the module's own output is the next hidden state, the draft the next token.
    hidden = drafted[:, -1:]
    for draft, expected in zip(reference["mtp_drafts"], reference["mtp_chained"]):
        hidden = model.mtp(hidden, model.embed(mx.array([[int(draft)]])), cache)
        assert_close("chained MTP logits", model.logits(hidden)[0, 0], expected)
