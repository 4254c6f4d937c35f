"""The whole examination in its order: the machine, the files, then the network, if it can be loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.doctor import environment, files, network
from mlx_qwen35.doctor.findings import BAD, NOT_RUN, Finding, examine
from mlx_qwen35.doctor.network import Patient
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.models.weights import load_model

MACHINE: dict[str, Callable[[], str]] = {
    "hardware": environment.hardware,
    "software": environment.software,
    "backend": environment.backend,
    "disk": environment.disk,
}
FILES: dict[str, Callable[[Path], str]] = {
    "files complete": files.headers,
    "checksums": files.checksums,
    "chat template": files.template,
    "tokenizer": files.tokenizer,
}
NETWORK: dict[str, Callable[[Patient], str]] = {
    "kernels == definitions": network.kernels,
    "finite over a long prompt": network.finite,
    "chunked == stepwise": network.chunked,
    "batch == single": network.batch,
    "drafts == plain": network.drafts,
    "restored == cold": network.restored,
    "8-bit KV agrees": network.quantized_kv,
}
WEIGHTS = "weights"


def examination(folder: Path) -> Iterator[Finding]:
    """Findings as they come. A network that cannot be trusted with its weights is not examined further."""
    for name, look in MACHINE.items():
        yield examine(name, look)
    unreadable = False
    for name, look_at in FILES.items():
        finding = examine(name, partial(look_at, folder))
        unreadable |= finding.is_bad and look_at in (files.headers, files.checksums)
        yield finding
    if unreadable:
        yield from _skipped("the files are damaged")
        return
    thread = MLXThread()
    try:
        yield from _network(folder, thread)
    finally:
        thread.close()


def _network(folder: Path, thread: MLXThread) -> Iterator[Finding]:
    patients: list[Patient] = []

    def load() -> str:
        model = thread.call(lambda: load_model(folder).model)
        # A tokenizer that cannot be read has its own line.
        known = min(_known(folder, model.config.vocab_size), model.config.vocab_size)
        patients.append(Patient(folder, model, thread, known))
        return network.weights(patients[0])

    yield (finding := examine(WEIGHTS, load))
    if finding.verdict == BAD:
        yield from _skipped("the weights cannot be used", without=WEIGHTS)
        return
    for name, look in NETWORK.items():
        yield examine(name, partial(look, patients[0]))


def _known(folder: Path, rows: int) -> int:
    try:
        return Tokenizer.from_folder(folder).vocab_size
    except Exception:  # whatever is wrong with it is told where tokenizers are looked at
        return rows


def _skipped(why: str, without: str = "") -> Iterator[Finding]:
    for name in (WEIGHTS, *NETWORK):
        if name != without:
            yield Finding(name, NOT_RUN, why)
