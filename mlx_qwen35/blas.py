"""Where a fast BLAS lies on this Linux machine. MLX's Linux wheel links a reference BLAS, forty times slower."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def find_openblas(root: Path = Path("/usr/lib")) -> Path | None:
    """Debian's threaded OpenBLAS, or None. It helps only when preloaded (LD_PRELOAD) before Python starts."""
    if not sys.platform.startswith("linux"):
        return None
    return next(iter(sorted(root.glob("*/openblas-pthread/libopenblas.so.0"))), None)


def advice() -> str | None:
    """One line on how to make MLX fast here, or None where it is, or where nothing can be done."""
    if not sys.platform.startswith("linux") or "openblas" in os.environ.get("LD_PRELOAD", ""):
        return None
    found = find_openblas()
    if found is None:
        return "MLX's Linux wheel links a slow BLAS; apt-get install libopenblas0-pthread has a fast one to preload."
    return f"MLX's Linux wheel links a slow BLAS; start with LD_PRELOAD={found} OPENBLAS_NUM_THREADS=1 for a fast one."
