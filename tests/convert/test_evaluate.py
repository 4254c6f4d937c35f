"""KL between a network and its conversions: the number is right, layer by layer as from whole models."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35 import demo_checkpoint
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.cli import main
from mlx_qwen35.convert import eval_command
from mlx_qwen35.convert.evaluate import Measure, eval_kl
from mlx_qwen35.convert.layerwise import LayerwiseModel
from mlx_qwen35.convert.plot import Point, quality_plot
from mlx_qwen35.convert.report import packed_size, size_of
from mlx_qwen35.convert.rounded_model import RoundedModel, uniform
from mlx_qwen35.convert.texts import Tokens, bundled, tokenized
from mlx_qwen35.errors import CheckpointError, UserError
from mlx_qwen35.models.weights import load_model, survey
from tests.convert.originals import rewrite, stored, write_fp8
from tests.convert.support import all_tensors
from tests.convert.test_calibrate import texts as tiny_texts
from tests.reference import write_checkpoint

UNTIED, TIED, MOE = "dense", "demo", "moe"
DEMO = Path(demo_checkpoint.__file__).parent


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    for name in (UNTIED, MOE):
        write_checkpoint(name, folder / name)
    return {name: folder / name for name in (UNTIED, MOE)} | {TIED: DEMO}


def texts(name: str) -> list[Tokens]:
    return tiny_texts(name) if name != TIED else tokenized(DEMO, bundled("evaluation")[:2], longest=70)[:4]


def rounded(folder: Path, bits: int) -> RoundedModel:
    found = survey(folder)
    return RoundedModel(found, uniform(found, bits, 32))


def whole_model_kl(folder: Path, bits: int, given: list[Tokens], known: int) -> tuple[float, float]:
    """The same number from whole models, text by text, in float64. -> mean KL, top-1"""
    plain, other = load_model(folder).model, load_model(folder, joined=False).model
    model = rounded(folder, bits)
    for path, packing in model.packings.items():
        if packing is None or path.startswith("mtp."):
            continue
        module: Any = other
        for part in path.removesuffix(".weight").split("."):
            module = module[int(part)] if isinstance(module, list) else module[part]
        module.weight = model._rounded(module.weight, packing, path)
    divergences, same = [], []
    for text in given:
        p, q = (np.array(m(mx.array([text.ids]))[0, :, :known], dtype=np.float64) for m in (plain, other))
        p, q = (
            x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
            for x in (p, q)
        )
        divergences.append((np.exp(p) * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
    return float(np.concatenate(divergences).mean()), float(np.concatenate(same).mean())


@pytest.mark.parametrize("name", [UNTIED, TIED, MOE])
def test_layer_by_layer_gives_what_whole_models_give(name: str, sources: dict[str, Path]) -> None:
    folder, given = sources[name], texts(name)
    found = eval_kl(folder, {"q": rounded(folder, 4)}, given).comparisons["q"]
    mean, top1 = whole_model_kl(folder, 4, given, Tokenizer.from_folder(folder).vocab_size)
    assert found.overall.tokens == sum(len(t.ids) for t in given)
    assert found.overall.mean == pytest.approx(mean, rel=2e-3)  # float32 logits on both ways, batched and alone
    assert found.overall.top1 == pytest.approx(top1, abs=0.02)  # near-ties of a random network
    assert len(found.layer_errors) == len(survey(folder).config.layer_types)
    assert all(0 < e < 1 for e in found.layer_errors)


def test_more_bits_are_nearer_and_nothing_is_nearer_than_the_noise_floor(sources: dict[str, Path]) -> None:
    folder = sources[UNTIED]
    found = eval_kl(folder, {str(b): rounded(folder, b) for b in (3, 4, 8)}, texts(UNTIED))
    means = [found.comparisons[b].overall.mean for b in ("3", "4", "8")]
    assert means == sorted(means, reverse=True)
    assert 0 <= found.noise_floor.mean < means[-1] / 100
    assert found.noise_floor.top1 == 1


def test_a_checkpoint_is_at_no_distance_from_itself(sources: dict[str, Path]) -> None:
    found = eval_kl(sources[MOE], {"itself": sources[MOE]}, texts(MOE)).comparisons["itself"]
    assert found.overall.mean == 0
    assert found.layer_errors == (0.0,) * len(found.layer_errors)


@pytest.mark.parametrize("name", [UNTIED, TIED])
def test_contestants_that_share_one_survey_do_not_share_weights(name: str, sources: dict[str, Path]) -> None:
    """A tied embedding is kept until the end, as the head: who loaded last decided it."""
    folder, given = sources[name], texts(name)
    found = survey(folder)

    def measured(*bits: int) -> dict[str, Any]:
        contestants = {str(b): RoundedModel(found, uniform(found, b, 32)) for b in bits}
        return dict(eval_kl(LayerwiseModel(found), contestants, given).comparisons)

    alone = {str(b): eval_kl(folder, {"q": rounded(folder, b)}, given).comparisons["q"] for b in (3, 8)}
    assert measured(3, 8) == measured(8, 3) == alone


def fp8_and_plain(folder: Path) -> tuple[Path, dict[str, np.ndarray], Path]:
    """An FP8 original, its true values, and the BF16 one it was made from; both with a tokenizer for any text."""
    fp8, truth = write_fp8("moe_separate", folder / "fp8")
    plain = write_checkpoint("moe_separate", folder / "plain")
    (fp8 / "tokenizer.json").write_bytes((plain / "tokenizer.json").read_bytes())
    return fp8, truth, plain


def test_an_fp8_original_is_decoded_on_either_side(tmp_path: Path) -> None:
    """Against the BF16 checkpoint that it was made from, and against the checkpoint of its own decoded values."""
    fp8, truth, plain = fp8_and_plain(tmp_path)
    decoded = write_checkpoint("moe_separate", tmp_path / "decoded")
    values = {n: mx.array(truth[n]) if n in truth else v for n, v in all_tensors(decoded).items()}
    rewrite(decoded, {name: stored(value) for name, value in values.items()})
    given = tiny_texts("moe_separate")
    assert eval_kl(decoded, {"q": fp8}, given).comparisons["q"].overall.mean == 0
    one_way, other_way = (
        eval_kl(a, {"q": b}, given).comparisons["q"].overall.mean for a, b in ((plain, fp8), (fp8, plain))
    )
    assert one_way == pytest.approx(other_way, rel=0.5)  # KL is symmetric to second order
    assert one_way > 1e-6


def test_domains_and_positions_divide_all_tokens(sources: dict[str, Path]) -> None:
    given = [replace(t, domain=d) for t, d in zip(texts(UNTIED), ("a", "b", "a", "c"))]
    found = eval_kl(sources[UNTIED], {"q": rounded(sources[UNTIED], 4)}, given).comparisons["q"]
    counts = {d: sum(len(t.ids) for t in given if t.domain == d) for d in "abc"}
    assert {d: m.tokens for d, m in found.by_domain.items()} == counts
    assert {p: m.tokens for p, m in found.by_position.items()} == {"0-15": 64, "16-63": 34 + 17 + 48 + 1, "64-255": 3}
    weighted = sum(m.mean * m.tokens for m in found.by_domain.values()) / sum(counts.values())
    assert weighted == pytest.approx(found.overall.mean)


def test_quantiles_are_of_tokens() -> None:
    found = Measure.of(np.arange(101.0), np.arange(101) < 50)
    assert (found.median, found.p95, found.p99, found.mean) == (50, 95, 99, 50)
    assert found.top1 == pytest.approx(50 / 101)


def test_another_network_is_refused_in_one_line(sources: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="q is not of the same network"):
        eval_kl(sources[UNTIED], {"q": sources[MOE]}, texts(UNTIED))


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    eval_command.add_arguments(parser)
    return parser.parse_args(list(words))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The demo checkpoint and a stand-in for its conversion: itself."""
    copy = tmp_path / "demo-copy"
    copy.mkdir()
    for file in DEMO.glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    return DEMO, copy


