"""Another model under open pages: real downloads from a hub on loopback, real loading, and what can go wrong."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from gradio_client import Client

from mlx_qwen35.app.desk import Desk
from mlx_qwen35.app.loading import Loading
from mlx_qwen35.app.models_panel import as_html
from mlx_qwen35.app.switching import State, Switch
from mlx_qwen35.app.web import make_app
from mlx_qwen35.chat.events import Content
from mlx_qwen35.conversations.store import Store
from mlx_qwen35.errors import BusyError, UserError
from mlx_qwen35.hub.catalog import last_used
from mlx_qwen35.options import CacheOptions
from mlx_qwen35.requests import ChatRequest
from mlx_qwen35.runtime import Runtime
from tests.app.conftest import served
from tests.support.fake_hub import FakeHub, Fault
from tests.support.tiny_chat import write_tiny_chat
from tests.support.waiting import wait_for

HI = [{"role": "user", "content": "Hi"}]
SMALL, BROKEN = "Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-2B"
LOADING = Loading(caches=CacheOptions(disk=None), warn=lambda line: None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("given") / "tiny")


@pytest.fixture(autouse=True)
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Under two names of the family, a checkpoint that loads and one that is found wrong when it is read."""
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    config = json.loads(files["config.json"])
    config.get("text_config", config)["vocab_size"] = 8
    with FakeHub({SMALL: files, BROKEN: files | {"config.json": json.dumps(config).encode()}}) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setenv("HOME", str(tmp_path))
        yield fake


@pytest.fixture
def desk(tiny: Path, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(LOADING.load(str(tiny), lambda done, total: None), Store(tmp_path / "chats"), loading=LOADING)
    yield desk
    desk.runtime.close()


@pytest.fixture
def switch(desk: Desk) -> Switch:
    return Switch(desk, LOADING)


def ended(switch: Switch) -> str:
    assert switch.thread is not None
    switch.thread.join(60)
    assert not switch.state.running
    return switch.state.line


def test_a_model_is_fetched_and_loaded_and_the_old_one_gives_its_memory_back(desk: Desk, switch: Switch) -> None:
    old = weakref.ref(desk.runtime)
    switch.start("0.8b")
    assert ended(switch) == "0.8b answers now."
    assert isinstance(desk.runtime, Runtime)
    assert desk.runtime.name == "0.8b" == last_used()
    assert any(isinstance(event, Content) for event in desk.runtime.chat(ChatRequest(HI, max_tokens=3)))
    gc.collect()
    assert old() is None
    one = mx.get_active_memory()
    switch.start(switch.choices()[0].name)
    assert "answers now" in ended(switch)
    assert mx.get_active_memory() < 1.5 * one


def test_the_old_one_is_gone_before_the_new_one_is_read(desk: Desk) -> None:
    old, seen = weakref.ref(desk.runtime), []

    class Watched(Loading):
        def load(self, name: str, progress: Callable[[int, int], None]) -> Runtime:
            seen.append(old())
            with pytest.raises(BusyError, match="is being loaded"):
                list(desk.runtime.chat(ChatRequest(HI)))
            return super().load(name, progress)

    switch = Switch(desk, Watched(caches=LOADING.caches, warn=LOADING.warn))
    switch.start("demo")
    assert ended(switch) == "demo answers now."
    assert seen == [None]


def test_only_models_of_the_list_are_loaded(desk: Desk, switch: Switch, tmp_path: Path) -> None:
    other = write_tiny_chat(tmp_path / "other")
    before = desk.runtime
    names = [choice.name for choice in switch.choices()]
    assert {before.name, "demo", "0.8b"} <= set(names)
    assert "397b-a17b" not in names
    for name in (str(other), f"{before.name}/../tiny", "../tiny", SMALL, "someone/else", "", None, "397b-a17b"):
        with pytest.raises(UserError, match="Choose a model of the list"):
            switch.start(name)
    assert desk.runtime is before


def test_while_one_is_fetched_the_old_one_answers_and_it_can_be_stopped(
    desk: Desk, switch: Switch, hub: FakeHub
) -> None:
    held = threading.Event()
    hub.faults["model.safetensors"] = Fault(hold=held)
    before = desk.runtime
    switch.start("0.8b")
    wait_for(lambda: hub.of("model.safetensors"))
    with pytest.raises(BusyError, match="on its way"):
        switch.start("demo")
    assert list(before.chat(ChatRequest(HI, max_tokens=2)))
    switch.stop()
    held.set()
    assert "stopped" in ended(switch)
    assert desk.runtime is before


def test_one_that_cannot_be_loaded_brings_the_old_one_back(desk: Desk, switch: Switch) -> None:
    name = desk.runtime.name
    switch.start("2b")
    line = ended(switch)
    assert line.startswith(f"{name} is back. 2b: ")
    assert "\n" not in line
    assert desk.runtime.name == name
    assert list(desk.runtime.chat(ChatRequest(HI, max_tokens=2)))


def test_where_the_old_one_is_gone_too_it_is_said_to_whoever_asks(desk: Desk, switch: Switch, tiny: Path) -> None:
    weights = tiny / "config.json"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(b"{}")
        switch.start("2b")
        assert ended(switch).startswith("No model answers; load one. 2b: ")
        with pytest.raises(BusyError, match="No model answers"):
            list(desk.runtime.chat(ChatRequest(HI)))
    finally:
        weights.write_bytes(kept)
    switch.start(str(tiny))
    assert "answers now" in ended(switch)


def test_an_answer_that_runs_is_not_cut(desk: Desk, switch: Switch) -> None:
    runtime = desk.runtime
    assert isinstance(runtime, Runtime)
    request = ChatRequest(HI, logit_bias=dict.fromkeys(runtime.tokenizer.stop_ids, -100.0))
    events = runtime.submit(runtime.prepare(request)).events()
    next(events)
    switch.start("demo")
    assert ended(switch).startswith("An answer is running. demo is here")
    assert desk.runtime is runtime
    events.close()
    wait_for(lambda: not runtime.stats().rows)
    switch.start("demo")
    assert ended(switch) == "demo answers now."


def test_all_pages_are_told(desk: Desk) -> None:
    with served(make_app(desk)) as url:
        first, second = (Client(url, verbose=False) for _ in range(2))
        second.predict("", api_name="/look_at_model")
        assert "Choose a model of the list" in first.predict("/etc", api_name="/load_model")
        assert "demo" in first.predict("demo", api_name="/load_model")
        wait_for(lambda: "demo answers now." in str(first.predict("before", api_name="/look_at_model")))
        name, said = second.predict("before", api_name="/look_at_model")
        assert name == "demo"
        assert "demo answers now." in said
        chosen, sizes = second.predict(api_name="/models")
        assert chosen["value"] == "demo"
        assert "397b-a17b" in sizes


def test_what_is_said_of_an_exchange_is_text() -> None:
    shown = as_html(State('<img src="x">', True, 0.25))
    assert "<img" not in shown
    assert 'value="0.25' in shown
