"""Reading ahead, by hand: it serves the next prompt, gives way to everybody, and leaves nothing behind but prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_qwen35.caches.holds import Hold
from mlx_qwen35.errors import TooLongError
from mlx_qwen35.generation.request import Line, Request
from mlx_qwen35.generation.row import Row
from mlx_qwen35.models.exact import ExactModel
from mlx_qwen35.options import Sampling
from tests.support.cranked import Cranked, cranked, read
from tests.support.networks import DEMO, known_tokens, network, random_ids
from tests.support.plain import assert_plain

NAME = "dense"
KNOWN = known_tokens(NAME)
HISTORY, ANSWER = random_ids(1, 60), random_ids(2, 100)
NEXT = [*HISTORY, *ANSWER]  # what the next prompt begins with
QUESTION = random_ids(3, 12)


def asked(ids: list[int], **options: object) -> Request:
    return Request(ids, KNOWN, 6, **options)  # pyright: ignore[reportArgumentType]


def told(line: Line) -> str:
    """How the reading ended; "" while it goes on. It has no items."""
    assert read(line) == []
    return line.ended.reason if line.ended is not None else ""


def with_history(**options: object) -> Cranked:
    """An engine that has answered a first question."""
    served = cranked(network(NAME), **options)  # pyright: ignore[reportArgumentType]
    served.answer(asked(HISTORY))
    return served


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("name", [NAME, DEMO])  # the demo has an MTP layer, which remembers too
def test_the_next_prompt_begins_where_the_reading_ended(name: str, bits: int) -> None:
    served = cranked(network(name))
    first, then = (Request(ids, known_tokens(name), 8, kv_bits=bits) for ids in (HISTORY, [*NEXT, *QUESTION]))
    served.answer(first)
    line = served.engine.read_ahead([*NEXT, 1], bits)
    served.run()
    assert told(line) == "stop"
    tokens, answer = served.answer(then)
    assert answer.reuse.cached == len(NEXT)
    assert_plain(network(name), then, tokens)
    stats = served.engine.stats()
    assert stats.ahead_tokens == stats.ahead_used_tokens == len(NEXT) - line.reuse.cached > 16
    assert (stats.requests, stats.prompt_tokens) == (2, len(first.ids) + len(then.ids))  # of users alone
    served.assert_at_rest()


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(temperature=1.5)])
def test_in_exact_mode_answers_are_the_same_with_it_and_without(sampling: Sampling) -> None:
    model = ExactModel(network(NAME))
    answers = []
    for ahead in (False, True):
        served = cranked(model, exact=True)
        served.answer(asked(HISTORY))
        if ahead:
            served.engine.read_ahead([*NEXT, 1])
            served.run()
        request = Request([*NEXT, *QUESTION], KNOWN, 20, sampling, seed=7, draft=2)
        tokens, line = served.answer(request)
        assert (line.reuse.cached >= len(NEXT)) == ahead
        answers.append(tokens)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_arrival_is_served_next_and_goes_on_from_what_was_read(after: int) -> None:
    served = with_history()
    served.windows([16])
    computed = windows_of(served)
    reading = served.engine.read_ahead([*NEXT, 1])
    for _ in range(after):
        served.crank.turn()
    assert told(reading) == ""
    done = sum(computed) + reading.reuse.cached
    line = served.submit(request := asked([*NEXT, *QUESTION]))
    served.crank.turn()
    served.crank.turn()  # one of the two is the reading's, which computes nothing more
    assert told(reading) == "cancelled"
    assert served.engine.stats().rows == 1
    served.run()
    assert len(computed) == after
    assert line.reuse.cached == done
    assert_plain(network(NAME), request, read(line))
    # Asked again, there is nothing left to do: the text was gone through.
    again = served.engine.read_ahead([*NEXT, 1])
    served.run()
    assert told(again) == "stop"
    assert len(computed) == after
    served.assert_at_rest()


@pytest.mark.parametrize(("length", "steps"), [(12, 1), (300, 3)])
def test_a_short_question_after_it_is_one_step(length: int, steps: int) -> None:
    """No checkpoint within it: the next reading begins before it. A long one is not read twice."""
    served = with_history()
    served.engine.read_ahead([*NEXT, 1])
    served.run()
    served.windows([512])
    prompt = [*NEXT, *random_ids(4, length)]
    line = served.submit(asked(prompt, checkpoints=[len(prompt) - 6, len(prompt) - 2]))
    turns = 0
    while not any(isinstance(item, int) for item in items(line)):
        assert served.crank.turn()
        turns += 1
    assert turns == steps
    served.run()
    served.assert_at_rest()


def items(line: Line) -> list[object]:
    found: list[object] = []
    while (item := line.poll()) is not None:
        found.append(item)
    return found


def windows_of(served: Cranked) -> list[int]:
    """Tokens of each window that is read ahead from now on."""
    computed: list[int] = []
    window = served.engine._ahead._window

    def counted(row: Row) -> None:
        before = row.fed
        window(row)
        computed.append(row.fed - before)

    served.engine._ahead._window = counted
    return computed


def test_who_arrives_during_a_window_finds_that_too() -> None:
    """Its turn is in line before the reading's next window."""
    served = with_history()
    served.windows([16])
    window, lines = served.engine._ahead._window, []

    def arrives(row: Row) -> None:
        window(row)
        if not lines and row.fed >= 32:
            lines.append(served.submit(asked([*NEXT, *QUESTION])))

    served.engine._ahead._window = arrives
    reading = served.engine.read_ahead([*NEXT, 1])
    served.run()
    assert told(reading) == "cancelled"
    assert lines[0].reuse.cached == 32
    assert len(read(lines[0])) == 6
    served.assert_at_rest()


