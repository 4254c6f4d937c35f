"""Reading ahead: what a next prompt will begin with is prefilled while nobody is served, and remembered as a prefix.

The least urgent work of the engine, in short windows: whoever arrives waits for one of them, and what was read until
then is a checkpoint to go on from. Lives on the MLX thread; knows nothing of text, nor of who should be read ahead for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mlx_qwen35.generation.places import Places
from mlx_qwen35.generation.request import Line, Request
from mlx_qwen35.generation.row import Row

log = logging.getLogger(__name__)


class Ahead:
    """At most one text at a time. Its last token is never computed: it only says that the text goes on."""

    def __init__(
        self,
        places: Places,
        post: Callable[[Callable[[], object]], bool],
        window: Callable[[Row], object],
        others: Callable[[], bool],
        saving: Callable[[], object],
    ) -> None:
        """post: a job between the engine's turns; False when there are no more   window: computes a window of a row

        others: whether there is anything more urgent   saving: told when there may be something new to save
        """
        self._places, self._post = places, post
        self._window, self._others, self._saving = window, others, saving

    def ask(self, request: Request) -> Line:
        """From any thread. The line ends without an item; see `Engine.read_ahead`."""
        row = Row(request, Line())
        if not self._post(lambda: self._begin(row)):
            row.end("cancelled")
        return row.line

    def give_way(self) -> None:
        """Others come first; they find what was read so far."""
        self._leave(keep=True)

    def drop(self) -> None:
        """The engine closes."""
        self._leave(keep=False)

    def _begin(self, row: Row) -> None:
        self.give_way()  # the one before
        if self._others():
            row.end("cancelled")
            return
        try:
            if self._places.enter_ahead(row):
                self._read_on()
            else:
                row.end("stop")
        except Exception as error:
            self._fail(row, error)

    def _read_on(self) -> None:
        """One window, between the turns of the engine."""
        if self._others():
            self.give_way()
        row = self._places.ahead
        if row is None:
            return
        try:
            self._window(row)
            if row.at_checkpoint:
                self._places.remember_ahead(row)
            if row.remaining == 1:
                self._places.leave_ahead(keep=True)
                row.end("stop")
        except Exception as error:
            self._fail(row, error)
        if self._places.ahead is None:
            self._saving()
        elif not self._post(self._read_on):
            self.drop()

    def _leave(self, keep: bool) -> None:
        row = self._places.ahead
        if row is None:
            return
        try:
            self._places.leave_ahead(keep)
            row.end("cancelled")
        except Exception as error:
            self._fail(row, error)

    def _fail(self, row: Row, error: Exception) -> None:
        """Nobody asked for it, so nobody hears of it."""
        log.debug("A text of %d tokens could not be read ahead: %s", row.fed, error)
        if self._places.ahead is row:
            self._places.leave_ahead(keep=False)
        row.end("stop")
