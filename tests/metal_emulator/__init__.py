"""Metal kernels on the CPU, with checks: see README.md. Test-only."""

from tests.metal_emulator.errors import CompileError, KernelFault
from tests.metal_emulator.options import SCHEDULES, Options
from tests.metal_emulator.session import Launch, Session, emulated_metal
from tests.metal_emulator.toolchain import why_not

__all__ = ["SCHEDULES", "CompileError", "KernelFault", "Launch", "Options", "Session", "emulated_metal", "why_not"]
