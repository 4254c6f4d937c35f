"""The chunked delta rule against its one-token definition, and both against MLX's own operation."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_qwen35.metal_kernels.delta_rule import (
    gated_delta,
    gated_delta_chunked,
    gated_delta_stepwise,
    unit_lower_inverse,
)
from tests.metal_kernels.delta_windows import assert_same, random_window


@pytest.mark.parametrize("chunk", [4, 32])
@pytest.mark.parametrize("T", [1, 3, 31, 32, 33, 64, 100])
def test_chunked_equals_step_by_step(T: int, chunk: int) -> None:
    window = random_window(T)
    assert_same(gated_delta_chunked(*window, chunk=chunk), gated_delta_stepwise(*window))


@pytest.mark.parametrize("T", [1, 63, 65])
def test_a_fresh_state_is_zero(T: int) -> None:
    *window, state = random_window(T)
    assert_same(gated_delta_chunked(*window, None), gated_delta_stepwise(*window, mx.zeros_like(state)))
    assert_same(gated_delta_stepwise(*window, None), gated_delta_stepwise(*window, mx.zeros_like(state)))


def test_segments_join(monkeypatch: pytest.MonkeyPatch) -> None:
    window = random_window(150)
    whole = gated_delta_chunked(*window)
    monkeypatch.setattr("mlx_qwen35.metal_kernels.delta_rule.SEGMENT", 64)
    assert_same(gated_delta_chunked(*window), whole)


def test_two_windows_equal_one() -> None:
    q, k, v, g, b, state = random_window(70)
    first, between = gated_delta(q[:, :29], k[:, :29], v[:, :29], g[:, :29], b[:, :29], state)
    second, after = gated_delta(q[:, 29:], k[:, 29:], v[:, 29:], g[:, 29:], b[:, 29:], between)
    assert_same((mx.concatenate([first, second], axis=1), after), gated_delta(q, k, v, g, b, state))


def test_equal_keys_without_decay_stay_exact() -> None:
    """The case where the Neumann product of the triangular inverse cancels: its terms grow to 1e8."""
    q, k, v, g, b, state = random_window(64)
    k = mx.broadcast_to(k[:, :1], k.shape)
    window = (q, k, v, mx.zeros_like(g), mx.ones_like(b), state)
    assert_same(gated_delta_chunked(*window), gated_delta_stepwise(*window))


@pytest.mark.parametrize("log_decay", [-1e-7, -20.0, -90.0])
def test_extreme_decays_stay_finite_and_equal(log_decay: float) -> None:
    q, k, v, g, b, state = random_window(65)
    window = (q, k, v, mx.full(g.shape, log_decay), b, state)
    assert_same(gated_delta_chunked(*window), gated_delta_stepwise(*window))


def test_gradients_of_both_forms_agree() -> None:
    window = random_window(37, B=1)

    def loss(form):
        def of(*w: mx.array) -> mx.array:
            output, state = form(*w)
            return (output * output).sum() + state.sum()

        return of

    every = list(range(6))
    chunked = mx.grad(loss(gated_delta_chunked), argnums=every)(*window)
    stepwise = mx.grad(loss(gated_delta_stepwise), argnums=every)(*window)
    for name, ours, reference in zip(("q", "k", "v", "log_decay", "beta", "state"), chunked, stepwise):
        # Gradients of log_decay sum over the whole window, so float32 leaves a digit less.
        close = mx.allclose(ours, reference, rtol=1e-3, atol=1e-3 * mx.abs(reference).max().item())
        assert close.item(), f"gradient of {name}"


def test_the_definition_is_mlx_own_operation() -> None:
    q, k, v, g, b, state = random_window(17)
    theirs = mx.fast.gated_delta_update(q, k, v, mx.exp(g), b, state)
    assert_same(gated_delta_stepwise(q, k, v, g, b, state), (theirs[0], theirs[1]))


@pytest.mark.parametrize("C", [2, 8, 32])
def test_unit_lower_inverse(C: int) -> None:
    A = mx.tril(mx.random.normal((3, C, C), key=mx.random.key(1)), -1) * 0.5
    product = unit_lower_inverse(A) @ (A + mx.eye(C))
    assert mx.allclose(product, mx.broadcast_to(mx.eye(C), product.shape), atol=1e-3).item()


def test_a_chunk_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two but is 24"):
        gated_delta_chunked(*random_window(30), chunk=24)
