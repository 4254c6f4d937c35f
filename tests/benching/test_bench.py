"""What a bench measures: fair turns, medians, and the same interface for our engine, stock mlx-lm and servers."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_qwen35.benching.contenders import Ours, Run, Stock, made_up, our_network, stock_bytes, timed
from mlx_qwen35.benching.measuring import Case, Measure, cached_first, cases, measure
from mlx_qwen35.benching.report import Bench, lines_of
from mlx_qwen35.benching.url import Server
from mlx_qwen35.cli import main
from mlx_qwen35.errors import UserError
from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.hub.machine import Machine
from mlx_qwen35.hub.memory import weights_as_loaded
from mlx_qwen35.hub.names import demo_folder
from mlx_qwen35.models import fit
from mlx_qwen35.models.fit import headers_of, plan_folder
from mlx_qwen35.options import CacheOptions
from mlx_qwen35.planning.subject import of_family
from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.settings import Settings
from mlx_qwen35.terminal.benching import _lengths
from tests.server.conftest import running


class Scripted:
    """Takes the times it is told."""

    def __init__(self, name: str, times: Sequence[float], log: list[tuple[str, tuple[int, ...]]], batches: bool = True):
        self.name, self.batches, self._times, self._log = name, batches, list(times), log

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        self._log.append((self.name, tuple(prompts[0])))
        return Run(self._times.pop(0), 2.0, 10)


def test_contenders_take_turns_with_equal_prompts_and_one_slow_round_does_not_count() -> None:
    log: list[tuple[str, tuple[int, ...]]] = []
    pair = [Scripted("a", [1.0, 9.0, 1.0], log), Scripted("b", [2.0, 2.0, 2.0], log)]
    found = {m.contender: m for m in measure(pair, Case(6, 1, 8), 100, 3, lambda _: None)}
    assert [name for name, _ in log] == ["a", "b"] * 3
    assert [p for _, p in log[::2]] == [p for _, p in log[1::2]]
    assert len({p for _, p in log}) == 3  # nothing is known from the round before
    assert (found["a"].first, found["b"].first) == (1.0, 2.0)
    assert found["a"].prefill == 6.0
    assert found["a"].decode == 5.0


def test_who_has_no_batches_is_left_out_of_them() -> None:
    log: list[tuple[str, tuple[int, ...]]] = []
    pair = [Scripted("a", [1.0], log), Scripted("b", [1.0], log, batches=False)]
    assert [m.contender for m in measure(pair, Case(6, 4, 8), 100, 1, lambda _: None)] == ["a"]


def test_only_the_time_in_which_all_decode_counts() -> None:
    # CPU seconds, the second ones, are half of those by the clock.
    rows = [[11.0, 12.0, 13.0, 20.0], [11.5, 12.5, 13.5]]
    run = timed((10.0, 5.0), [[(at, at / 2) for at in row] for row in rows])
    assert (run.first, run.rest, run.first_cpu, run.rest_cpu) == (1.5, 2.0, 0.75, 1.0)
    assert run.tokens == 4  # 12, 13, 12.5, 13.5


def test_ratios_stand_by_cpu_seconds_as_well_where_the_cpu_computes() -> None:
    case = Case(100, 1, 8)
    measures = [Measure("ours", case, 1.0, 100.0, 10.0, 90.0, 9.0), Measure("peer", case, 4.0, 25.0, 5.0, 30.0, 3.0)]
    subject = of_family(FAMILY["0.8b"], 4)
    for on_cpu, told in ((True, ["4.00 (3.00)", "2.00 (3.00)"]), (False, ["4.00", "2.00"])):
        bench = Bench("a", [], subject, None, on_cpu, 1.0, 1, 1.0, 1.0, 100, "none", measures)
        assert [cell.strip() for cell in lines_of(bench)[5].split("|")[-3:-1]] == told


def test_stocks_own_copy_is_counted_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["bench", "demo", "--prompts", "16", "--batch", "1", "--tokens", "4", "--rounds", "1", "--float32"]
    room = plan_folder(demo_folder(), 20, "demo").total + 1
    monkeypatch.setattr(fit, "machine", lambda: Machine(room, room, room))
    assert main(asked) == 0
    assert main([*asked, "--vs", "mlx-lm"]) == 2
    assert "Without --vs mlx-lm it fits." in capsys.readouterr().err
    assert main([*asked, "--vs", "mlx-lm", "--force"]) == 0
    tensors = headers_of("demo")[1]
    assert stock_bytes(tensors, None) == weights_as_loaded(tensors, mtp=False)
    loaded = dict(tree_flatten(Stock(demo_folder(), mx.float32)._model.parameters()))
    assert stock_bytes(tensors, mx.float32) == sum(a.nbytes for a in loaded.values())


def test_the_usual_lengths_end_where_the_native_context_does(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = argparse.Namespace(prompts=None, long=True, tokens=64, model="demo", offline=True)
    lengths, (note,) = _lengths(arguments)
    assert lengths == [128, 512, 2_048, 8_192]  # of 32,768, nothing would be left for the answer
    assert note == "Left out: prompts of 32,768, 131,072 tokens, since its context holds 32,768."


def test_cases_are_lengths_alone_and_short_prompts_together() -> None:
    assert [(c.length, c.batch) for c in cases([128, 512], [1, 4], 8)] == [(128, 1), (512, 1), (128, 4)]


@pytest.mark.parametrize("count", [1, 3])
def test_our_engine_gives_every_token_it_is_asked_for(count: int) -> None:
    with our_network(demo_folder()) as network, network.engine() as engine:
        run = Ours(engine, network.known).run(made_up(count, 20, network.known, 1), 6)
    assert 0 < run.tokens <= 5 * count
    assert run.first_cpu > 0  # MLX computes on another thread of this process


def test_a_prompt_asked_again_is_reused() -> None:
    with our_network(demo_folder()) as network, network.engine(1 << 28) as engine:
        cached_first(Ours(engine, network.known, remembers=True), 64, network.known)
        assert engine.stats().cached_tokens > 0


def test_stock_mlx_lm_runs_the_same_checkpoint() -> None:
    run = Stock(demo_folder(), mx.float32).run(made_up(1, 8, 200, 1), 3)
    assert run.tokens == 2


def test_a_server_is_timed_by_what_it_streams() -> None:
    with closing(Runtime.load("demo", caches=CacheOptions(disk=None))) as runtime, running(runtime, Settings()) as here:
        assert Server(f"{here.url}/v1").run(made_up(2, 12, 200, 1), 6).first > 0


def test_no_server_there_is_one_line() -> None:
    with pytest.raises(UserError, match="No OpenAI-compatible server answers"):
        Server("http://127.0.0.1:9/v1")


def test_the_command_writes_a_table_and_a_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "bench.png"
    asked = ["bench", "demo", "--prompts", "16,32", "--batch", "1,2", "--tokens", "4", "--rounds", "1"]
    assert main([*asked, "--plot", str(plot)]) == 0
    table = capsys.readouterr().out
    assert re.search(r"\| 32 \| 1 \| [\d.,]+ \| [\d.,]+ \|", table)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*asked, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [m["case"]["length"] for m in data["measures"]] == [16, 32, 128]


@pytest.mark.parametrize("arguments", [["--prompts", "0"], ["--batch", "x"], ["--tokens", "1"], ["--vs", "ftp://x"]])
def test_what_cannot_be_timed_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["bench", "demo", *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
