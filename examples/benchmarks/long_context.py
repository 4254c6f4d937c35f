"""What the demo checkpoint still recalls beyond the length it was trained with, with and without YaRN.

    python -m examples.benchmarks.long_context [--count 24]

Facts at the beginning of a long text and a question at its end, at once and at twice the longest training sample
(1,150 tokens, `examples/demo_model/recipe.json`). YaRN stretches by 2, as `--context` does beyond a native context.
Each wanted answer is read in one pass: it counts as recalled where every token of it is the network's first choice,
which is where greedy decoding says just that; and a draft of the MTP layer as accepted where it is the network's own
first choice.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import mlx.core as mx

from examples.demo_model.encoding import Encoded, encode
from examples.demo_model.samples import CHECKPOINT
from examples.demo_model.tasks import recall
from examples.demo_model.words import Words
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model

TRAINED = 1_150  # tokens
STRETCH = 2


@dataclass(frozen=True)
class Read:
    """Of one wanted answer.   recalled: each token was the first choice   accepted: of `drafts` of the MTP layer"""

    recalled: bool
    accepted: int
    drafts: int


def questions(tokens: int, count: int) -> list[Encoded]:
    """Prompts of at most `tokens` tokens, and nearly as many, with answers; unseen in training."""
    random, found = Random(f"long context/{tokens}"), []
    while len(found) < count:
        sample = encode(recall(Words(random, unseen=True), random.random() < 0.5, tokens))
        if 0.9 * tokens <= len(sample.prompt) <= tokens:
            found.append(sample)
    return found


def read(model: Model, sample: Encoded) -> Read:
    """One pass over a prompt and its answer."""
    ids = mx.array([[*sample.prompt, *sample.completion]])
    first, last = len(sample.prompt) - 1, ids.shape[1] - 2
    hidden = model.hidden_states(ids)
    choices = model.logits(hidden[:, first : last + 1]).argmax(-1)
    drafted = model.mtp(hidden[:, :-1], model.embed(ids[:, 1:]))[:, first:last]
    hits = (model.logits(drafted).argmax(-1) == choices[:, 1:]).sum()
    return Read(bool((choices == ids[:, first + 1 :]).all().item()), int(hits.item()), last - first)  # pyright: ignore


def stretched(scratch: Path) -> Path:
    """The checkpoint with YaRN in its config, beyond what it was trained with."""
    folder = scratch / "stretched"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((folder / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": float(STRETCH), "original_max_position_embeddings": TRAINED}
    config["text_config"]["rope_parameters"] |= yarn
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="prompts of each length (24)")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    with tempfile.TemporaryDirectory() as scratch:
        models = {"without": load_model(CHECKPOINT).model, "with YaRN": load_model(stretched(Path(scratch))).model}
    for tokens in (TRAINED, STRETCH * TRAINED):
        samples = questions(tokens, args.count)
        for name, model in models.items():
            found = [read(model, sample) for sample in samples]
            recalled = sum(each.recalled for each in found) / len(found)
            accepted = sum(each.accepted for each in found) / sum(each.drafts for each in found)
            print(
                f"{tokens:6,} tokens, {name:10} {100 * recalled:5.1f} % recalled, {100 * accepted:5.1f} % of drafts "
                f"accepted ({len(found)} prompts)",
                flush=True,
            )


if __name__ == "__main__":
    main()
