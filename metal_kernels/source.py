"""Metal text as files beside the code that calls it. Knows nothing of what is in them.

NAME.metal holds functions. The kernel's body, a few lines in NAME.py, declares threadgroup memory (Metal allows it
nowhere else), and names thread attributes, shapes and strides (MLX binds those it finds in the body).
"""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def metal_text(name: str) -> str:
    """The text of NAME.metal in this folder: functions, for the `header` of mx.fast.metal_kernel."""
    return (Path(__file__).parent / f"{name}.metal").read_text()
