"""What a conversion writes: every output tensor's format, shape and place, from headers alone. No weight is read.

Knows nothing of how bytes are read or written (stream.py), or of how formats are chosen (recipes.py, sizing.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_qwen35.convert.layout import MTP_FILE, OutputTensor, header_of, in_shards, placed, shard_name
from mlx_qwen35.convert.options import Options
from mlx_qwen35.convert.packing import Packing
from mlx_qwen35.convert.parameters import Dropped, Parameter, parameters_of
from mlx_qwen35.convert.recipes import Choice, Formats, formats_of
from mlx_qwen35.convert.roles import token_share
from mlx_qwen35.convert.sizing import Budget, chosen_share, formats_within, memory_for_weights
from mlx_qwen35.convert.source import Source, open_source
from mlx_qwen35.errors import CheckpointError

INLINE_MTP = "language_model."  # before the names of an inline MTP layer, where other runtimes look for it
HEADER_BYTES_A_TENSOR = 400  # at most, so that a size that was asked for holds the headers too


@dataclass(frozen=True)
class Job:
    """One parameter and the tensors it becomes: weight, scales and biases, or the one kept tensor."""

    parameter: Parameter
    packing: Packing | None
    kept: str  # why it is not packed
    tensors: tuple[OutputTensor, ...]

    @property
    def target(self) -> str:
        return self.parameter.target

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)


@dataclass(frozen=True)
class OutputFile:
    """A safetensors file, and the jobs that fill it."""

    name: str
    jobs: tuple[Job, ...]

    @property
    def tensors(self) -> list[OutputTensor]:
        return [t for job in self.jobs for t in job.tensors]

    @property
    def nbytes(self) -> int:
        """Of the tensors; the header comes before them."""
        return sum(job.nbytes for job in self.jobs)

    def header(self) -> bytes:
        return header_of(self.tensors)


@dataclass(frozen=True)
class ConversionPlan:
    """The whole conversion. packing: of what has no format of its own   mtp: where the MTP layer comes from, if not
    from the source itself"""

    source: Source
    options: Options
    packing: Packing
    files: tuple[OutputFile, ...]
    dropped: tuple[Dropped, ...]
    mtp: Source | None = None

    @property
    def jobs(self) -> Iterator[Job]:
        return (job for file in self.files for job in file.jobs)

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def parameters(self) -> int:
        """Weights in all, without those of a source that is packed already."""
        return sum(job.parameter.rows * job.parameter.width for job in self.jobs)

    @property
    def bits_per_weight(self) -> float:
        """Of the language model and its MTP layer; the vision tower does not count."""
        jobs = [job for job in self.jobs if job.parameter.place.role != "vision"]
        modules = self.source.survey.model.named_modules()
        bits = {f"{path}.weight": module.bits for path, module in modules if hasattr(module, "bits")}
        return 8 * sum(job.nbytes for job in jobs) / sum(_weights(job.parameter, bits) for job in jobs)

    @property
    def token_bytes(self) -> int:
        """Weights read for one token of plain decoding."""
        config = self.source.model_config
        share = chosen_share(config)
        return round(sum(j.nbytes * token_share(j.parameter.place, share, config.tie_embeddings) for j in self.jobs))

    @property
    def has_mtp(self) -> bool:
        return any(job.parameter.place.mtp for job in self.jobs)

    @property
    def has_vision(self) -> bool:
        return any(job.parameter.place.role == "vision" for job in self.jobs)


def _weights(parameter: Parameter, packed: Mapping[str, Any]) -> int:
    """packed: the bits of what the source has packed already; scales and biases are no weights"""
    count = parameter.rows * parameter.width
    if parameter.dtype == "U32":
        return count * 32 // packed[parameter.target]
    return 0 if parameter.target.endswith((".scales", ".biases")) else count


def plan_conversion(source: Source | str | Path, options: Options | None = None) -> ConversionPlan:
    """Plan the conversion of a checkpoint.

    Raises UserError, one line: options or tensors that cannot be converted, a size that cannot be reached.
    """
    options = options or Options()
    if not isinstance(source, Source):
        source = open_source(source)
    mtp = open_source(options.mtp_source) if options.mtp_source else None
    if source.is_packed and mtp is None:
        quantization = source.model_config.quantization
        assert quantization is not None
        raise CheckpointError(
            f"{source.folder} is quantized already ({quantization.bits} bits); convert from the BF16 original. "
            "Only an MTP layer can be added to it, with --mtp-source."
        )
    parameters, dropped = parameters_of(source, mtp, options)
    packing = _base_packing(source, options)
    choose = _formats(source, parameters, options, packing)
    jobs = [_job(parameter, choose) for parameter in parameters]
    in_folder = [job for job in jobs if job.parameter.place.mtp and options.mtp == "subdir"]
    trunk = [_renamed(job, options) for job in jobs if not (in_folder and job.parameter.place.mtp)]
    shards = in_shards(trunk, lambda job: job.nbytes)
    files = [_file(shard_name(i, len(shards)), shard) for i, shard in enumerate(shards, 1)]
    if in_folder:
        # Beside the model, since other runtimes take any *.safetensors in the folder itself for the trunk's.
        files.append(_file(MTP_FILE, in_folder))
    return ConversionPlan(source, options, packing, tuple(files), tuple(dropped), mtp)


def _base_packing(source: Source, options: Options) -> Packing:
    quantization = source.model_config.quantization
    if quantization and not options.bits:
        return Packing(quantization.bits, quantization.group_size, quantization.mode)
    return options.packing


def _formats(source: Source, parameters: list[Parameter], options: Options, packing: Packing) -> Formats:
    config, limit = source.model_config, options.size
    if options.fit:
        limit = memory_for_weights(source.config, options.fit)
    if limit:
        limit -= HEADER_BYTES_A_TENSOR * 3 * len(parameters)
        return formats_within(parameters, config, Budget(limit, options.token_bytes), packing.group_size)
    recipe = options.recipe or ("uniform" if options.quality == "stock" else "balanced")
    return formats_of(recipe, packing)


def _job(parameter: Parameter, choose: Formats) -> Job:
    choice = choose(parameter.path, parameter.place, parameter.width) if parameter.packable else Choice(None)
    kept = OutputTensor(parameter.target, parameter.dtype, parameter.shape)
    packing = choice.packing
    if not packing:
        return Job(parameter, None, choice.why, (kept,))
    head, width = parameter.shape[:-1], parameter.width
    words, groups = width * packing.bits // 32, width // packing.group_size
    affine = packing.mode == "affine"
    packed = [
        OutputTensor(parameter.target, "U32", (*head, words)),
        OutputTensor(f"{parameter.path}.scales", parameter.dtype if affine else "U8", (*head, groups)),
    ]
    if affine:
        packed.append(OutputTensor(f"{parameter.path}.biases", parameter.dtype, (*head, groups)))
    return Job(parameter, packing, "", tuple(packed))


def _renamed(job: Job, options: Options) -> Job:
    if not (job.parameter.place.mtp and options.mtp == "inline"):
        return job
    return replace(job, tensors=tuple(replace(t, name=INLINE_MTP + t.name) for t in job.tensors))


def _file(name: str, jobs: list[Job]) -> OutputFile:
    places = placed([t for job in jobs for t in job.tensors])
    return OutputFile(name, tuple(replace(j, tensors=tuple(places[t.name] for t in j.tensors)) for j in jobs))
