"""Formats by role and by size: what is never low, budgets that hold, recipes from a file, modes other than affine."""

import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.convert import convert as convert_by_stock

from examples.real_shapes import ORIGINAL, config_of, tensors_of
from mlx_qwen35.convert import BITS, GROUP_SIZES, ConversionPlan, Options, Packing, convert, plan_conversion
from mlx_qwen35.convert.fp8 import BlockScales
from mlx_qwen35.convert.recipes import NEVER_LOW, formats_of
from mlx_qwen35.convert.roles import ROLES, Place, place_of
from mlx_qwen35.convert.source import Source
from mlx_qwen35.convert.table import memory_line
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.hub.family import FAMILY, VOCABULARY
from mlx_qwen35.hub.headers import CheckpointFiles, TensorEntry
from mlx_qwen35.models.config import parse_config
from mlx_qwen35.models.weights import load_model, survey_files
from tests.convert.support import all_tensors, as_stock, stock, tokens, write_source

GB = 10**9


def headers_of(size: str) -> Source:
    """A released size as far as a plan needs it: its config and its tensors' shapes; there are no files."""
    entry = FAMILY[size]
    config = config_of(entry, entry.layers, VOCABULARY, mtp=True)
    file, tensors, at = Path("model.safetensors"), {}, 0
    for tensor in tensors_of(config, ORIGINAL):
        tensors[tensor.name] = TensorEntry(tensor.name, tensor.dtype, tensor.shape, file, at, at + tensor.nbytes)
        at += tensor.nbytes
    files = CheckpointFiles(Path(), tensors, {}, (file,))
    survey = survey_files(parse_config(config), files, lambda recipe: mx.zeros(1))
    return Source(size, size, Path(), config, survey, BlockScales(), ())


@pytest.fixture(scope="module")
def mixture() -> Source:
    return headers_of("35b-a3b")


@pytest.fixture(scope="module")
def dense() -> Source:
    return headers_of("27b")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("moe", tmp_path_factory.mktemp("source") / "moe")


def bits_by_role(plan: ConversionPlan) -> Iterator[tuple[str, float]]:
    for job in plan.jobs:
        yield job.parameter.place.role, job.packing.bits if job.packing else 16


def assert_nothing_decisive_is_low(plan: ConversionPlan) -> None:
    for role, bits in bits_by_role(plan):
        assert bits >= NEVER_LOW.get(role, 0), role
        assert bits == 16 or role not in ("small", "mtp_join", "vision"), role


class TestBalanced:
    @pytest.mark.parametrize("bits", BITS)
    def test_nothing_decisive_is_low_at_any_bits(self, tiny: Path, bits: int) -> None:
        assert_nothing_decisive_is_low(plan_conversion(tiny, Options(bits, 32)))

    def test_routers_are_kept_where_all_has_eight_bits_and_stock_loads_them(self, tiny: Path, tmp_path: Path) -> None:
        routing = {"router", "shared_gate"}
        for options, bits in ((Options(6, 32), 8), (Options(mode="mxfp8"), 8), (Options(8, 32), 16)):
            found = {b for role, b in bits_by_role(plan_conversion(tiny, options)) if role in routing}
            assert found == {bits}, options
        out = convert(tiny, tmp_path / "out", Options(8, 32, check_drafts=False)).out
        gate = "language_model.model.layers.0.mlp.gate"
        assert f"{gate}.scales" not in all_tensors(out)
        assert np.isfinite(np.array(stock(out)(tokens("moe", 9)))).all()
        assert np.isfinite(np.array(load_model(out).model(tokens("moe", 9)))).all()

    def test_costs_a_tenth_of_the_size_and_a_fifth_of_the_bytes_a_token_at_most(
        self, mixture: Source, dense: Source
    ) -> None:
        """Against equal bits everywhere: eight bits on all that is always active would be half again a token."""
        for source, most in ((mixture, 1.2), (dense, 1.1)):
            uniform = plan_conversion(source, Options(4, recipe="uniform"))
            balanced = plan_conversion(source, Options(4))
            assert balanced.nbytes < 1.1 * uniform.nbytes
            assert uniform.token_bytes < balanced.token_bytes < most * uniform.token_bytes

    def test_a_small_width_takes_smaller_groups_before_it_is_kept(self) -> None:
        choose = formats_of("balanced", Packing(4, 128))
        assert choose("a", Place("delta_in", 0, False), 192).packing == Packing(4, 64)
        assert choose("a", Place("delta_in", 0, False), 96).packing == Packing(4, 32)
        assert choose("a", Place("delta_in", 0, False), 40).packing is None

    def test_a_role_stands_for_every_parameter(self, mixture: Source, dense: Source) -> None:
        found = {place_of(t).role for source in (mixture, dense) for t in source.survey.plan.recipes}
        assert found | {"vision"} == set(ROLES)

    def test_the_sizes_are_those_of_the_published_arithmetic(self, mixture: Source, dense: Source) -> None:
        """19.5 GB and 1.66 GB a token, 15.1 and 14.4, without the MTP layer: worked out by others from the shapes."""
        for source, size, token in ((mixture, 19.5, 1.66), (dense, 15.1, 14.4)):
            plan = plan_conversion(source, Options(4, recipe="uniform", mtp="drop"))
            assert plan.nbytes / GB == pytest.approx(size, rel=0.01)
            assert plan.token_bytes / GB == pytest.approx(token, rel=0.02)


