"""How models are loaded for the page: as it was started, whichever of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_qwen35.hub.catalog import remember_last
from mlx_qwen35.hub.progress import ProgressCallback
from mlx_qwen35.models.fit import fetch_if_it_fits
from mlx_qwen35.models.weights import Progress
from mlx_qwen35.options import USUAL_CONTEXT, CacheOptions
from mlx_qwen35.runtime import Runtime


@dataclass(frozen=True)
class Loading:
    """context, force, offline, caches: as for `Runtime.load`   warn: takes a line for people, from any thread"""

    context: int = USUAL_CONTEXT
    force: bool = False
    offline: bool = False
    caches: CacheOptions = field(default_factory=CacheOptions)
    warn: Callable[[str], None] = print

    def fetch(self, name: str, progress: ProgressCallback) -> None:
        """Have a model on this computer, if it fits. Raises UserError."""
        fetch_if_it_fits(name, self.context, self.force, self.offline, self.caches.kv_bits, progress)

    def load(self, name: str, progress: Progress) -> Runtime:
        """Raises UserError; what was loaded is the last used one from now on."""
        runtime = Runtime.load(
            name,
            context=self.context,
            force=self.force,
            offline=self.offline,
            progress=progress,
            caches=self.caches,
            warn=self.warn,
        )
        remember_last(name)
        for note in runtime.notes:
            self.warn(note)
        return runtime