def test_after_somebody_else_it_goes_on_where_it_gave_way() -> None:
    served = with_history()
    served.windows([16])
    computed = windows_of(served)
    served.engine.read_ahead([*NEXT, 1])
    served.crank.turn()
    served.crank.turn()
    served.answer(asked(random_ids(9, 40)))
    again = served.engine.read_ahead([*NEXT, 1])
    served.run()
    assert told(again) == "stop"
    assert sum(computed) == len(NEXT)
    assert served.answer(asked([*NEXT, *QUESTION]))[1].reuse.cached == len(NEXT)
    assert served.engine.stats().ahead_used_tokens == len(NEXT)
    served.assert_at_rest()


def test_beside_others_it_does_not_begin() -> None:
    served = with_history()
    line = served.submit(asked(random_ids(9, 40)))
    served.crank.turn()
    reading = served.engine.read_ahead([*NEXT, 1])
    served.run()
    assert told(reading) == "cancelled"
    assert len(read(line)) == 6
    assert served.engine.stats().ahead_tokens == 0


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ([*HISTORY, 1], "it is known"),
        ([*HISTORY, *ANSWER[:10], 1], "a few tokens are read with the question"),
    ],
)
def test_where_little_is_new_nothing_is_read(ids: list[int], why: str) -> None:
    served = cranked(network(NAME))
    served.answer(asked([*HISTORY, *QUESTION], checkpoints=[60]))
    line = served.engine.read_ahead(ids)
    served.run()
    assert told(line) == "stop"
    assert served.engine.stats().ahead_tokens == 0, why


def test_where_memory_is_tight_nothing_is_read() -> None:
    """Tight is: a live sequence would take from what is remembered."""
    sizes = cranked(network(NAME)).engine.sizes(16)
    needed = sizes.sequence(len(NEXT) + 1)
    for spare, read_tokens in ((0, 0), (4 * needed, len(NEXT))):
        served = with_history(cache_bytes=needed + spare, prefix_bytes=4 * needed)
        line = served.engine.read_ahead([*NEXT, 1])
        served.run()
        assert told(line) == "stop"
        assert served.engine.stats().ahead_tokens == read_tokens
        served.assert_at_rest()


def test_without_room_for_prefixes_nothing_is_read() -> None:
    served = with_history(prefix_bytes=0)
    served.engine.read_ahead([*NEXT, 1])
    served.run()
    assert served.engine.stats().ahead_tokens == 0
    served.assert_at_rest()


def test_a_session_holds_what_was_read_for_it() -> None:
    served = with_history()
    hold = Hold()
    served.engine.read_ahead([*NEXT, 1], 16, hold)
    served.run()
    assert [node.end for node in hold.nodes] == [len(NEXT)]
    served.store.shrink(0)
    assert served.answer(asked([*NEXT, *QUESTION], hold=hold))[1].reuse.cached == len(NEXT)
    hold.close()
    served.assert_at_rest()


def test_for_a_closed_session_nothing_is_read() -> None:
    served = with_history()
    hold = Hold()
    hold.close()
    served.engine.read_ahead([*NEXT, 1], 16, hold)
    served.run()
    assert served.engine.stats().ahead_tokens == 0


@pytest.mark.parametrize("turns", [0, 2])
def test_closing_ends_it(turns: int) -> None:
    served = with_history()
    served.windows([16])
    line = served.engine.read_ahead([*NEXT, 1])
    for _ in range(turns):
        served.crank.turn()
    served.engine.close()
    served.run()
    assert told(line) == "cancelled"
    assert served.engine.stats().live_bytes == 0


def test_what_goes_wrong_ends_the_reading_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    served = with_history()

    def broken(row: Row) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(served.engine._ahead, "_window", broken)
    line = served.engine.read_ahead([*NEXT, 1])
    served.run()
    assert told(line) == "stop"
    served.assert_at_rest()
    assert len(served.answer(asked(NEXT))[0]) == 6


def test_past_the_context_nothing_is_asked_for() -> None:
    served = cranked(network(NAME))
    with pytest.raises(TooLongError):
        served.engine.read_ahead([1] * network(NAME).config.max_context)


def test_what_was_read_is_saved_to_disk(tmp_path: Path) -> None:
    from tests.generation.test_reuse import in_folder

    served = cranked(network(NAME), open_disk=in_folder(tmp_path))
    served.answer(asked(HISTORY))
    served.engine.read_ahead([*NEXT, 1])
    served.run()
    assert not served.store.unsaved
    served.engine.close()
    served = cranked(network(NAME), open_disk=in_folder(tmp_path))
    assert served.answer(asked([*NEXT, *QUESTION]))[1].reuse.cached == len(NEXT)
    served.engine.close()
