"""What sessions ask of the engine's prefix store: to keep their text, hand it out, take it in. From any thread."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from mlx_qwen35.caches.carried import Carried, Packer, put_back
from mlx_qwen35.caches.holds import Hold, held_bytes
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.generation.cache_format import CacheFormat
from mlx_qwen35.generation.engine import Engine


class Prefixes:
    """Of the prefixes in one format of caches."""

    def __init__(self, engine: Engine, kv_bits: int) -> None:
        self._engine, self._kv_bits = engine, kv_bits

    def release(self, hold: Hold) -> None:
        """Nobody goes on from there; returns at once."""
        self._engine.post(hold.close)

    def share(self, hold: Hold) -> Hold:
        """Another hold on the same nodes; returns at once."""
        # In place before a request that is submitted afterwards can end and move it.
        other = Hold(hold.root)
        self._engine.post(lambda: other.move(hold.nodes))
        return other

    def carry(self, ids: Sequence[int], hold: Hold) -> Carried:
        """The longest known prefix of `ids`, copied array by array between steps; no spans where nothing is known."""

        def work(store: PrefixStore, form: CacheFormat) -> Packer:
            return Packer(store, hold.root or form.root, ids, hold)

        packer = self._engine.with_prefixes(self._kv_bits, work)
        blobs = {}
        try:
            while (packed := self._engine.with_prefixes(self._kv_bits, lambda *_: packer.pack_one())) is not None:
                blobs[packed[0]] = packed[1]
        finally:
            self._engine.post(packer.close)
        return Carried(self.fingerprint(), ids, packer.ends, blobs)

    def fingerprint(self) -> str:
        """Of this model and cache format."""
        return self._engine.with_prefixes(self._kv_bits, lambda _, form: form.root.key)

    def spare_bytes(self) -> int:
        """What there is room for now."""
        return self._engine.with_prefixes(self._kv_bits, lambda *_: self._engine.spare_bytes)

    def put_back(self, carried: Carried, hold: Hold, apart: bool = False) -> bool:
        """Know and hold a carried prefix; False where it is not one of this model and format, and nothing was done.

        apart: for this hold and its shares only
        """

        def work(store: PrefixStore, form: CacheFormat) -> bool:
            if carried.fingerprint != form.root.key:
                return False
            root = form.root.apart(secrets.token_hex(16)) if apart else form.root
            if not put_back(store, root, form.layouts, carried, hold, self._engine.spare_bytes):
                return False
            hold.root = root if apart else None
            return True

        return self._engine.with_prefixes(self._kv_bits, work)

    def held(self, holds: Sequence[Hold]) -> list[tuple[int, int]]:
        """For each hold, how many tokens and bytes of its session it keeps in memory."""
        return self._engine.with_prefixes(self._kv_bits, lambda *_: [(h.tokens, held_bytes([h])) for h in holds])

    def keep_within(self, holds: Sequence[Hold], nbytes: int) -> None:
        """Let go of what the first of `holds` keep, until all of them together keep at most `nbytes`."""

        def work(*_: object) -> None:
            for i, hold in enumerate(holds):
                if held_bytes(holds[i:]) <= nbytes:
                    return
                hold.move([])

        self._engine.with_prefixes(self._kv_bits, work)

    @property
    def budget(self) -> int:
        """Bytes of memory for all that is remembered."""
        return self._engine.prefix_bytes