class TestSizes:
    @pytest.mark.parametrize("size", [13.5, 20, 28, 60])
    def test_a_size_is_kept_and_used(self, mixture: Source, size: float) -> None:
        plan = plan_conversion(mixture, Options(size=int(size * GB)))
        written = sum(len(file.header()) + file.nbytes for file in plan.files)
        assert written <= size * GB
        assert_nothing_decisive_is_low(plan)
        most = plan_conversion(mixture, Options(8, recipe="uniform")).nbytes
        # What is left is less than one step of one layer's experts, unless all have the most bits that help, or
        # the second budget, bytes a token, is what binds.
        assert written > min(size * GB, most) * 0.93

    def test_more_room_never_means_fewer_bits_in_all(self, mixture: Source) -> None:
        sizes = [plan_conversion(mixture, Options(size=int(s * GB))).nbytes for s in (14, 17, 20, 24, 30)]
        assert sizes == sorted(sizes)

    def test_the_sensitive_parts_get_more_bits_than_the_bulk(self, mixture: Source) -> None:
        bits: dict[str, list[float]] = {}
        for role, n in bits_by_role(plan_conversion(mixture, Options(size=20 * GB))):
            bits.setdefault(role, []).append(n)
        mean = {role: np.mean(values) for role, values in bits.items()}
        assert mean["delta_out"] > mean["delta_in"] > mean["experts_down"] >= mean["experts_in"]
        assert mean["head"] > mean["experts_in"]

    def test_bytes_a_token_are_a_budget_of_their_own(self, mixture: Source) -> None:
        wide = plan_conversion(mixture, Options(size=30 * GB))
        narrow = plan_conversion(mixture, Options(size=30 * GB, token_bytes=int(1.7 * GB)))
        assert narrow.token_bytes <= 1.7 * GB < wide.token_bytes
        assert narrow.nbytes <= 30 * GB

    def test_a_mac_keeps_room_for_a_conversation(self, mixture: Source) -> None:
        plan = plan_conversion(mixture, Options(fit=32 << 30))
        assert 18 * GB < plan.nbytes < 0.75 * (32 << 30)
        assert "fits a Mac with 32 GB" in memory_line(plan)

    def test_what_cannot_be_reached_is_said_with_what_can(self, dense: Source) -> None:
        with pytest.raises(ConfigError, match=r"At the fewest bits .* GB"):
            plan_conversion(dense, Options(size=5 * GB))

    def test_the_folder_has_the_size_that_was_asked_for(self, tiny: Path, tmp_path: Path) -> None:
        out = convert(tiny, tmp_path / "out", Options(size=1_100_000, group_size=32, check_drafts=False)).out
        size = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
        assert 900_000 < size <= 1_100_000
        assert np.isfinite(np.array(stock(out)(tokens("moe", 9)))).all()
        assert np.isfinite(np.array(load_model(out).model(tokens("moe", 9)))).all()


@pytest.fixture(scope="module")
def tiny_plan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


