"""Seeded windows for the gated delta rule, what they must give in float64, and when two results are the same."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

# Float32 sums in another order: measured up to 4e-7 of the largest value, ten times that is allowed.
TOLERANCE = 4e-6

Window = tuple[mx.array, mx.array, mx.array, mx.array, mx.array, mx.array]


def random_window(T: int, B: int = 2, Hk: int = 2, Hv: int = 6, Dk: int = 24, Dv: int = 40, seed: int = 0) -> Window:
    """Normalised q and k, decays in 0.5 .. 0.999, a state that is not zero. Dk != Dv, Hv != Hk."""
    keys = mx.random.split(mx.random.key(seed), 6)
    q, k = mx.random.normal((B, T, Hk, Dk), key=keys[0]), mx.random.normal((B, T, Hk, Dk), key=keys[1])
    q = q / mx.linalg.norm(q, axis=-1, keepdims=True) * Dk**-0.5
    k = k / mx.linalg.norm(k, axis=-1, keepdims=True)
    v = mx.random.normal((B, T, Hv, Dv), key=keys[2])
    log_decay = mx.random.uniform(-0.7, -0.001, (B, T, Hv), key=keys[3])
    beta = mx.random.uniform(0.0, 1.0, (B, T, Hv), key=keys[4])
    return q, k, v, log_decay, beta, mx.random.normal((B, Hv, Dv, Dk), key=keys[5])


def assert_same(found: tuple[mx.array, mx.array], expected: tuple[mx.array, mx.array]) -> None:
    for what, ours, reference in zip(("output", "state"), found, expected):
        assert ours.shape == reference.shape
        assert ours.dtype == mx.float32
        difference = mx.abs(ours - reference).max() / mx.abs(reference).max()
        assert difference.item() <= TOLERANCE, f"{what} differs by {difference.item():.1e} of its largest value"


def in_float64(window: Window) -> tuple[np.ndarray, np.ndarray]:
    """The definition once more, token by token, in numpy."""
    q, k, v, log_decay, beta, S = (np.array(x.astype(mx.float32), np.float64) for x in window)
    q, k = (np.repeat(x, v.shape[2] // x.shape[2], axis=2) for x in (q, k))
    outputs = []
    for t in range(q.shape[1]):
        S = S * np.exp(log_decay[:, t])[..., None, None]
        correction = beta[:, t][..., None] * (v[:, t] - np.einsum("bhvk,bhk->bhv", S, k[:, t]))
        S = S + correction[..., None] * k[:, t][:, :, None]
        outputs.append(np.einsum("bhvk,bhk->bhv", S, q[:, t]))
    return np.stack(outputs, axis=1), S
