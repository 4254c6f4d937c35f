"""The limits of speed against what is counted from the graphs, and against the published totals."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_qwen35.counting.report import WINDOW, cost
from mlx_qwen35.hub.family import FAMILY, VOCABULARY
from mlx_qwen35.hub.text_sizes import TextSizes
from mlx_qwen35.planning.chips import CHIPS, find, label
from mlx_qwen35.planning.roofline import limits, matrix_parameters, prompt_flops
from mlx_qwen35.planning.subject import BITS, Subject, of_checkpoint, of_family


@pytest.mark.parametrize("size", ["27b", "35b-a3b", "122b-a10b"])
def test_the_bytes_of_a_token_are_those_counted_from_the_graph(size: str) -> None:
    counted = cost("ours", size, "uniform", context=1024)
    planned = of_family(FAMILY[size], 4).step_bytes(1024)
    # The table of sizes keeps routers at 8 bits in files, and counts them at the matrices' here: under 1 %.
    assert planned == pytest.approx(counted.minimum, rel=0.01)
    assert planned < counted.nbytes


@pytest.mark.parametrize("size", ["27b", "35b-a3b"])
def test_the_arithmetic_of_a_prompt_is_that_of_the_graph(size: str) -> None:
    """A window without a context. Our kernels' own products (the delta rule) are not in the graph's count."""
    counted = cost("ours", size, "uniform", WINDOW, 0).flops / WINDOW
    sizes = TextSizes.from_config(FAMILY[size].text_config)
    assert 2 * matrix_parameters(sizes) == pytest.approx(counted, rel=0.02)
    assert prompt_flops(sizes, WINDOW) > counted


@pytest.mark.parametrize("size", sorted(FAMILY))
def test_matrices_are_the_active_parameters_without_the_head(size: str) -> None:
    entry = FAMILY[size]
    active = entry.active_parameters - VOCABULARY * entry.hidden
    # Routers, norms and convolutions are left out: under 2 % in every size.
    assert matrix_parameters(TextSizes.from_config(entry.text_config)) == pytest.approx(active, rel=0.02)


def test_limits_that_others_have_published() -> None:
    """27B at 4 bits on 819 GB/s: 55 tokens a second; 35B-A3B: 454 (both at 1,024 tokens)."""
    ultra = find("Apple M3 Ultra")
    assert ultra is not None
    assert limits(of_family(FAMILY["27b"], 4), ultra, 1024).decode == pytest.approx(55, rel=0.02)
    assert limits(of_family(FAMILY["35b-a3b"], 4), ultra, 1024).decode == pytest.approx(454, rel=0.02)


def test_sequences_share_weights_but_not_states_and_few_experts() -> None:
    dense, mixture = of_family(FAMILY["27b"], 4), of_family(FAMILY["35b-a3b"], 4)
    one, eight = dense.step_bytes(1024), dense.step_bytes(1024, batch=8)
    own = 2 * (dense.sizes.recurrent_state_bytes + dense.sizes.conv_tail_bytes()) + 1024 * 65536
    assert eight - one == pytest.approx(7 * own, rel=1e-9)
    # 64 choices of 256, some of them the same: nearly eight times the experts of one.
    experts = (mixture.step_bytes(0, 8) - mixture.always - 8 * _state(mixture)) / (
        mixture.step_bytes(0) - mixture.always - _state(mixture)
    )
    assert 7 < experts < 8


def _state(subject: Subject) -> int:
    return 2 * (subject.sizes.recurrent_state_bytes + subject.sizes.conv_tail_bytes())


def test_fewer_bits_and_shorter_contexts_are_faster() -> None:
    chip = find("M4 Max")
    assert chip is not None
    speeds = [limits(of_family(FAMILY["9b"], bits), chip, 4096).decode for bits in BITS]
    assert speeds == sorted(speeds)
    assert limits(of_family(FAMILY["9b"], 4), chip, 131_072).decode < speeds[BITS.index(4)]


def test_a_checkpoint_counts_as_the_table_does(tmp_path: Any) -> None:
    """The demo's own headers: bfloat16, tied or not, with an MTP layer that plain decoding does not read."""
    from mlx_qwen35.hub.names import demo_folder
    from mlx_qwen35.models.fit import headers_of

    config, tensors = headers_of(str(demo_folder()))
    subject = of_checkpoint(config, tensors)
    read = sum(e.nbytes for n, e in tensors.items() if "mtp." not in n and "embed_tokens" not in n)
    tied = sum(e.nbytes for n, e in tensors.items() if "embed_tokens" in n)
    has_head = any("lm_head" in name for name in tensors)
    assert subject.always + subject.routed == read + (0 if has_head else tied)


@pytest.mark.parametrize(
    ("name", "cores", "found"),
    [
        ("Apple M4 Max", 32, "M4 Max, 32 cores"),
        ("Apple M4 Max", 40, "M4 Max, 40 cores"),
        ("m4 max", None, "M4 Max, 40 cores"),
        ("Apple M1", 7, "M1"),
        ("Apple M2 Ultra", 60, "M2 Ultra"),
    ],
)
def test_chips_by_the_name_that_macos_gives(name: str, cores: int | None, found: str) -> None:
    chip = find(name, cores)
    assert chip is not None
    assert label(chip) == found


def test_a_chip_that_is_not_in_the_table_is_none() -> None:
    assert find("Apple M9 Extreme") is None


def test_no_two_chips_have_one_label() -> None:
    assert len({label(chip) for chip in CHIPS}) == len(CHIPS)
