"""The family table and the memory plan, against published totals and the arithmetic done by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen35.errors import ConfigError, MemoryPlanError
from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.hub.headers import TensorEntry
from mlx_qwen35.hub.machine import GIB, Machine, _container_limit, this_machine
from mlx_qwen35.hub.memory import best_for, check, family_bytes, fits, plan_memory, weights_as_loaded
from mlx_qwen35.hub.text_sizes import TextSizes, score_bytes

MIB = 1 << 20

# short: published safetensors total; GiB at bf16, 8-bit g64, 4-bit g64, 4-bit g32; GiB of MTP at bf16 and 4-bit
WEIGHTS = {
    "0.8b": (873_438_784, 1.40, 0.74, 0.39, 0.44, 0.04, 0.01),
    "2b": (2_274_069_824, 3.51, 1.86, 0.99, 1.10, 0.11, 0.03),
    "4b": (4_659_865_088, 7.83, 4.16, 2.20, 2.45, 0.22, 0.06),
    "9b": (9_653_104_368, 16.68, 8.86, 4.69, 5.21, 0.45, 0.13),
    "27b": (27_781_427_952, 50.10, 26.62, 14.09, 15.66, 0.79, 0.22),
    "35b-a3b": (35_951_822_704, 64.56, 34.30, 18.17, 20.19, 1.57, 0.44),
    "122b-a10b": (125_086_497_008, 227.45, 120.83, 63.99, 71.10, 4.70, 1.32),
    "397b-a17b": (403_397_928_944, 738.25, 392.20, 207.70, 230.76, 12.29, 3.46),
}
# short: full, linear layers; KV bytes a token at 16 and 8 bits; of the MTP layer; MiB of state, of conv tail
CACHES = {
    "0.8b": (6, 18, 12_288, 6_528, 2_048, 18, 0.63),
    "2b": (6, 18, 12_288, 6_528, 2_048, 18, 0.63),
    "4b": (8, 24, 32_768, 17_408, 4_096, 48, 1.12),
    "9b": (8, 24, 32_768, 17_408, 4_096, 48, 1.12),
    "27b": (16, 48, 65_536, 34_816, 4_096, 144, 2.81),
    "35b-a3b": (10, 30, 20_480, 10_880, 2_048, 60, 1.41),
    "122b-a10b": (12, 36, 24_576, 13_056, 2_048, 144, 2.53),
    "397b-a17b": (15, 45, 30_720, 16_320, 2_048, 180, 3.16),
}
# GiB of the state of one sequence at 32k and 262,144 tokens
SEQUENCE = {"0.8b": (0.39, 3.02), "27b": (2.14, 16.14), "35b-a3b": (0.68, 5.06), "397b-a17b": (1.12, 7.68)}
ROUNDED = 0.0051  # the tables print two decimals


def machine(gib: float) -> Machine:
    return Machine(round(gib * GIB), round(gib * GIB), round(gib * GIB), "test")


@pytest.mark.parametrize("short", FAMILY)
def test_sizes_of_the_family_equal_the_published_ones(short: str) -> None:
    entry = FAMILY[short]
    total, *sizes, mtp16, mtp4 = WEIGHTS[short]
    assert entry.parameters == total
    ours = [entry.weight_bytes(bits, group) / GIB for bits, group in ((16, 64), (8, 64), (4, 64), (4, 32))]
    assert ours == pytest.approx(sizes, abs=ROUNDED)
    extra = [(entry.weight_bytes(bits, mtp=True) - entry.weight_bytes(bits)) / GIB for bits in (16, 4)]
    assert extra == pytest.approx([mtp16, mtp4], abs=ROUNDED)


@pytest.mark.parametrize("short", FAMILY)
def test_caches_of_the_family(short: str) -> None:
    entry, sizes = FAMILY[short], TextSizes.from_config(FAMILY[short].text_config)
    full, linear, kv16, kv8, mtp_kv, state, conv = CACHES[short]
    assert (sizes.full_layers, sizes.linear_layers) == (entry.full_layers, entry.linear_layers) == (full, linear)
    assert sizes.kv_bytes_per_token() == entry.kv_bytes_per_token == kv16
    assert sizes.kv_bytes_per_token(8) == kv8
    assert sizes.kv_bytes_per_token(32) == 2 * kv16
    assert entry.mtp_kv_bytes_per_token == mtp_kv
    assert sizes.recurrent_state_bytes == entry.recurrent_state_bytes == state * MIB
    assert sizes.conv_tail_bytes() == entry.conv_tail_bytes
    assert sizes.conv_tail_bytes() / MIB == pytest.approx(conv, abs=ROUNDED)


@pytest.mark.parametrize("short", SEQUENCE)
def test_the_state_of_a_sequence(short: str) -> None:
    entry = FAMILY[short]
    for context, expected in zip((32_768, 262_144), SEQUENCE[short], strict=True):
        plan = plan_memory(entry.text_config, weight_bytes=0, context=context, kv_bits=16, machine=machine(1000))
        kv, state = plan.rows[1].nbytes, plan.rows[2].nbytes
        assert (kv + state) / GIB == pytest.approx(expected, abs=ROUNDED)


@pytest.mark.parametrize("short", FAMILY)
def test_real_configs_say_the_same(short: str) -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "configs"
    names = {path.name.split(".reconstructed")[0].removesuffix(".json").lower(): path for path in folder.glob("*.json")}
    if short not in names:
        pytest.skip("SKIPPED LOUDLY: the released configs are not on this machine")
    config = json.loads(names[short].read_text())
    assert TextSizes.from_config(config) == TextSizes.from_config(FAMILY[short].text_config)


def test_active_parameters_name_the_size() -> None:
    published = {"35b-a3b": 2.95, "122b-a10b": 9.01, "397b-a17b": 16.33, "27b": 25.62, "0.8b": 0.75}
    ours = {short: FAMILY[short].active_parameters / 1e9 for short in published}
    assert ours == pytest.approx(published, abs=ROUNDED)


def test_a_prefill_window_keeps_the_scores_of_one_layer_within_a_gibibyte() -> None:
    for entry in FAMILY.values():
        sizes = TextSizes.from_config(entry.text_config)
        assert sizes.prefill_window(100) == 100
        assert sizes.prefill_window(2048) == 1024
        for context in (8_192, 32_768, 131_072, 262_144):
            window = sizes.prefill_window(context)
            assert window == 64 or score_bytes(sizes.heads, window, context) <= GIB
            assert window == 1024 or score_bytes(sizes.heads, 2 * window, context) > GIB
    # 8.59 GB a layer is what was reported for 122B at 32k with windows of 2,048
    assert score_bytes(FAMILY["122b-a10b"].text_config["num_attention_heads"], 2048, 32_768) == 8_589_934_592


def test_the_plan_adds_up_and_its_table_shows_it() -> None:
    plan = plan_memory(FAMILY["35b-a3b"].text_config, weight_bytes=18 * GIB, context=8192, batch=3, machine=machine(24))
    assert plan.total == sum(row.nbytes for row in plan.rows)
    assert plan.rows[1].nbytes == 3 * 8192 * 20_480
    assert plan.rows[2].nbytes == 3 * (60 * MIB + FAMILY["35b-a3b"].conv_tail_bytes)
    assert plan.fits
    check(plan)
    table = plan.table()
    assert "8,192 tokens x 3 sequences" in table
    assert f"{plan.total / GIB:.2f} GiB" in table
    assert [line.split()[0] for line in table.splitlines()] == [
        "weights", "KV", "DeltaNet", "KV", "workspace", "needed", "this",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("short", "bits", "context", "gib", "suggestion"),
    [
        ("27b", 4, 262_144, 21.5, "With --kv-bits 4 it fits."),
        ("27b", 4, 262_144, 20, "Give a smaller context, such as 65,536 tokens."),
        ("27b", 16, 8_192, 24, "Qwen/Qwen3.5-27B fits at 4 bits: mlx-qwen35 convert Qwen/Qwen3.5-27B --bits 4."),
        ("27b", 16, 8_192, 40, "Qwen/Qwen3.5-27B fits at 8 bits"),
        ("122b-a10b", 4, 8_192, 24, "Qwen/Qwen3.5-35B-A3B fits at 4 bits"),
        ("0.8b", 16, 8_192, 0.5, "the bundled demo does"),
    ],
)
def test_a_model_too_large_is_refused_with_a_way_out(
    short: str, bits: int, context: int, gib: float, suggestion: str
) -> None:
    entry = FAMILY[short]
    plan = plan_memory(
        entry.text_config,
        weight_bytes=entry.weight_bytes(bits, mtp=True),
        context=context,
        machine=machine(gib),
        title=entry.hub_id,
    )
    assert not plan.fits
    with pytest.raises(MemoryPlanError) as error:
        check(plan)
    assert suggestion in str(error.value)
    assert str(error.value).startswith(f"{entry.hub_id} needs ")
    assert plan.table() in str(error.value)
    assert "--force" in str(error.value)
    check(plan, force=True)


def test_a_suggested_context_fits() -> None:
    entry, here = FAMILY["27b"], machine(25)
    weights = entry.weight_bytes(4)
    assert plan_memory(entry.text_config, weight_bytes=weights, context=131_072, machine=here).fits
    assert not plan_memory(entry.text_config, weight_bytes=weights, context=262_144, machine=here).fits


def test_float32_caches_count_double() -> None:
    config = FAMILY["0.8b"].text_config
    half = plan_memory(config, weight_bytes=0, context=4096, machine=machine(9))
    full = plan_memory(config, weight_bytes=0, context=4096, kv_bits=32, activation_bytes=4, machine=machine(9))
    assert full.rows[1].nbytes == 2 * half.rows[1].nbytes
    assert full.rows[2].nbytes - half.rows[2].nbytes == FAMILY["0.8b"].conv_tail_bytes  # S is float32 in both


def test_the_best_checkpoint_for_common_machines() -> None:
    best = {gib: best_for(round(gib * GIB * 3 / 4)) for gib in (4, 8, 16, 24, 32, 64, 128, 512)}
    named = {gib: (found[0].short, found[1]) for gib, found in best.items() if found}
    assert named == {
        4: ("2b", 4),
        8: ("4b", 4),
        16: ("9b", 8),
        24: ("27b", 4),
        32: ("35b-a3b", 4),
        64: ("35b-a3b", 8),
        128: ("122b-a10b", 4),
        512: ("397b-a17b", 4),
    }
    assert best_for(GIB) is None
    entry = FAMILY["9b"]
    assert fits(family_bytes(entry, 8), entry, 8)
    assert not fits(family_bytes(entry, 8) - 1, entry, 8)


def test_weights_as_loaded_leave_out_the_vision_tower() -> None:
    names = {
        "model.language_model.layers.0.x": 1,
        "lm_head.weight": 2,
        "mtp.fc.weight": 4,
        "model.visual.pos_embed.weight": 8,
        "vision_tower.blocks.0.x": 16,
        "language_model.mtp.fc.weight": 32,
    }
    tensors = {name: TensorEntry(name, "U8", (size,), Path("x"), 0, size) for name, size in names.items()}
    assert weights_as_loaded(tensors) == 1 + 2 + 4 + 32
    assert weights_as_loaded(tensors, mtp=False) == 1 + 2


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": None},
        {"num_hidden_layers": "40"},
        {"hidden_size": 0},
        {"head_dim": -1},
        {"vocab_size": 1 << 40},
        {"num_key_value_heads": True},
        {"num_experts_per_tok": 1.5},
    ],
)
def test_a_config_without_sizes_names_the_key(change: dict[str, Any]) -> None:
    config = {"text_config": FAMILY["35b-a3b"].text_config | change}
    with pytest.raises(ConfigError, match=next(iter(change))):
        plan_memory(config, weight_bytes=0, context=10, machine=machine(1))


def test_layer_types_win_over_the_interval() -> None:
    config = FAMILY["0.8b"].text_config | {"layer_types": ["full_attention"] * 20 + ["linear_attention"] * 4}
    sizes = TextSizes.from_config(config)
    assert (sizes.full_layers, sizes.linear_layers) == (20, 4)


def test_this_machine_has_memory(tmp_path: Path) -> None:
    here = this_machine()
    assert 0 < here.available <= here.total
    assert 0 < here.budget <= here.total
    assert this_machine(working_set=123).budget in (123, here.budget)
    assert _container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert _container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _container_limit(tmp_path) == 900