class TestRecipeFiles:
    def write(self, folder: Path, content: object) -> Path:
        path = folder / "recipe.json"
        path.write_text(json.dumps(content))
        return path

    def test_roles_and_patterns_are_obeyed(self, tiny: Path, tmp_path: Path) -> None:
        recipe = self.write(
            tmp_path,
            {
                "base": {"bits": 3, "group_size": 32},
                "roles": {"head": 8, "delta_out": "keep", "experts_down": {"bits": 5, "group_size": 64}},
                "tensors": {"*.layers.1.*.experts_in*": 8, "*.layers.0.*.switch_mlp.up_proj": 6},
            },
        )
        out = convert(tiny, tmp_path / "out", Options(recipe=recipe, check_drafts=False))
        found = {job.parameter.path: job.packing for job in out.plan.jobs}
        at = "language_model.model.layers"
        assert found["language_model.lm_head"] == Packing(8, 32)
        assert found[f"{at}.0.linear_attn.out_proj"] is None
        assert found[f"{at}.2.mlp.switch_mlp.down_proj"] == Packing(5, 64)
        assert found[f"{at}.0.mlp.switch_mlp.up_proj"] == Packing(6, 32)
        assert found[f"{at}.1.mlp.switch_mlp.up_proj"] == Packing(3, 32)
        assert np.isfinite(np.array(stock(out.out)(tokens("moe", 9)))).all()

    @pytest.mark.parametrize(
        ("content", "named"),
        [
            ({"rolls": {}}, "'rolls'"),
            ({"roles": {"hed": 8}}, "'hed'"),
            ({"roles": {"router": 4}}, "routers need at least 8"),
            ({"roles": {"small": 8}}, "never packed"),
            ({"roles": {"head": 7}}, "7 bits"),
            ({"roles": {"head": True}}, "head"),
            ({"roles": {"head": {"bits": 4, "mood": 1}}}, "head"),
            ({"base": {"mode": "mxfp4", "bits": 8}}, "mxfp4"),
            ({"roles": []}, "roles"),
            ([1], "JSON"),
        ],
    )
    def test_a_mistake_is_named(self, tiny: Path, tmp_path: Path, content: object, named: str) -> None:
        with pytest.raises(ConfigError) as error:
            plan_conversion(tiny, Options(recipe=self.write(tmp_path, content)))
        assert named in str(error.value)
        assert "\n" not in str(error.value)

    @settings(max_examples=60, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 99) | st.text(max_size=6),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["base", "roles", "tensors", "bits", "group_size", "mode", "head", "x"]), inner
                )
            ),
        )
    )
    def test_no_file_is_more_than_a_line(self, tiny_plan_folder: Path, content: object) -> None:
        path = self.write(tiny_plan_folder, content)
        said = ""
        try:
            formats_of(path, Packing(4, 64))
        except ConfigError as error:
            said = str(error)
        assert "\n" not in said


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_other_modes_have_stocks_bits(tiny: Path, tmp_path: Path, mode: str) -> None:
    ours = convert(tiny, tmp_path / "ours", as_stock(None, None, mode=mode)).out
    convert_by_stock(str(tiny), str(tmp_path / "theirs"), quantize=True, q_mode=mode)
    mine, theirs = all_tensors(ours), all_tensors(tmp_path / "theirs")
    assert sorted(mine) == sorted(theirs)
    for name, tensor in theirs.items():
        assert mx.array_equal(mine[name].view(mx.uint8), tensor.view(mx.uint8)), name
    assert np.isfinite(np.array(stock(ours)(tokens("moe", 9)))).all()
    assert np.isfinite(np.array(load_model(ours).model(tokens("moe", 9)))).all()


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_a_balanced_recipe_keeps_other_modes_to_the_bulk(tiny: Path, tmp_path: Path, mode: str) -> None:
    plan = convert(tiny, tmp_path / "out", Options(mode=mode, check_drafts=False)).plan
    modes = {(j.parameter.place.role, j.packing.mode) for j in plan.jobs if j.packing}
    assert ("experts_in", mode) in modes
    assert {("router", "affine"), ("delta_out", "affine"), ("head", "affine")} <= modes
    assert np.isfinite(np.array(stock(tmp_path / "out")(tokens("moe", 9)))).all()
    assert np.isfinite(np.array(load_model(tmp_path / "out").model(tokens("moe", 9)))).all()


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"bits": 7}, "7 bits"),
            ({"group_size": 48}, "48"),
            ({"mode": "mxfp4", "bits": 8}, "mxfp4"),
            ({"mode": "fp4"}, "'fp4'"),
            ({"quality": "great"}, "'great'"),
            ({"mtp": "outside"}, "'outside'"),
            ({"vision": "yes"}, "'yes'"),
            ({"size": GB, "fit": GB}, "--size and --fit"),
            ({"size": GB, "bits": 4}, "--bits"),
            ({"token_bytes": GB}, "--token-size"),
            ({"mtp": "drop", "mtp_source": "x/y"}, "--mtp-source"),
            ({"quality": "good", "delete_source_shards": True}, "--delete-source-shards"),
            ({"block_bytes": 10}, "--block"),
        ],
    )
    def test_contradictions_are_one_line(self, options: dict, named: str) -> None:
        with pytest.raises(ConfigError) as error:
            Options(**options)
        assert named in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("bits", BITS)
    @pytest.mark.parametrize("group_size", GROUP_SIZES)
    def test_bits_a_weight_are_those_that_mlx_writes(self, bits: int, group_size: int) -> None:
        parts = mx.quantize(mx.zeros((4, 256), mx.bfloat16), group_size, bits)
        assert Packing(bits, group_size).bits_per_weight == 8 * sum(p.nbytes for p in parts) / (4 * 256)
