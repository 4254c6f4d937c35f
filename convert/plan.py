"""What a conversion writes: every output tensor's format, shape and place, from headers alone. No weight is read.

The formats are those of stock mlx-lm's own conversion: every matrix it can pack, the router and the shared expert's
gate at 8 bits, and matrices whose rows are no multiple of the group size kept as they are. Knows nothing of how bytes
are read or written (stream.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from mlx_qwen35.errors import CheckpointError, ConfigError
from mlx_qwen35.hub.headers import TensorEntry
from mlx_qwen35.hub.jsonfile import read_json
from mlx_qwen35.hub.progress import gigabytes
from mlx_qwen35.models.norms import METADATA_KEY, PLUS_ONE
from mlx_qwen35.models.tensor_names import Recipe, is_zero_centred_norm, made_shape
from mlx_qwen35.models.weights import Survey, survey

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
SHARD_BYTES = 5_000_000_000
SOURCE_DTYPES = ("BF16", "F16", "F32")
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "U32": 4}
METADATA = {"format": "mlx", METADATA_KEY: PLUS_ONE}  # of every safetensors file
MTP_FILE = "mtp/model.safetensors"
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_HIGH = (".mlp.gate", ".mlp.shared_expert_gate")
_ROLES = (
    ("MTP layer", ("mtp.",)),
    ("embedding and head", (".embed_tokens", ".lm_head")),
    ("routers and shared-expert gates", (".mlp.gate.", ".shared_expert_gate.")),
    ("routed experts", (".switch_mlp.",)),
    ("feed-forward", (".mlp.",)),
    ("DeltaNet", (".linear_attn.",)),
    ("attention", (".self_attn.",)),
)


@dataclass(frozen=True)
class Packing:
    """MLX's affine format: `bits` a weight, a scale and a bias of 16 bits (as the model's dtype) a group."""

    bits: int
    group_size: int

    def __str__(self) -> str:
        return f"{self.bits}-bit, groups of {self.group_size}"


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of an output file; its data start `begin` bytes after the file's header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Job:
    """One parameter of the network: how it is made, what is added to it, and the tensors it becomes.

    Everything is rows: `rows` of `width` values, made of `spans` of source rows in order, packed or cast one by one.
    """

    recipe: Recipe
    rows: int
    width: int
    dtype: str  # of the values before packing
    add: float  # 1.0 turns a norm's stored offset into its factor
    packing: Packing | None
    kept: str  # why it is not packed
    tensors: tuple[OutputTensor, ...]  # weight, scales, biases; or the one kept tensor

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)


@dataclass(frozen=True)
class RowSpan:
    """Rows [first, first + count) of a source tensor."""

    entry: TensorEntry
    first: int
    count: int


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
        return sum(job.nbytes for job in self.jobs)


@dataclass(frozen=True)
class Dropped:
    """Source tensors that have no place in the output, and why."""

    names: tuple[str, ...]
    nbytes: int
    reason: str


@dataclass(frozen=True)
class ConversionPlan:
    """The whole conversion. `source` is the checked checkpoint it starts from."""

    source: Survey
    packing: Packing
    files: tuple[OutputFile, ...]
    dropped: tuple[Dropped, ...]

    @property
    def jobs(self) -> Iterator[Job]:
        return (job for file in self.files for job in file.jobs)

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def parameters(self) -> int:
        return sum(job.rows * job.width for job in self.jobs)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters

    def spans(self, job: Job) -> list[RowSpan]:
        return row_spans(job, [self.source.files.tensors[s] for s in job.recipe.sources])

    def table(self) -> str:
        """For people: what becomes of each part of the network, and what is left out."""
        lines: dict[tuple[str, str], list[int]] = {}
        for job in self.jobs:
            size = lines.setdefault((_role(job.recipe.target), _format(job)), [0, 0])
            size[0] += 1
            size[1] += job.nbytes
        rows = [(role, how, str(count), gigabytes(size)) for (role, how), (count, size) in lines.items()]
        rows += [("left out", d.reason, str(len(d.names)), gigabytes(d.nbytes)) for d in self.dropped]
        rows.append(("written", f"{self.bits_per_weight:.2f} bits a weight", "", gigabytes(self.nbytes)))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            f"{role:<{widths[0]}}  {how:<{widths[1]}}  {count:>{widths[2]}}  {size:>{widths[3]}}"
            for role, how, count, size in rows
        )


def plan_conversion(folder: Path, bits: int = 4, group_size: int = 64) -> ConversionPlan:
    """Plan the conversion of the checkpoint in `folder` to MLX's affine format.

    Raises ConfigError and CheckpointError: options or tensors that cannot be converted, one line each.
    """
    if bits not in BITS:
        raise ConfigError(f"{bits} bits: MLX packs weights to {_listed(BITS)} bits.")
    if group_size not in GROUP_SIZES:
        raise ConfigError(f"Group size {group_size}: MLX packs weights in groups of {_listed(GROUP_SIZES)}.")
    source = survey(folder)
    if source.config.quantization:
        raise CheckpointError(
            f"{folder} is quantized already ({source.config.quantization.bits} bits); convert from the BF16 original."
        )
    packing, dtype = Packing(bits, group_size), _activation_dtype(folder)
    packable = {path for path, module in source.model.named_modules() if hasattr(module, "to_quantized")}
    jobs = [_job(recipe, source, packing, dtype, packable) for recipe in source.plan.recipes.values()]
    trunk = [job for job in jobs if not job.recipe.target.startswith("mtp.")]
    mtp = [job for job in jobs if job.recipe.target.startswith("mtp.")]
    files = _shards(trunk)
    if mtp:
        # Beside the model, since other runtimes take any *.safetensors in the folder itself for the trunk's.
        files.append(_laid_out(MTP_FILE, mtp))
    return ConversionPlan(source, packing, tuple(files), tuple(_dropped(source)))


def row_spans(job: Job, sources: list[TensorEntry]) -> list[RowSpan]:
    """Where the rows of a parameter lie in its sources, in order."""
    recipe = job.recipe
    if not recipe.half:
        return [RowSpan(entry, 0, job.rows // len(sources)) for entry in sources]
    experts, fused, _ = sources[0].shape  # gate_up_proj [E, 2 * width, C]
    half = fused // 2
    start = 0 if recipe.half == "gate" else half
    return [RowSpan(sources[0], e * fused + start, half) for e in range(experts)]


def _job(recipe: Recipe, source: Survey, packing: Packing, dtype: str, packable: set[str]) -> Job:
    target = recipe.target
    entries = [source.files.tensors[s] for s in recipe.sources]
    for entry in entries:
        if entry.dtype not in SOURCE_DTYPES:
            raise CheckpointError(
                f"{entry.name} in {entry.file} is {entry.dtype}; the converter reads {_listed(SOURCE_DTYPES)}. "
                "Convert from the BF16 original."
            )
    shape = made_shape(recipe, [entry.shape for entry in entries])
    assert shape, "survey checks shapes"
    # [channels, 1, 4] and [channels, 4, 1] are the same bytes, so moving the axis moves nothing.
    width = shape[-2] if recipe.move_conv_axis else shape[-1] if len(shape) > 1 else 1
    rows = prod(shape) // width
    if target.endswith(".A_log"):
        dtype = "F32"  # decays near one need more than eight bits of mantissa
    add = source.conventions.add[target] if is_zero_centred_norm(target) else 0.0
    path = target.removesuffix(".weight")
    chosen, kept = _choose(path, width, packing) if path in packable else (None, "")
    job = Job(recipe, rows, width, dtype, add, chosen, kept, (OutputTensor(target, dtype, shape),))
    if not chosen:
        return job
    words, groups = width * chosen.bits // 32, width // chosen.group_size
    packed = (
        OutputTensor(target, "U32", (*shape[:-1], words)),
        OutputTensor(f"{path}.scales", dtype, (*shape[:-1], groups)),
        OutputTensor(f"{path}.biases", dtype, (*shape[:-1], groups)),
    )
    return replace(job, tensors=packed)


def _choose(path: str, width: int, packing: Packing) -> tuple[Packing | None, str]:
    """The format of a matrix, or None and why it is kept."""
    if path == "mtp.fc":
        return None, "kept, as in Qwen's own FP8 releases"
    if width % packing.group_size:
        return None, f"kept, rows of {width} are no multiple of {packing.group_size}"
    if not path.endswith(_HIGH):
        return packing, ""
    # Which experts run hangs on small differences of the router's outputs.
    return (Packing(8, 64), "") if width % 64 == 0 else (None, f"kept, rows of {width} are no multiple of 64")


def _shards(jobs: list[Job]) -> list[OutputFile]:
    """Files of at most SHARD_BYTES, in the order of the network; a larger parameter gets a file of its own."""
    groups: list[list[Job]] = [[]]
    for job in jobs:
        if groups[-1] and sum(j.nbytes for j in groups[-1]) + job.nbytes > SHARD_BYTES:
            groups.append([])
        groups[-1].append(job)
    if len(groups) == 1:
        return [_laid_out("model.safetensors", groups[0])]
    return [_laid_out(f"model-{i:05d}-of-{len(groups):05d}.safetensors", g) for i, g in enumerate(groups, 1)]


def _laid_out(name: str, jobs: list[Job]) -> OutputFile:
    """Give each tensor its place: the wide types first, so that every tensor is aligned to its own type."""
    tensors = [t for job in jobs for t in job.tensors]
    begins, end = {}, 0
    for tensor in sorted(tensors, key=lambda t: -ITEM_BYTES[t.dtype]):
        begins[tensor.name] = end
        end += tensor.nbytes
    return OutputFile(
        name, tuple(replace(j, tensors=tuple(replace(t, begin=begins[t.name]) for t in j.tensors)) for j in jobs)
    )


def _dropped(source: Survey) -> Iterator[Dropped]:
    entries = source.files.tensors
    if source.plan.vision:
        reason = "vision tower: images and video come in a later release"
        yield Dropped(source.plan.vision, _sum(entries[n] for n in source.plan.vision), reason)
    if source.unused:
        reason = "not part of the network: a head tied to the embedding, or MTP that the config does not declare"
        yield Dropped(source.unused, _sum(entries[n] for n in source.unused), reason)


def _activation_dtype(folder: Path) -> str:
    """The dtype that stock mlx-lm casts to while converting: the config's, bfloat16 where it has none."""
    config = read_json(folder / "config.json")
    text = config.get("text_config", config)
    stated = config.get("torch_dtype") or text.get("dtype") or config.get("dtype") or "bfloat16"
    return _DTYPES.get(stated, "BF16") if isinstance(stated, str) else "BF16"


def _sum(entries: Iterable[TensorEntry]) -> int:
    return sum(entry.nbytes for entry in entries)


def _role(target: str) -> str:
    return next((role for role, marks in _ROLES if any(m in f".{target}" for m in marks)), "norms")


def _format(job: Job) -> str:
    if job.packing:
        return str(job.packing)
    return f"{job.dtype} ({job.kept})" if job.kept else job.dtype


def _listed(values: Iterable[object]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}"
