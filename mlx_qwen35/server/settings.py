"""What the server is started with, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_qwen35.chat.canonical import RULES

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Limits, and who may ask.

    keys: any of them opens; none are needed on loopback
    hosts, origins: allowed beside those of this computer, as in the headers Host (without port) and Origin
    max_queue: answers that wait for a place in the batch; more requests get 429
    body_bytes, body_seconds: of a request's body   header_seconds: until its headers are complete
    answer_seconds: from the request to the end of its answer   stall_seconds: of a reader who takes nothing
    head_start_seconds: an error within them is a status still, later an event of the stream
    quiet_seconds: between comments that keep a silent stream alive   grace_seconds: for running answers at the end
    """

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    loopback: bool = True
    max_queue: int = 64
    body_bytes: int = 32 * MIB
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    answer_seconds: float = 3600.0
    stall_seconds: float = 120.0
    head_start_seconds: float = 1.0
    quiet_seconds: float = 5.0
    grace_seconds: float = 5.0
    quote_cache: bool = False
    rules: tuple[str, ...] = RULES
