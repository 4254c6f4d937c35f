"""What sessions ask of the engine's prefix store: to keep their text, hand it out, take it in. From any thread."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_qwen35.caches.carried import Carried, Packer, put_back
from mlx_qwen35.caches.holds import Hold
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
        other = Hold()
        self._engine.post(lambda: other.move(hold.nodes))
        return other

    def carry(self, ids: Sequence[int], hold: Hold) -> Carried:
        """The longest known prefix of `ids`, copied array by array between steps; no spans where nothing is known."""
        packer = self._engine.with_prefixes(self._kv_bits, lambda store, form: Packer(store, form.root, ids, hold))
        blobs = {}
        try:
            while (packed := self._engine.with_prefixes(self._kv_bits, lambda *_: packer.pack_one())) is not None:
                blobs[packed[0]] = packed[1]
        finally:
            self._engine.post(packer.close)
        return Carried(packer.fingerprint, ids, packer.ends, blobs)

    def fingerprint(self) -> str:
        """Of this model and cache format."""
        return self._engine.with_prefixes(self._kv_bits, lambda _, form: form.root.key)

    def spare_bytes(self) -> int:
        """What there is room for now."""
        return self._engine.with_prefixes(self._kv_bits, lambda *_: self._engine.spare_bytes)

    def put_back(self, carried: Carried, hold: Hold) -> bool:
        """Know and hold a carried prefix; False where it is not one of this model and format, and nothing was done."""
        return self._engine.with_prefixes(
            self._kv_bits,
            lambda store, form: (
                carried.fingerprint == form.root.key
                and put_back(store, form.root, form.layouts, carried, hold, self._engine.spare_bytes)
            ),
        )
