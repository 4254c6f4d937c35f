"""`mlx-qwen35 plan` as a user runs it."""

from __future__ import annotations

import json

import pytest

from mlx_qwen35.cli import main
from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.hub.machine import MACS
from mlx_qwen35.models.fit import headers_of
from mlx_qwen35.planning.chips import CHIPS
from mlx_qwen35.planning.fitting import CONTEXTS, longest_context, mac, plan_of
from mlx_qwen35.planning.subject import of_family


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_what_fits_which_mac(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "35b-a3b")
    assert "Qwen3.5-35B-A3B, 32,768 tokens of context" in text
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines() if " GB " in line}
    assert "16 GB" not in lines  # not at any precision
    assert lines["24 GB"][2:6] == ["-", "-", "-", "-"]  # 3 bits only
    assert lines["32 GB"][5] != "-"  # 4 bits


def test_the_longest_context_fits_and_the_next_does_not() -> None:
    subject, machine = of_family(FAMILY["27b"], 4), mac(32)
    longest = longest_context(subject, machine, 1, 16)
    assert longest is not None
    after = CONTEXTS[CONTEXTS.index(longest) + 1]
    assert plan_of(subject, machine, longest, 1, 16, "").fits
    assert not plan_of(subject, machine, after, 1, 16, "").fits


def test_a_model_of_a_short_context_is_promised_no_longer_one_than_yarn_gives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = json.loads(out(capsys, "demo", "--json", "--context", "4096"))
    native = headers_of("demo")[0]["text_config"]["max_position_embeddings"]
    assert set(data["longest_context"]["512"].values()) == {4 * native}


def test_every_chip_comes_with_memories_of_the_list() -> None:
    assert {memory for chip in CHIPS for memory in chip.memories} == set(MACS)


def test_quantized_kv_and_several_sequences_change_the_cache_alone(capsys: pytest.CaptureFixture[str]) -> None:
    one = json.loads(out(capsys, "9b", "--json"))["plans"][0]["bytes"]
    many = json.loads(out(capsys, "9b", "--json", "--batch", "4", "--kv-bits", "8"))["plans"][0]["bytes"]
    assert many["weights"] == one["weights"]
    assert many["KV cache"] == pytest.approx(4 * one["KV cache"] * 8.5 / 16)
    assert many["DeltaNet state"] == 4 * one["DeltaNet state"]


def test_the_roofline_says_what_it_assumes(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "35b-a3b", "--roofline")
    assert "M3 Ultra" in text
    assert "Assumed: " in text
    assert "launches" in text.splitlines()[-1]


def test_every_size_in_one_go(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(out(capsys, "--json"))
    assert [plan["model"] for plan in data] == [entry.name for entry in FAMILY.values()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["no-such"], "no-such"), (["4b", "--context", "0"], "--context"), (["4b", "--kv-bits", "5"], "--kv-bits")],
)
def test_what_cannot_be_planned_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
