"""Another model in place of the one that answers: fetched if need be, the old one closed first, back if that fails.

Two models would seldom fit the memory together. While one is fetched the old one goes on answering; while one is read
nothing answers, and whoever asks is told so. Knows no Gradio.
"""

from __future__ import annotations

import gc
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen35.app.desk import Backend, Desk
from mlx_qwen35.app.loading import Loading
from mlx_qwen35.chat import presets
from mlx_qwen35.chat.constraints import thinking
from mlx_qwen35.chat.events import Event
from mlx_qwen35.errors import BusyError, UserError
from mlx_qwen35.hub.catalog import downloaded
from mlx_qwen35.hub.download import cached_snapshot
from mlx_qwen35.hub.machine import this_machine
from mlx_qwen35.hub.names import DEMO, resolve
from mlx_qwen35.hub.progress import Progress, gigabytes
from mlx_qwen35.hub.table import family_rows
from mlx_qwen35.options import Sampling
from mlx_qwen35.requests import ChatRequest


@dataclass(frozen=True)
class Choice:
    """A model that may be loaded. label: its name, its size, and whether it is here"""

    name: str
    label: str


@dataclass(frozen=True)
class State:
    """Of the exchange. line: for people   done: from 0 to 1, None where nobody can say   serial: counts exchanges"""

    line: str = ""
    running: bool = False
    done: float | None = None
    serial: int = 0


class Stopped(UserError):
    """The person changed their mind."""


class Switch:
    """One for each desk. `state` may be read from any thread."""

    def __init__(self, desk: Desk, loading: Loading) -> None:
        self._desk, self._loading = desk, loading
        self._given = desk.runtime.name  # perhaps a folder, which only whoever started this could name
        self._lock, self._stop = threading.Lock(), False
        self.state = State()
        self.thread: threading.Thread | None = None

    def choices(self) -> list[Choice]:
        """What was given at the start, what is downloaded, and what of the family fits this machine."""
        here, force = downloaded(), self._loading.force
        found = [Choice(DEMO, "demo · bundled")]
        for row in family_rows(this_machine(), here):
            size, local = gigabytes(row.entry.weight_bytes(16, mtp=True)), row.here is not None and row.here.complete
            if local or row.fitting_bits == 16 or force:
                found.append(Choice(row.entry.short, f"{row.entry.name} · {size} · {'here' if local else 'to fetch'}"))
        found += [
            Choice(m.hub_id, f"{m.hub_id} · {gigabytes(m.nbytes)} · here")
            for m in here
            if m.entry is None and m.complete
        ]
        if all(choice.name != self._given for choice in found):
            found.insert(0, Choice(self._given, f"{Path(self._given).name} · given at the start"))
        return found

    def start(self, name: str | None) -> None:
        """Begin; `state` tells the rest. Raises UserError for what is not among the choices, or where it cannot be."""
        if name not in [choice.name for choice in self.choices()]:
            raise UserError("Choose a model of the list.")
        with self._lock:
            if self.state.running:
                raise BusyError("Another model is on its way; wait for it, or stop it.")
            if name == self._desk.runtime.name:
                raise UserError("That model is in use.")
            self._stop = False
            self._tell(f"Looking for {name}", None)
        self.thread = threading.Thread(target=self._run, args=[name], daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """What was fetched is kept; what was being read gives way to the model before it."""
        self._stop = True

    def _run(self, name: str) -> None:
        try:
            line = self._exchange(name)
        except UserError as error:
            line = _brief(error)
        except Exception as error:
            # A defect of this program, which would otherwise look as if it went on for ever.
            traceback.print_exc()
            line = f"{name} could not be loaded ({type(error).__name__}); the terminal shows why."
        self.state = State(line, serial=self.state.serial + 1)

    def _exchange(self, name: str) -> str:
        """Returns what to say at the end. Raises UserError where nothing was exchanged."""
        located = resolve(name)
        if located.path is None and cached_snapshot(located.hub_id) is None:
            self._loading.fetch(name, self._fetched)
        before = serving(self._desk)
        if before is not None and ((stats := before.stats()).rows or stats.waiting):
            raise BusyError(f"An answer is running. {name} is here: load it when that has ended, or was stopped.")
        last, before = before.name if before else "", None
        self._close_current(NoModel(name, f"{name} is being loaded; ask again when it answers."))
        try:
            self._load(name)
            return f"{name} answers now."
        except Exception as error:
            why = f"{name}: {_brief(error)}"
            if not isinstance(error, UserError):
                traceback.print_exc()
        self._stop = False
        try:
            if last:
                self._load(last)
                return f"{last} is back. {why}"
        except Exception as error:
            why += f" {last}: {_brief(error)}"
        why = f"No model answers; load one. {why}"
        self._desk.use(NoModel("No model", why))
        return why

    def _close_current(self, instead: NoModel) -> None:
        """Free what it holds before anything else is read."""
        self._desk.use(instead).close()
        gc.collect()
        mx.clear_cache()

    def _load(self, name: str) -> None:
        def read(done: int, total: int) -> None:
            self._check_stop()
            self._tell(f"Loading {name}: {gigabytes(done)} of {gigabytes(total)}", done / total if total else None)

        self._tell(f"Loading {name}", None)
        self._desk.use(self._loading.load(name, read))

    def _fetched(self, progress: Progress) -> None:
        self._check_stop()
        left = (progress.total - progress.done) / progress.rate if progress.rate > 0 else None
        time = "" if left is None else f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"
        bytes = f"{gigabytes(progress.done)} of {gigabytes(progress.total)}"
        line = f"Fetching {progress.name}: {bytes} ({gigabytes(progress.rate)}/s{time})"
        self._tell(line, progress.done / progress.total if progress.total else None)

    def _tell(self, line: str, done: float | None) -> None:
        self.state = State(line, True, done, self.state.serial)

    def _check_stop(self) -> None:
        if self._stop:
            raise Stopped("It was stopped; what has arrived is kept.")


@dataclass(frozen=True)
class NoModel:
    """What answers while no model does. name: of the one that is on its way   why: for whoever asks"""

    name: str
    why: str
    folder: Path | None = None
    context: int | None = None

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        raise self._busy()

    def prepare(self, request: ChatRequest) -> Any:
        raise self._busy()

    def submit(self, prepared: Any) -> Any:
        raise self._busy()

    def sampling(self, request: ChatRequest) -> Sampling:
        return presets.choose(request.preset, self.thinks(request))

    def thinks(self, request: ChatRequest) -> bool:
        return thinking(request.enable_thinking, request.thinking_budget, request.reasoning_effort)[0] is not False

    def stats(self) -> None:
        return None

    def close(self) -> None:
        """It holds nothing."""

    def _busy(self) -> BusyError:
        return BusyError(self.why)


def serving(desk: Desk) -> Backend | None:
    """The model, unless there is none at the moment."""
    return None if isinstance(desk.runtime, NoModel) else desk.runtime


def _brief(error: Exception) -> str:
    """Of a memory plan, which has a table, the beginning and the advice."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
