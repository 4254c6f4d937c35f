"""The trainer's network against transformers, so that what is trained is what the checkpoint says. Needs torch.

`make test` skips this file in one line; run it where the `reference` extra is installed.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the trainer's network needs torch (extra `reference`)")
modeling = pytest.importorskip("transformers.models.qwen3_5_moe.modeling_qwen3_5_moe")

from examples.demo_model.export import config_json, tensors  # noqa: E402
from examples.demo_model.network import DemoConfig, DemoModel, unit_lower_inverse  # noqa: E402

LENGTH = 192


def random_model(config: DemoConfig) -> DemoModel:
    """Norm weights and decays away from their initial values, so that a wrong convention shows."""
    torch.manual_seed(0)
    model = DemoModel(config, torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.3)
            if "embed" in name:
                p.mul_(3)
    return model


@pytest.fixture(scope="module", params=[2, 4])
def pair(request: pytest.FixtureRequest):
    config = DemoConfig(linear_value_heads=request.param)
    model = random_model(config)
    text = {k: v for k, v in config_json(config)["text_config"].items() if k != "dtype"}
    reference = modeling.Qwen3_5MoeForCausalLM(modeling.Qwen3_5MoeTextConfig(**text)).float().eval()
    weights = {k.replace("language_model.", ""): v for k, v in tensors(model, torch.float32).items() if "mtp" not in k}
    reference.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    return model, reference


@torch.no_grad()
@pytest.mark.parametrize("chunk", [32, 64])
def test_logits_equal_transformers(pair, chunk: int) -> None:
    model, reference = pair
    tokens = torch.randint(0, 1024, (2, LENGTH))
    ours = model.logits(model(tokens, torch.arange(LENGTH).repeat(2, 1), chunk)[0])
    # Logits reach 22 here; float32 sums of other orders differ by some 1e-5 a layer.
    assert (ours - reference(input_ids=tokens).logits).abs().max() < 2e-4


@torch.no_grad()
def test_a_sample_does_not_see_its_neighbour_in_the_row(pair) -> None:
    model, reference = pair
    tokens = torch.randint(0, 1024, (1, LENGTH))
    position = torch.cat([torch.arange(70), torch.arange(LENGTH - 70)])[None]
    packed = model.logits(model(tokens, position)[0])[0]
    for part in (slice(0, 70), slice(70, LENGTH)):
        assert (packed[part] - reference(input_ids=tokens[:, part]).logits[0]).abs().max() < 2e-4


def test_the_inverse_has_the_exact_gradient() -> None:
    a = torch.randn(3, 8, 8, dtype=torch.float64).tril(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unit_lower_inverse(x.tril(-1)), (a,))
