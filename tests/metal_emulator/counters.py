"""What a launch cost, in quantities that need no Mac: bytes, FLOPs, operations."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counters:
    """Of one launch, summed over all its threads.

    Per buffer name, in bytes: `loaded` and `stored` as the threads ask for them; `unique` and `threadgroup_unique` in
    64-byte lines, each counted once for the launch, or once for each threadgroup (an ideal cache in each).
    """

    threads: int = 0
    threadgroups: int = 0
    flops: int = 0  # scalar: an add or a multiply is 1, a fused multiply-add 2
    special: int = 0  # exp, log, sqrt, sin and their like
    matrix_flops: int = 0  # of simdgroup_matrix products and tensor operations, 2 M N K each
    matrix_ops: int = 0  # 8x8 products
    tensor_ops: int = 0  # matmul2d of the M5
    simd_ops: int = 0  # shuffles and reductions, one a simdgroup
    threadgroup_barriers: int = 0
    simdgroup_barriers: int = 0
    atomics: int = 0
    simd_diverged: int = 0  # simdgroup operations with lanes missing
    threadgroup_bytes: int = 0  # threadgroup memory a threadgroup holds
    threadgroup_loaded: int = 0
    threadgroup_stored: int = 0
    loaded: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    unique: dict[str, int] = field(default_factory=dict)
    threadgroup_unique: dict[str, int] = field(default_factory=dict)

    @property
    def device_loaded(self) -> int:
        """Bytes asked for by loads, all buffers."""
        return sum(self.loaded.values())

    @property
    def device_stored(self) -> int:
        """Bytes written by stores, all buffers."""
        return sum(self.stored.values())

    @property
    def device_bytes(self) -> int:
        """Bytes that move between memory and threadgroups, each line once a threadgroup: what bandwidth pays for."""
        return sum(self.threadgroup_unique.values())
