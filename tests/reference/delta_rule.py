"""The gated delta rule in float64, token by token, and the inputs at which faster forms of it go wrong.

numpy alone. What transformers computes on the same inputs is recorded in data/delta_rule.npz.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.reference.tiny_cases import uniform

KEY_HEADS, VALUE_HEADS, KEY_WIDTH, VALUE_WIDTH, BATCH = 2, 6, 16, 24, 2


@dataclass(frozen=True)
class DeltaInputs:
    """float32, as a model would hand them over, and ready for use: q and k normalised, q scaled.

    q, k: [B, T, Hk, Dk]   v: [B, T, Hv, Dv]   log_decay, beta: [B, T, Hv]   state: [B, Hv, Dv, Dk]
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    log_decay: np.ndarray
    beta: np.ndarray
    state: np.ndarray


def delta_rule_float64(inputs: DeltaInputs) -> tuple[np.ndarray, np.ndarray]:
    """The definition: decay, recall, correct, read. -> output [B, T, Hv, Dv], state [B, Hv, Dv, Dk], float64"""
    repeats = inputs.v.shape[2] // inputs.k.shape[2]
    q, k = (np.repeat(x.astype(np.float64), repeats, axis=2) for x in (inputs.q, inputs.k))
    v, beta = inputs.v.astype(np.float64), inputs.beta.astype(np.float64)
    decay = np.exp(inputs.log_decay.astype(np.float64))
    state = inputs.state.astype(np.float64)
    output = np.empty_like(v)
    for t in range(v.shape[1]):
        state = state * decay[:, t, :, None, None]
        recalled = np.einsum("bhvk,bhk->bhv", state, k[:, t])
        correction = beta[:, t, :, None] * (v[:, t] - recalled)
        state = state + correction[..., None] * k[:, t, :, None, :]
        output[:, t] = np.einsum("bhvk,bhk->bhv", state, q[:, t])
    return output, state


def _normal(label: str, shape: tuple[int, ...]) -> np.ndarray:
    """Near enough: the sum of four uniforms, of variance one."""
    return (uniform(label, (4, *shape)).sum(axis=0) - 2) * np.sqrt(3)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True))


def _float32(**arrays: np.ndarray) -> DeltaInputs:
    return DeltaInputs(**{name: array.astype(np.float32) for name, array in arrays.items()})


def _ordinary(label: str, tokens: int) -> dict[str, np.ndarray]:
    """Decays of 0.5 to 0.999 by head, beta over all of (0, 1), a state that is not empty."""
    per_value_head = (BATCH, tokens, VALUE_HEADS)
    keys = (BATCH, tokens, KEY_HEADS, KEY_WIDTH)
    slow = np.linspace(0, 1, VALUE_HEADS) * np.log(500)  # 1 - decay from 0.5 down to 0.001
    return {
        "q": _unit(_normal(f"{label}/q", keys)) * KEY_WIDTH**-0.5,
        "k": _unit(_normal(f"{label}/k", keys)),
        "v": _normal(f"{label}/v", (*per_value_head, VALUE_WIDTH)),
        "log_decay": np.log1p(-0.5 * np.exp(-slow)) * (0.5 + 0.5 * uniform(f"{label}/decay", per_value_head)),
        "beta": uniform(f"{label}/beta", per_value_head),
        "state": _normal(f"{label}/state", (BATCH, VALUE_HEADS, VALUE_WIDTH, KEY_WIDTH)),
    }


def _forgetting(label: str, tokens: int) -> dict[str, np.ndarray]:
    """exp(-20) a token: the decay between two tokens far apart underflows, its inverse overflows."""
    drawn = _ordinary(label, tokens)
    return drawn | {"log_decay": -20 + uniform(f"{label}/decay", drawn["beta"].shape)}


def _keeping(label: str, tokens: int) -> dict[str, np.ndarray]:
    """Nothing decays: log-decays between -1e-6 and 0, every fourth one exactly 0."""
    drawn = _ordinary(label, tokens)
    log_decay = -1e-6 * uniform(f"{label}/decay", drawn["beta"].shape)
    log_decay[:, ::4] = 0
    return drawn | {"log_decay": log_decay}


def _abrupt(label: str, tokens: int) -> dict[str, np.ndarray]:
    """Keeps for a while, then forgets at once: -20 at every seventh token, near 0 between."""
    drawn = _keeping(label, tokens)
    drawn["log_decay"][:, 3::7] = -20
    return drawn


def _same_key(label: str, tokens: int) -> dict[str, np.ndarray]:
    """One key over and over, written in full, nothing forgotten, as with a repeated token.

    The inverse of the chunk's triangular matrix is tame, but its Neumann series and the powers in it are not: they
    grow as binomial coefficients and cancel.
    """
    drawn = _keeping(label, tokens)
    k = _unit(drawn["k"][:, :1] + 0.01 * drawn["k"])
    return drawn | {"k": k, "beta": 1 - 0.01 * drawn["beta"]}


def _all_or_nothing(label: str, tokens: int) -> dict[str, np.ndarray]:
    """beta exactly 0 (nothing is written) and exactly 1 (the old value is replaced) by turns."""
    drawn = _ordinary(label, tokens)
    return drawn | {"beta": (drawn["beta"] > 0.5).astype(np.float64)}


_KINDS: dict[str, Callable[[str, int], dict[str, np.ndarray]]] = {
    "ordinary": _ordinary,
    "forgetting": _forgetting,
    "keeping": _keeping,
    "abrupt": _abrupt,
    "same_key": _same_key,
    "all_or_nothing": _all_or_nothing,
}
DELTA_CASES = {
    **{f"ordinary_{tokens}": ("ordinary", tokens) for tokens in (1, 63, 64, 65, 200)},
    **{f"{kind}_200": (kind, 200) for kind in _KINDS if kind != "ordinary"},
}


def delta_inputs(name: str) -> DeltaInputs:
    """The inputs of one of DELTA_CASES."""
    kind, tokens = DELTA_CASES[name]
    return _float32(**_KINDS[kind](f"delta_rule/{name}", tokens))
