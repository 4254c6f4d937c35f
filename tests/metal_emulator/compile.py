"""Metal source to a shared library, kept on disk under a key of everything that makes it.

Preprocess (as Metal, so that MLX's macros work), rewrite, compile to LLVM IR as "C++ for OpenCL" behind the shim,
instrument, link.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.metal_emulator import toolchain
from tests.metal_emulator.errors import CompileError
from tests.metal_emulator.instrument import instrument
from tests.metal_emulator.options import Options
from tests.metal_emulator.rewrite import Constant, rewrite
from tests.metal_emulator.signature import Parameter, parameters

HERE = Path(__file__).parent
# Metal's own headers are in the shim; bf16_math.h of MLX needs the insides of Apple's compiler.
EMPTY_HEADERS = [
    "metal_stdlib",
    "metal_math",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_atomic",
    "metal_common",
    "metal_integer",
    "metal_tensor",
    "metal_compute",
    "metal_types",
    "metal_logging",
    "MetalPerformancePrimitives/MetalPerformancePrimitives.h",
    "mlx/backend/metal/kernels/bf16_math.h",
]
DEFINES = ("-D__METAL__=1", "-D__METAL_VERSION__=310", "-D__HAVE_BFLOAT__=1")
# No vectorising: it would make one wide load of several. Locals nobody set hold NaN; indices of arrays with a known
# length and divisors are checked, and the runtime is what the checks call. A 32-bit index wraps, as on a GPU; undefined
# behaviour would let it be widened.
COMPILE = [
    "-x",
    "cl",
    "-cl-std=clc++2021",
    "-cl-no-stdinc",
    "-Xclang",
    "-cl-ext=-cl_khr_fp64,-__opencl_c_fp64",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
    "--target=x86_64-linux-gnu",
    "-Wno-everything",
    "-Wimplicit-float-conversion",
    "-gline-tables-only",
    "-O2",
    "-fPIC",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-ftrivial-auto-var-init=pattern",
    "-fsanitize=array-bounds,integer-divide-by-zero",
    "-fno-builtin-memset",
    "-fno-builtin-memcpy",
    "-S",
    "-emit-llvm",
    "-o",
    "-",
]
# The passes have run; merged tails would be one place of the source for two.
LINK = [
    "-x",
    "ir",
    "-O2",
    "-fPIC",
    "-w",
    "-Xclang",
    "-disable-llvm-passes",
    "-mllvm",
    "-enable-tail-merge=0",
    "-shared",
]


@dataclass(frozen=True)
class Unit:
    """One kernel of a translation unit. `file` names the text in messages, where no #line says otherwise."""

    source: str
    kernel: str
    template: str = ""
    includes: tuple[str, ...] = ()
    constants: Mapping[int, Constant] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A compiled kernel; `seconds` is what compiling took, 0 from the cache."""

    library: Path
    parameters: tuple[Parameter, ...]
    seconds: float


def mlx_include() -> str:
    """The folder of MLX's own Metal headers, which its wheels carry."""
    spec = importlib.util.find_spec("mlx")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    # The package is spread over several folders where its parts are installed apart.
    folders = [Path(place) / "include" for place in spec.submodule_search_locations]
    return str(next((f for f in folders if (f / "mlx/backend/metal/kernels").is_dir()), folders[0]))


@functools.cache
def _digest(*patterns: str) -> str:
    """Of the parts of the emulator that a library is made with, and of what stands below them."""
    digest = hashlib.sha256(toolchain.clang_says().encode() + toolchain.machine_flag().encode())
    digest.update(importlib.metadata.version("mlx").encode())
    for path in sorted(path for pattern in patterns for path in HERE.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(unit: Unit, options: Options) -> Built:
    """Compile, or take what was compiled before. Raises CompileError with clang's words."""
    how = (options.check, options.strict, options.tf32, options.contract)
    key = repr((unit.source, unit.kernel, unit.template, unit.includes, sorted(unit.constants.items()), how))
    made_by = _digest("compile.py", "rewrite.py", "instrument.py", "signature.py", "shim/*.h")
    digest = hashlib.sha256((key + made_by).encode()).hexdigest()[:24]
    library = toolchain.cache_folder() / f"{re.sub(r'[^A-Za-z0-9]+', '_', unit.kernel)[:60]}-{digest}.so"
    beside = library.with_suffix(".json")
    if library.exists() and beside.exists():
        os.utime(library)  # last used: the cache is pruned by it
        return Built(library, tuple(Parameter(**p) for p in json.loads(beside.read_text())), 0.0)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=toolchain.cache_folder()) as scratch:
        text = _translate(unit, Path(scratch))
        found = parameters(text, unit.kernel)
        made = _compile(text, options, Path(scratch))
        (Path(scratch) / "parameters").write_text(json.dumps([asdict(p) for p in found]))
        os.replace(Path(scratch) / "parameters", beside)
        os.replace(made, library)
    return Built(library, tuple(found), time.monotonic() - start)


