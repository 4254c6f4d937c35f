"""From a loaded network to a running engine: budgets, cache formats, the prefix store and its files."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mlx_qwen35 import __version__
from mlx_qwen35.caches.blobs import Layouts
from mlx_qwen35.caches.disk_store import DiskStore
from mlx_qwen35.caches.disk_tree import DiskTree
from mlx_qwen35.caches.draft_memory import DraftKV, LastHidden
from mlx_qwen35.caches.exact_kv import ExactKV, ExactQuantizedKV
from mlx_qwen35.caches.fingerprint import fingerprint
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.caches.quantized_kv import QuantizedKVCache
from mlx_qwen35.caches.rows import SequenceCache, draft_kv
from mlx_qwen35.errors import UserError
from mlx_qwen35.generation.cache_format import CacheFormat, CacheSizes, one_token
from mlx_qwen35.generation.engine import Engine
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.places import Limits
from mlx_qwen35.models.exact import ExactModel
from mlx_qwen35.models.model import Model
from mlx_qwen35.options import GIB, PLAIN, CacheOptions

EXACT = (ExactKV, ExactQuantizedKV)
STATE_LAYOUT = 1  # changes whenever segments or checkpoints mean something else
MAX_PREFIX_BYTES = 8 * GIB
BUFFER_CACHE = GIB  # bytes MLX may keep of freed buffers
LITTLE_ROOM = 256 << 20  # bytes free on a disk below which people are told that it keeps little


def start_engine(
    model: Model,
    thread: MLXThread,
    folder: Path,
    cache_bytes: int,
    options: CacheOptions,
    warn: Callable[[str], None],
) -> Engine:
    """An engine for the checkpoint in `folder`. To be called on the MLX thread.

    cache_bytes: that live sequences and remembered prefixes may take together   warn: takes one line for people
    """
    prefix_bytes = min(cache_bytes // 2, MAX_PREFIX_BYTES) if options.prefix_bytes is None else options.prefix_bytes
    _bound_mlx(cache_bytes)
    if options.exact:
        model = ExactModel(model)
    store = PrefixStore(prefix_bytes)

    def make_format(kv_bits: int) -> CacheFormat:
        make = functools.partial(make_caches, model, kv_bits, options.draft != "off", options.exact)
        example = one_token(model, make)
        name = _fingerprint(folder, model, kv_bits, example)
        layouts = Layouts.of(example)
        root = store.root(name, lambda: _open_disk(name, layouts, options, warn))
        return CacheFormat(make, CacheSizes.of(example), root, layouts)

    limits = Limits(cache_bytes, prefix_bytes, options.max_sequences)
    return Engine(model, thread, make_format, store, limits, options.draft)


def make_caches(model: Model, kv_bits: int, drafts: bool = True, exact: bool = False) -> SequenceCache:
    """Empty caches of one sequence.

    kv_bits: 16, 8 or 4   drafts: with what the MTP layer remembers, if there is one   exact: for `models.exact`
    """
    make = KVCache if kv_bits == PLAIN else functools.partial(QuantizedKVCache, kv_bits)
    exactly = ExactKV if kv_bits == PLAIN else functools.partial(ExactQuantizedKV, kv_bits)
    cache = model.make_cache(exactly if exact else make)
    if drafts and model.config.mtp_layers:
        last = LastHidden()
        cache += [DraftKV(make, model.feed, last), last]
    return cache


def _fingerprint(folder: Path, model: Model, kv_bits: int, example: SequenceCache) -> str:
    """Whatever changes the numbers in a cache changes the name under which they are kept."""
    rope = model.config.rotary.factor  # the rest of it stands in the checkpoint's config
    dtypes = " ".join(str(a.dtype) for layer in example for a in layer.state)
    versions = f"{__version__} mlx {version('mlx')}"
    mtp, exact = int(draft_kv(example) is not None), int(any(isinstance(c, EXACT) for c in example))
    return fingerprint(
        folder, kv_bits=kv_bits, mtp=mtp, exact=exact, dtypes=dtypes, rope=rope, layout=STATE_LAYOUT, versions=versions
    )


def _open_disk(name: str, layouts: Layouts, options: CacheOptions, warn: Callable[[str], None]) -> DiskTree | None:
    if options.disk is None:
        return None
    try:
        store = DiskStore(
            options.disk,
            name,
            byte_budget=_disk_budget(options.disk, options.disk_bytes),
            daily_write_budget=options.disk_bytes_a_day,
            warn=warn,
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        place = error.filename or options.disk
        warn(f"Prefixes are kept in memory only: {place}: {reason}. --disk names another folder.")
        return None
    except UserError as error:
        warn(f"Prefixes are kept in memory only: {error}")
        return None
    if (free := _free_bytes(options.disk)) < LITTLE_ROOM:
        warn(f"Prefix cache: the disk of {options.disk} has {free / 1e6:.0f} MB left, of which at most half is used.")
    return DiskTree(store, layouts)


def _disk_budget(folder: Path, wanted: int) -> int:
    """Bytes on disk: what was asked for, or half of what is free there if that is less."""
    held = sum(f.stat().st_size for f in folder.glob("*/*") if f.is_file()) if folder.is_dir() else 0
    return min(wanted, held + _free_bytes(folder) // 2)


def _free_bytes(folder: Path) -> int:
    """On the disk that `folder` is on, or will be."""
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    return shutil.disk_usage(existing).free


def _bound_mlx(cache_bytes: int) -> None:
    """Bound what MLX keeps: freed buffers, and on Metal the memory that macOS may not page out."""
    mx.set_cache_limit(BUFFER_CACHE)
    if mx.metal.is_available():
        recommended = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(min(mx.get_active_memory() + cache_bytes, recommended))