def test_the_command_prints_a_table_and_writes_a_card(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, copy = pair
    assert eval_command.run(arguments(str(source), str(copy), "--tokens", "300", "--card")) == 0
    printed = capsys.readouterr().out
    assert "demo-copy" in printed
    assert "noise floor" in printed
    card = json.loads((copy / "quality.json").read_text())
    assert card["comparison"]["overall"]["mean"] == 0
    assert set(card["points"]) == {"4", "5", "6", "8"}
    kl = [card["points"][b]["overall"]["mean"] for b in ("4", "5", "6", "8")]
    assert kl == sorted(kl, reverse=True)
    sizes = [card["points"][b]["size"]["bits_per_weight"] for b in ("4", "5", "6", "8")]
    assert sizes == sorted(sizes)
    assert (copy / "quality.png").read_bytes().startswith(b"\x89PNG")
    readme = (copy / "README.md").read_text()
    assert f"eval kl {source} {copy} --card --tokens 300\n" in readme
    assert readme.startswith("---\nlicense:")
    assert "stock 4 bits" in readme


def test_convert_writes_the_card_too_and_stdout_stays_the_folder(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(eval_command, "TOKENS", 200)
    out = tmp_path / "out"
    assert main(["convert", str(tiny_chat), "--out", str(out), "--card"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert {"README.md", "quality.json", "quality.png"} <= {p.name for p in out.iterdir()}
    assert f"eval kl {tiny_chat} {out} --card\n" in (out / "README.md").read_text()


@pytest.mark.parametrize(("more", "told"), [(["--tokens", "1"], "too little"), (["other", "--card"], "one conversion")])
def test_the_command_says_what_it_cannot_do(more: list[str], told: str, pair: tuple[Path, Path]) -> None:
    source, copy = pair
    words = [str(source), str(copy), *(str(copy) if w == "other" else w for w in more)]
    with pytest.raises(UserError, match=told):
        eval_command.run(arguments(*words))


def test_sizes_from_headers_are_those_of_the_files(sources: dict[str, Path]) -> None:
    found = survey(sources[MOE])
    size = size_of(found)
    entries = found.files.tensors
    trunk = sum(t.nbytes for n, t in entries.items() if "mtp" not in n)
    assert size.nbytes == pytest.approx(trunk, rel=0.01)  # A_log is counted as the float32 it becomes
    assert 16 <= size.bits_per_weight < 16.1
    assert size.token_bytes < size.nbytes  # experts that are not chosen, and the embedding's other rows
    assert 4 < packed_size(found, uniform(found, 4, 32)).bits_per_weight < 8


def test_the_command_takes_an_fp8_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fp8, _, plain = fp8_and_plain(tmp_path)
    (tmp_path / "texts.txt").write_text("The river is long.\n\nThe sea is wide.")
    words = ("--texts", str(tmp_path / "texts.txt"), "--stock", "--json")
    assert eval_command.run(arguments(str(fp8), str(plain), *words)) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"]
    assert set(found) == {"plain", *(f"stock {bits} bits" for bits in (4, 5, 6, 8))}
    assert found["stock 8 bits"]["overall"]["mean"] < found["plain"]["overall"]["mean"] < 1  # FP8 keeps four bits


def test_a_plot_is_drawn_for_a_single_point_without_noise_or_layers() -> None:
    picture = quality_plot([Point("only", 10**9, 0.01, True)], [0.1], 0.0)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
