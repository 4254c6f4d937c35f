"""The engine on a tiny random network: one batch for all, and nobody's answer depends on who else is in it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.caches.rows import recurrent_layers
from mlx_qwen35.errors import CheckpointError, RequestError
from mlx_qwen35.generation.request import Prefilled, Request
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from mlx_qwen35.options import Sampling
from tests.reference import CASES, recorded, write_checkpoint
from tests.support.engines import answer, engine_over, tokens_of
from tests.support.float32 import load_float32
from tests.support.waiting import wait_for

KNOWN = CASES["moe"].tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tmp_path_factory.mktemp("tiny") / "moe"
    write_checkpoint("moe", folder)
    return load_float32(folder).model


def prompt(length: int, seed: int = 0) -> list[int]:
    tokens = recorded("moe")["tokens"].tolist()
    return [tokens[(seed * 17 + i) % len(tokens)] for i in range(length)]


def test_greedy_tokens_are_transformers_tokens(model: Model) -> None:
    reference = recorded("moe")
    expected = reference["greedy"].tolist()
    with engine_over(model) as engine:
        tokens, ended = answer(engine, reference["greedy_prompt"].tolist(), len(expected), KNOWN)
    assert tokens == expected
    assert ended.reason == "length"


def test_a_stop_token_ends_the_answer_and_is_its_last_token(model: Model) -> None:
    reference = recorded("moe")
    ids, expected = reference["greedy_prompt"].tolist(), reference["greedy"].tolist()
    stop = expected[5]
    with engine_over(model) as engine:
        tokens, ended = answer(engine, ids, len(expected), KNOWN, stop_ids=frozenset([stop]))
    assert tokens == expected[: expected.index(stop) + 1]
    assert ended.reason == "stop"


def test_progress_is_told_until_the_prompt_is_read(model: Model) -> None:
    with engine_over(model) as engine:
        items = list(engine.submit(Request(prompt(700), KNOWN, 2)))
    told = [item for item in items if isinstance(item, Prefilled)]
    assert [item.done for item in told] == sorted({item.done for item in told})
    assert (told[-1].done, told[-1].total) == (700, 700)
    assert isinstance(items[-1], int)


def test_sampling_with_a_seed_does_not_depend_on_the_company(model: Model) -> None:
    options = {"sampling": Sampling(temperature=1.5, top_p=0.9, presence_penalty=0.5), "seed": 1}
    with engine_over(model) as engine:
        alone, _ = answer(engine, [1, 2, 3], 20, KNOWN, **options)
    with engine_over(model) as engine:
        others = [engine.submit(Request(prompt(50, i), KNOWN, 30, Sampling(temperature=2.0), seed=i)) for i in range(3)]
        together, _ = answer(engine, [1, 2, 3], 20, KNOWN, **options)
        for line in others:
            assert len(tokens_of(line)) == 30
    assert together == alone


def test_the_context_bounds_prompt_and_answer(model: Model) -> None:
    context = model.config.max_context
    with engine_over(model) as engine:
        tokens, ended = answer(engine, prompt(context - 3), 100, KNOWN)
        assert (len(tokens), ended.reason) == (3, "length")
        with pytest.raises(RequestError, match=f"{context:,}, the answer included; --context N"):
            engine.submit(Request(prompt(context), KNOWN, 1))


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (Request([], KNOWN, 1), "empty"),
        (Request([1, 1 << 40], KNOWN, 1), "vocabulary"),
        (Request([-1], KNOWN, 1), "vocabulary"),
        (Request([1], KNOWN, 1, kv_bits=3), "kv_bits"),
        (Request([1], KNOWN, 0), "max_tokens"),
    ],
)
def test_what_cannot_run_is_refused_at_the_door(model: Model, request_: Request, word: str) -> None:
    with engine_over(model) as engine, pytest.raises(RequestError, match=word):
        engine.submit(request_)


def test_a_bad_request_fails_alone(model: Model) -> None:
    with engine_over(model) as engine:
        good = engine.submit(Request(prompt(40), KNOWN, 30))
        bad = engine.submit(Request(prompt(40), KNOWN, 30, logit_bias={1 << 20: 1.0}))
        with pytest.raises(RequestError, match="logit_bias"):
            tokens_of(bad)
        assert len(tokens_of(good)) == 30


def test_numbers_that_are_not_finite_end_in_one_line(tmp_path: Path) -> None:
    broken = load_model(write_checkpoint("dense", tmp_path / "dense")).model
    norm = broken.language_model.model.norm
    norm.weight = mx.full(norm.weight.shape, float("nan"))
    mx.eval(broken.parameters())
    with engine_over(broken) as engine, pytest.raises(CheckpointError, match="not finite"):
        answer(engine, [1, 2, 3], 5, 10)


def test_an_error_inside_a_step_ends_its_requests_and_not_the_engine(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_over(model) as engine:
        expected, _ = answer(engine, prompt(20), 5, KNOWN)
        with monkeypatch.context() as patched:
            patched.setattr(Model, "logits", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                answer(engine, prompt(20), 5, KNOWN)
        assert answer(engine, prompt(20), 5, KNOWN)[0] == expected


def test_a_cancelled_request_leaves_before_the_next_step(model: Model) -> None:
    with engine_over(model) as engine:
        endless = engine.submit(Request([1, 2], KNOWN, 100_000))
        next(iter(endless))
        endless.cancel()
        wait_for(lambda: engine.stats().rows == 0)
        drawn = engine.stats().answer_tokens
        time.sleep(0.05)
        assert engine.stats().answer_tokens == drawn
        tokens_of(endless)
        assert endless.ended is not None
        assert endless.ended.reason == "cancelled"


def test_a_request_cancelled_while_it_waits_never_starts(model: Model) -> None:
    with engine_over(model, max_rows=1) as engine:
        first = engine.submit(Request([1, 2], KNOWN, 10_000))
        second = engine.submit(Request([3, 4], KNOWN, 10))
        second.cancel()
        assert tokens_of(second) == []
        first.cancel()


def test_a_slow_reader_pauses_alone(model: Model) -> None:
    with engine_over(model) as engine:
        slow = engine.submit(Request([1, 2], KNOWN, 5000))
        wait_for(lambda: slow.waiting > 50)
        assert len(answer(engine, [3, 4], 200, KNOWN)[0]) == 200
        assert slow.waiting < 100
        reading = iter(slow)
        assert sum(isinstance(next(reading), int) for _ in range(300)) > 290  # it goes on when it is read
        slow.cancel()


def test_too_many_waiting_are_refused_in_one_line(model: Model) -> None:
    with engine_over(model, max_rows=1, max_waiting=2) as engine:
        lines = [engine.submit(Request([1, 2], KNOWN, 10_000))]
        wait_for(lambda: engine.stats().rows == 1)
        lines += [engine.submit(Request([1, 2], KNOWN, 1)) for _ in range(2)]
        with pytest.raises(RequestError, match="waiting"):
            engine.submit(Request([1, 2], KNOWN, 1))
        for line in lines:
            line.cancel()


def test_a_closed_engine_ends_its_answers(model: Model) -> None:
    with engine_over(model) as engine:
        line = engine.submit(Request([1, 2], KNOWN, 50_000))
        next(iter(line))
        engine.close()
        tokens_of(line)
        assert line.ended is not None
        assert line.ended.reason == "cancelled"
        with pytest.raises(RequestError, match="closed"):
            engine.submit(Request([1, 2], KNOWN, 1))


def test_closing_ends_every_answer_however_requests_race_with_it(model: Model) -> None:
    """None may wait for ever: each request is answered, cut short, or refused."""
    for attempt in range(20):
        with engine_over(model) as engine:
            lines, refused = [], threading.Event()

            def ask(engine=engine, lines=lines, refused=refused) -> None:
                while not refused.is_set():
                    try:
                        lines.append(engine.submit(Request([1, 2], KNOWN, 50)))
                    except RequestError:
                        refused.set()

            asking = threading.Thread(target=ask)
            asking.start()
            time.sleep(0.002 * attempt)
        asking.join(20)
        assert not asking.is_alive()
        for line in lines:
            tokens_of(line)
            assert line.ended is not None


def test_prefixes_and_live_sequences_together_keep_the_budget(model: Model) -> None:
    """What a sequence copied from the store need not stay there, if there is not room for both."""
    text = prompt(900)
    with engine_over(model) as engine:
        sizes = engine.sizes(16)
        first, _ = answer(engine, text, 2, KNOWN)
        cold, _ = answer(engine, [*text, *first, 1, 2, 3], 20, KNOWN)
    budget, most = sizes.sequence(950) + sizes.sequence(100), 0
    with engine_over(model, cache_bytes=budget, prefix_bytes=budget) as engine:
        for ids, count in ((text, 2), ([*text, *first, 1, 2, 3], 20)):
            line, tokens = engine.submit(Request(ids, KNOWN, count, checkpoints=[300, 600])), []
            for item in line:
                stats = engine.stats()
                most = max(most, stats.live_bytes + stats.prefix_bytes)
                tokens += [item] if isinstance(item, int) else []
    assert line.reuse.cached > 900
    assert tokens == cold
    assert most <= budget


def test_what_can_never_fit_does_not_hold_up_those_behind_it(model: Model) -> None:
    with engine_over(model) as engine:
        sizes = engine.sizes(16)
    with engine_over(model, cache_bytes=sizes.sequence(500)) as engine:
        running = engine.submit(Request([1, 2], KNOWN, 400))
        wait_for(lambda: engine.stats().rows == 1)
        huge = engine.submit(Request(prompt(1000), KNOWN, 1))
        small = engine.submit(Request([3, 4], KNOWN, 1))
        with pytest.raises(RequestError, match="budget"):
            tokens_of(huge)
        assert len(tokens_of(small)) == 1
        assert running.ended is None
        running.cancel()


def test_a_reader_who_stopped_reading_keeps_no_place_and_loses_nothing(model: Model) -> None:
    """One thread that reads two answers by turns must not wait for itself."""
    with engine_over(model, max_rows=1) as engine:
        expected, _ = answer(engine, [1, 2], 200, KNOWN)
        slow = engine.submit(Request([1, 2], KNOWN, 200))
        wait_for(lambda: slow.waiting >= 64)
        assert len(answer(engine, [3, 4], 10, KNOWN)[0]) == 10
        assert tokens_of(slow) == expected


def test_rows_left_out_of_a_step_do_not_keep_the_others_states(model: Model) -> None:
    with engine_over(model) as engine:
        sizes = engine.sizes(16)
        lines = [engine.submit(Request([1, 2 + i], KNOWN, 2000)) for i in range(8)]
        for i, line in enumerate(lines):
            reading = iter(line)
            for _ in range(10 * i):
                next(reading)
        wait_for(lambda: all(line.waiting >= 64 for line in lines))
        layers = [layer for row in engine._places.rows for layer in recurrent_layers(row.cache or [])]
        held = {id(array): array.nbytes for layer in layers for array in layer.state}
        assert sum(held.values()) == 8 * sizes.state
        for line in lines:
            line.cancel()


def test_failing_to_remember_is_no_failure_of_an_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_over(model) as engine:
        expected, _ = answer(engine, [1, 2], 20, KNOWN)
        with monkeypatch.context() as patched:
            patched.setattr(PrefixStore, "add", lambda *_: 1 / 0)
            assert answer(engine, [1, 2], 20, KNOWN)[0] == expected
        assert answer(engine, [1, 2], 20, KNOWN)[0] == expected
        assert engine.stats().rows == 0
