"""Our conversion against stock mlx-lm's own of the same source: the same bits, so the same logits."""

import json
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.convert import convert as convert_by_stock

from mlx_qwen35.convert import BITS, GROUP_SIZES, convert
from mlx_qwen35.models.weights import load_model
from tests.convert.support import STOCK_READS, all_tensors, as_stock, largest_difference, stock, tokens, write_source
from tests.reference import CASES

TOLERANCE = 1e-4  # float32 on both sides, summed in different orders; logits of order 1 to 10


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("conversions")

    @cache
    def folder(name: str, by: str, bits: int = 4, group_size: int = 32) -> Path:
        source, out = root / name, root / f"{name}-{by}-{bits}-{group_size}"
        if not source.exists():
            write_source(name, source)
        if out.exists():
            return out
        if by == "us":
            convert(source, out, as_stock(bits, group_size))
        elif by == "stock":
            convert_by_stock(str(source), str(out), quantize=True, q_bits=bits, q_group_size=group_size)
        elif by == "stock unquantized":
            convert_by_stock(str(source), str(out))
        return source if by == "nobody" else out

    return folder


def assert_equal_bits(ours: Path, theirs: Path) -> None:
    mine, stocks = all_tensors(ours), all_tensors(theirs)
    assert sorted(mine) == sorted(stocks)
    for name, tensor in stocks.items():
        assert mine[name].dtype == tensor.dtype, name
        assert mx.array_equal(mine[name].view(mx.uint8), tensor.view(mx.uint8)), name


@pytest.mark.parametrize("name", [name for name in STOCK_READS if name != "flat"])
def test_every_tensor_has_stocks_bits_and_settings(folders, name: str) -> None:
    ours, theirs = folders(name, "us"), folders(name, "stock")
    assert_equal_bits(ours, theirs)
    mine, stocks = (json.loads((f / "config.json").read_text()) for f in (ours, theirs))
    for key in ("quantization", "quantization_config"):
        # Stock drops the MTP layer.
        assert {k: v for k, v in mine[key].items() if not k.startswith("mtp.")} == stocks[key]
    assert "vision_config" not in mine


@pytest.mark.parametrize(("bits", "group_size"), [*((b, 64) for b in BITS), *((4, g) for g in GROUP_SIZES if g != 64)])
def test_every_width_and_group_size_has_stocks_bits(folders, bits: int, group_size: int) -> None:
    assert_equal_bits(folders("moe", "us", bits, group_size), folders("moe", "stock", bits, group_size))


def test_a_flat_config_is_rounded_to_its_dtype(folders) -> None:
    """Stock finds no dtype in a flat config and keeps a float32 norm; ours would then make activations float32."""
    ours, theirs = all_tensors(folders("flat", "us")), all_tensors(folders("flat", "stock"))
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        same = tensor if ours[name].dtype == tensor.dtype else tensor.astype(ours[name].dtype)
        assert mx.array_equal(ours[name].view(mx.uint8), same.view(mx.uint8)), name
        assert ours[name].dtype != mx.float32 or name.endswith("A_log")


@pytest.mark.parametrize("name", CASES)
def test_stock_loads_our_conversion_strictly_and_agrees(folders, name: str) -> None:
    out = folders(name, "us")
    theirs, ours = stock(out), load_model(out).model
    window = tokens(name, 65)
    assert largest_difference(theirs(window), ours(window)) <= TOLERANCE


@pytest.mark.parametrize("name", STOCK_READS)
@pytest.mark.parametrize("form", ["stock", "stock unquantized"])
def test_stocks_conversion_loads_here_and_agrees(folders, name: str, form: str) -> None:
    out = folders(name, form)
    loaded = load_model(out)
    assert not any("norm" in note for note in loaded.notes), loaded.notes
    window = tokens(name, 65)
    assert largest_difference(stock(out)(window), loaded.model(window)) <= TOLERANCE


def test_experts_one_by_one_are_stacked_in_order(folders) -> None:
    """Stock reads no per-expert originals, so each expert is packed here by itself."""
    source, out = all_tensors(folders("moe_separate", "nobody")), all_tensors(folders("moe_separate", "us"))
    for part in ("gate_proj", "up_proj"):
        for expert in range(CASES["moe_separate"].text["num_experts"]):
            weight = source[f"model.language_model.layers.2.mlp.experts.{expert}.{part}.weight"]
            stacked = f"language_model.model.layers.2.mlp.switch_mlp.{part}"
            for suffix, expected in zip(("weight", "scales", "biases"), mx.quantize(weight, 32, 4)):
                assert mx.array_equal(out[f"{stacked}.{suffix}"][expert], expected), (part, expert, suffix)
