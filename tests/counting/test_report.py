"""The counts of whole networks: stock's as counted by reading its code, the minimum as arithmetic has it."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_qwen35.cli import main
from mlx_qwen35.counting.report import SIZES, WINDOW, cost
from mlx_qwen35.hub.family import FAMILY


def test_stock_as_counted_by_hand_from_mlx_lms_code() -> None:
    """27B: 21 launches of a DeltaNet mixer and 6 of a feed-forward; attention 18 + 6, and 1 more here: it copies
    queries and keys before it rotates a part of each head, and splits off the gate without a copy."""
    dense = cost("stock", "27b", "uniform")
    assert (dense.delta.launches, dense.attention.launches) == (27, 25)
    mixture = cost("stock", "35b-a3b", "uniform")
    # 21 + 22 by hand, and the three index arrays that gathering experts makes; the conv tail is too small to copy.
    assert (mixture.delta.launches, mixture.attention.launches) == (45, 44)
    assert 1650 < dense.launches < 1750
    assert 1700 < mixture.launches < 1850


def test_an_attention_layer_moves_nothing_for_its_own_sake() -> None:
    """Nine launches beside the feed-forward: two norms, two matmuls, and these."""
    names = cost("ours", "27b", "uniform").attention.names
    parts = {"attention_prologue": 1, "cache write": 2, "ScaledDotProductAttention": 1, "_gated": 1, "add_rms_norm": 2}
    assert {name: names[name] for name in parts} == parts
    assert not {"copy", "AsType", "Contiguous", "RMSNorm", "RoPE", "Sigmoid"} & set(names)


@pytest.mark.parametrize(("size", "most"), [("27b", 0.35), ("35b-a3b", 0.24), ("122b-a10b", 0.24)])
def test_a_decoded_token_takes_a_fraction_of_stocks_launches(size: str, most: float) -> None:
    """What the kernels are for. A copy or a cast that comes into a layer shows here."""
    assert cost("ours", size, "uniform").launches <= most * cost("stock", size, "uniform").launches


@pytest.mark.parametrize("engine", ["stock", "ours"])
@pytest.mark.parametrize(("size", "gigabytes"), [("27b", 14.78), ("35b-a3b", 1.80), ("122b-a10b", 5.39)])
def test_minimum_as_the_roofline_has_it(engine: str, size: str, gigabytes: float) -> None:
    """Weights of 4.5 bits, float32 state in and out, keys and values of 1,024 tokens; routers have 8 bits here."""
    counted = cost(engine, size, "uniform")
    assert counted.minimum / 1e9 == pytest.approx(gigabytes, rel=0.02)
    assert counted.minimum < counted.nbytes < 1.10 * counted.minimum


def test_our_recipe_reads_more_than_four_bits() -> None:
    assert 1.02 < cost("ours", "35b-a3b", "balanced").minimum / cost("ours", "35b-a3b", "uniform").minimum < 1.5


def test_a_window_of_a_prompt_reads_every_expert_and_fewer_bytes_a_token() -> None:
    window, token = cost("stock", "35b-a3b", "uniform", WINDOW, 0), cost("stock", "35b-a3b", "uniform")
    weights = FAMILY["35b-a3b"].weight_bytes(4)
    assert 0.9 * weights < window.minimum < weights  # without embedding and head, which nobody asks for
    assert window.nbytes / WINDOW < token.nbytes


def test_nothing_is_made_not_even_at_397b() -> None:
    before = mx.get_active_memory()
    cost("ours", "397b-a17b", "balanced")
    assert mx.get_active_memory() - before < 50e6


def test_the_command_prints_a_table_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "0.8b"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| 0.8b | stock |") == printed.count("| 0.8b | ours |") == 4
    assert set(SIZES) <= set(FAMILY)
    assert main(["kernels", "7b"]) == 2
    assert capsys.readouterr().err == f"mlx-qwen35: No size is called '7b'; known are {', '.join(FAMILY)}.\n"


def test_counting_leaves_mlx_lm_as_others_import_it() -> None:
    program = (
        "from mlx_qwen35.counting.report import cost\ncost('stock', '0.8b', 'uniform')\n"
        "import sys; print([m for m in sys.modules if m.startswith('mlx_lm')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
