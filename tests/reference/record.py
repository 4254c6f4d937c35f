"""Records what transformers (torch, CPU, float32, eager) computes on the tiny checkpoints, into data/.

    pip install -e '.[reference]'
    python -m tests.reference.record [CASE ...]

Only the record*.py files need torch. What they learn from transformers goes into small committed files, so that the
tests never do.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from tests.reference import CASES, DATA, TinyCase, file_hashes, manifest, token_ids, write_checkpoint
from tests.reference.record_delta_rule import record_delta_rule
from tests.reference.record_mtp import record_mtp

LENGTHS = (1, 63, 64, 65, 200)
PREFILLS = (1, 64, 100)
DECODED = 12
SHORT = 13
GREEDY_PROMPT, GREEDY_TOKENS = 22, 32

Arrays = dict[str, np.ndarray]


def load(folder: Path) -> Any:
    """transformers' own text model, through its own loader. Every trunk tensor must have been found."""
    config = AutoConfig.from_pretrained(folder)
    text = getattr(config, "text_config", config)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=text, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: sorted(info[key]) for key in ("missing_keys", "mismatched_keys") if info[key]}
    unexpected = [k for k in info["unexpected_keys"] if not k.startswith(("mtp.", "model.visual."))]
    if wrong or unexpected:
        raise SystemExit(f"{folder}: transformers did not load it whole: {wrong} unexpected {unexpected}")
    return model.eval()


class Watch:
    """Notes, during forward passes, each head's decay and how near the router came to another choice."""

    def __init__(self, model: Any) -> None:
        self.decays: list[tuple[float, float]] = []
        self.router_gap = float("inf")
        for layer in model.model.layers:
            if hasattr(layer, "linear_attn"):
                layer.linear_attn.in_proj_a.register_forward_hook(self._decay_of(layer.linear_attn))
            if hasattr(layer.mlp, "gate"):
                layer.mlp.gate.register_forward_hook(self._router)

    def _decay_of(self, mixer: Any) -> Any:
        def hook(module: Any, args: Any, a: torch.Tensor) -> None:
            step = torch.nn.functional.softplus(a.float() + mixer.dt_bias)
            decay = torch.exp(-mixer.A_log.float().exp() * step)
            self.decays.append((decay.min().item(), decay.max().item()))

        return hook

    def _router(self, module: Any, args: Any, out: Any) -> None:
        ranked = out[0].sort(dim=-1, descending=True).values
        gap = (ranked[:, module.top_k - 1] - ranked[:, module.top_k]).min().item()
        self.router_gap = min(self.router_gap, gap)


def positions_kept(length: int) -> np.ndarray:
    """All positions of the short runs; of the long one the last 8 and every 9th, so chunk edges are among them."""
    if length <= 65:
        return np.arange(length)
    return np.array(sorted({*range(0, length, 9), 62, 63, 64, 65, 127, 128, *range(length - 8, length)}))


def logits_at_lengths(model: Any, tokens: torch.Tensor) -> Arrays:
    out: Arrays = {}
    for length in LENGTHS:
        kept = positions_kept(length)
        logits = model(tokens[:, :length], use_cache=False).logits[0].numpy()
        out[f"logits_{length}"] = logits[kept]
        out[f"positions_{length}"] = kept
    return out


def hidden_states(model: Any, tokens: torch.Tensor) -> Arrays:
    """`hidden_layers` [L, T, C]: the residual stream after each layer. `hidden_final` [T, C]: after the norm."""
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda m, a, out: seen.append(out[0])) for layer in model.model.layers]
    final = model.model(tokens[:, :SHORT], use_cache=False).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return {"hidden_layers": torch.stack(seen).numpy(), "hidden_final": final.numpy()}


def cached(model: Any, tokens: torch.Tensor) -> tuple[Arrays, float]:
    """Prefill, then one token at a time. The float is how far transformers is from its own full pass."""
    longest = max(PREFILLS) + DECODED
    full = model(tokens[:, :longest], use_cache=False).logits[0]
    out: Arrays = {}
    gap = 0.0
    for length in PREFILLS:
        cache = DynamicCache(config=model.config)
        rows = [model(tokens[:, :length], past_key_values=cache).logits[0, -1]]
        for at in range(length, length + DECODED):
            rows.append(model(tokens[:, at : at + 1], past_key_values=cache).logits[0, -1])
        logits = torch.stack(rows)
        gap = max(gap, (logits - full[length - 1 : length + DECODED]).abs().max().item())
        out[f"cached_{length}"] = logits.numpy()
    return out, gap