def _translate(unit: Unit, scratch: Path) -> str:
    """Metal text to the text clang compiles."""
    (scratch / "kernel.metal").write_text(unit.source)
    folders = [f"-I{folder}" for folder in (_empty_headers(), *unit.includes)]
    language = ["-E", "-x", "c++", "-std=c++17", "-nostdinc"]
    command = [str(toolchain.clang()), *language, *DEFINES, *folders, str(scratch / "kernel.metal")]
    preprocessed, _ = toolchain.run(command)
    call = unit.kernel + (f"<{unit.template}>" if unit.template else "")
    entry = f'extern "C" void mtl_entry(const thread ulong* a) {{ mtl_invoke(&{call}, a); }}'
    return f'#include "{HERE}/shim/metal.h"\n{rewrite(preprocessed, unit.constants)}\n{entry}\n'


def _compile(text: str, options: Options, scratch: Path) -> Path:
    (scratch / "kernel.cl").write_text(text)
    flags = [toolchain.machine_flag(), f"-ffp-contract={options.contract}", *(["-DMTL_TF32"] if options.tf32 else [])]
    module, warned = toolchain.run([str(toolchain.clang()), *COMPILE, *flags, str(scratch / "kernel.cl")])
    if options.strict:
        _refuse_implicit_bfloat(warned)
    (scratch / "kernel.ll").write_text(instrument(module) if options.check else module)
    made = scratch / "kernel.so"
    out = ["-o", str(made), str(scratch / "kernel.ll"), "-lm"]
    toolchain.run([str(toolchain.clang()), *LINK, toolchain.machine_flag(), *out])
    return made


def _refuse_implicit_bfloat(warned: str) -> None:
    """Metal has no implicit conversion to bfloat. clang has, and warns that it loses precision."""
    lines = [w for w in warned.split("\n") if re.search(r"to '[^']*(?:__bf16|bfloat)", w)]
    if bad := [w for w in lines if not re.search(r"/shim/\w+\.h|/mlx/include/", w)]:
        raise CompileError("implicit conversion to bfloat, which Metal has not:\n" + "\n".join(bad[:10]))


@functools.cache
def _empty_headers() -> Path:
    folder = toolchain.cache_folder() / "empty-headers"
    for name in EMPTY_HEADERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@functools.cache
def runtime() -> ctypes.CDLL:
    """The emulated machine, for all kernels of the process."""
    prune()
    library = toolchain.cache_folder() / f"runtime-{_digest('compile.py', 'runtime/*')[:24]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=toolchain.cache_folder()) as scratch:
            made = Path(scratch) / "runtime.so"
            flags = [
                "-x",
                "c++",
                "-std=c++20",
                "-O2",
                "-fPIC",
                "-shared",
                "-fvisibility=hidden",
                "-fno-stack-protector",
            ]
            sources = [str(path) for path in sorted(HERE.glob("runtime/*.cpp"))]
            # clang as the linker driver too: Debian's clang-19 alone brings libstdc++.
            more = [toolchain.machine_flag(), "-o", str(made), *sources, "-lstdc++"]
            toolchain.run([str(toolchain.clang()), *flags, *more])
            os.replace(made, library)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def prune(days: float = 30) -> None:
    """Forget what has not been used for so long."""
    for path in toolchain.cache_folder().glob("*.so"):
        try:
            if time.time() - path.stat().st_mtime > days * 86400:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # another process was faster
