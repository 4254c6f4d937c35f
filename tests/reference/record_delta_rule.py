"""transformers' two forms of the gated delta rule on the unit cases of delta_rule.py."""

from typing import Any

import numpy as np
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from tests.reference.delta_rule import DELTA_CASES, DeltaInputs, delta_inputs, delta_rule_float64


def _transformers(form: Any, inputs: DeltaInputs) -> tuple[np.ndarray, np.ndarray]:
    """Output and state in our layout; transformers scales q itself and keeps its state as [B, Hv, Dk, Dv]."""
    output, state = form(
        torch.from_numpy(inputs.q) * inputs.q.shape[-1] ** 0.5,
        torch.from_numpy(inputs.k),
        torch.from_numpy(inputs.v),
        g=torch.from_numpy(inputs.log_decay),
        beta=torch.from_numpy(inputs.beta),
        initial_state=torch.from_numpy(inputs.state).transpose(-1, -2).contiguous(),
        output_final_state=True,
    )
    return output.numpy(), state.transpose(-1, -2).numpy()


def record_delta_rule() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays `NAME/output` [B, 8, Hv, Dv] (the last 8 tokens or fewer) and `NAME/state`, by the recurrent form.

    The facts say how far each form is from the float64 definition, over all tokens.
    """
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    for name in DELTA_CASES:
        inputs = delta_inputs(name)
        exact = delta_rule_float64(inputs)
        output, state = _transformers(torch_recurrent_gated_delta_rule, inputs)
        arrays |= {f"{name}/output": output[:, -8:], f"{name}/state": state}
        chunked = _transformers(torch_chunk_gated_delta_rule, inputs)
        facts[name] = {
            "output_abs_max": float(np.abs(exact[0]).max()),
            "state_abs_max": float(np.abs(exact[1]).max()),
            "recurrent_error": _errors((output, state), exact),
            "chunked_error": _errors(chunked, exact),
        }
    return arrays, facts


def _errors(found: tuple[np.ndarray, np.ndarray], exact: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """Largest absolute difference of the output and of the state."""
    return [float(np.abs(a - b).max()) for a, b in zip(found, exact, strict=True)]