def chunked_prefill_gap(model: Any, tokens: torch.Tensor) -> float:
    """How far transformers' prefill in ragged windows is from its own one-shot prefill."""
    cache = DynamicCache(config=model.config)
    rows, at = [], 0
    for window in (50, 3, 64, 83):
        rows.append(model(tokens[:, at : at + window], past_key_values=cache).logits[0])
        at += window
    full = model(tokens[:, :at], use_cache=False).logits[0]
    return (torch.cat(rows) - full).abs().max().item()


def greedy(model: Any, tokens: torch.Tensor, known: int) -> tuple[Arrays, dict[str, Any]]:
    """The continuation over the ids that have a token, and how easily it could have gone another way."""
    cache = DynamicCache(config=model.config)
    window, chosen, gaps, padded = tokens[:, :GREEDY_PROMPT], [], [], 0
    for _ in range(GREEDY_TOKENS):
        row = model(window, past_key_values=cache).logits[0, -1]
        best = row[:known].topk(2)
        gaps.append((best.values[0] - best.values[1]).item())
        padded += int(row.argmax()) >= known
        chosen.append(int(best.indices[0]))
        window = best.indices[:1][None]
    arrays = {"greedy_prompt": tokens[0, :GREEDY_PROMPT].numpy(), "greedy": np.array(chosen)}
    return arrays, {"greedy_top2_gap": min(gaps), "greedy_padded_row_was_highest": padded}


def three_axis_positions() -> np.ndarray:
    """int64 [3, T]: five text tokens, a 3 x 4 image, a 2 x 2 image, then text; as get_rope_index lays them out."""
    rows: list[tuple[int, int, int]] = [(p, p, p) for p in range(5)]
    at = 5
    for height, width in ((3, 4), (2, 2)):
        rows += [(at, at + r, at + c) for r in range(height) for c in range(width)]
        at += max(height, width)
    rows += [(p, p, p) for p in range(at, at + 7)]
    return np.array(rows).T


def three_axes(model: Any, tokens: torch.Tensor) -> Arrays:
    positions = three_axis_positions()
    count = positions.shape[1]
    ids = torch.from_numpy(positions)[:, None, :]
    logits = model(tokens[:, :count], position_ids=ids, use_cache=False).logits[0].numpy()
    plain = model(tokens[:, :count], use_cache=False).logits[0].numpy()
    assert np.abs(logits - plain)[6:].max() > 0.01, "the positions make no difference, so they test nothing"
    return {"mrope_positions": positions, "mrope_logits": logits}


@torch.no_grad()
def record(case: TinyCase) -> tuple[Arrays, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as made:
        folder = write_checkpoint(case.name, Path(made))
        hashes = file_hashes(folder)
        model = load(folder)
        ids = token_ids(case)
        tokens = torch.from_numpy(ids)[None]
        watch = Watch(model)
        arrays: Arrays = {"tokens": ids, **logits_at_lengths(model, tokens), **hidden_states(model, tokens)}
        decoded, cached_gap = cached(model, tokens)
        continuation, greedy_facts = greedy(model, tokens, case.tokens)
        arrays |= decoded | continuation | three_axes(model, tokens)
        facts = {
            "files": hashes,
            "logits_abs_max": float(np.abs(arrays["logits_200"]).max()),
            "logits_std": float(arrays["logits_200"].std()),
            "decay_range": [min(low for low, _ in watch.decays), max(high for _, high in watch.decays)],
            "cached_gap": cached_gap,
            "chunked_prefill_gap": chunked_prefill_gap(model, tokens),
            **greedy_facts,
        }
        if case.moe:
            facts["router_logit_gap"] = watch.router_gap
        if case.mtp != "absent":
            arrays |= record_mtp(model, tokens[:, :SHORT], case.tokens)
    return arrays, facts


def write_arrays(path: Path, arrays: Arrays) -> None:
    small = {k: v.astype(np.float32) if v.dtype.kind == "f" else v.astype(np.int32) for k, v in arrays.items()}
    np.savez_compressed(path, allow_pickle=False, **small)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    choices = [*CASES, "delta_rule"]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(choices)}")
    names = parser.parse_args().cases or choices
    if unknown := set(names) - set(choices):
        parser.error(f"no such case: {', '.join(sorted(unknown))}. There are: {', '.join(choices)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    facts = manifest() if (DATA / "manifest.json").exists() else {"cases": {}}
    facts["made_with"] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    for name in names:
        if name == "delta_rule":
            arrays, facts["delta_rule"] = record_delta_rule()
        else:
            arrays, facts["cases"][name] = record(CASES[name])
            print(name, {k: v for k, v in facts["cases"][name].items() if k != "files"})
        write_arrays(DATA / f"{name}.npz", arrays)
    (DATA / "manifest.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
