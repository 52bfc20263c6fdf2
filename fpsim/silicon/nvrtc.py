"""NVIDIA's run-time compiler, called directly: does a probe compile for an architecture, without having its GPU?

The library comes with the CUDA toolkit, with CUDA builds of torch, or alone from PyPI (`pip install nvidia-cuda-nvrtc`,
50 to 90 MB; CUDA 13 for sm_75 and later, `nvidia-cuda-nvrtc-cu12` for Volta). FPSIM_NVRTC lists others, with colons.
"""

import ctypes
import os
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from site import getsitepackages, getusersitepackages

from fpsim._names import unknown
from fpsim.silicon.instructions import ARCHITECTURES, instructions
from fpsim.silicon.source import source


class CompileError(ValueError):
    """The compiler's own message."""


def libraries() -> list[Path]:
    """libnvrtc of every CUDA version in sight: FPSIM_NVRTC, wheels of this Python, /usr/local, the system's."""
    found = [Path(path) for path in os.environ.get("FPSIM_NVRTC", "").split(os.pathsep) if path]
    for folder in (*getsitepackages(), getusersitepackages()):
        found += sorted(Path(folder).glob("nvidia/*/lib/libnvrtc.so.*"))
    found += sorted(Path("/usr/local").glob("cuda*/lib64/libnvrtc.so.*"))
    found += [Path(name) for name in [find_library("nvrtc")] if name]
    return [path for path in dict.fromkeys(found) if ".alt." not in path.name]


def compiler(target: str) -> "Nvrtc | None":
    """The newest compiler here that knows `target` ("sm_90a"); None if there is none."""
    able = [candidate for candidate in _loaded() if target.rstrip("a") in candidate.targets]
    return max(able, key=lambda candidate: candidate.version, default=None)


@dataclass(frozen=True, kw_only=True)
class Build:
    """The probes of one engine, compiled for the architecture they are of: how many, into how many bytes of code.

    skipped : why none of them was compiled; left_out: instructions that this compiler is too old for.
    """

    engine: str
    target: str
    instructions: int = 0
    bytes: int = 0
    compiler: str = ""
    left_out: tuple[str, ...] = ()
    skipped: str | None = None


def build(engine: str) -> Build:
    """Compile all probes of an engine, for its own architecture. Raises CompileError, ValueError for another name."""
    rows = [row for row in instructions().values() if row.engine == engine]
    if not rows:
        raise unknown("probed engine", engine, dict.fromkeys(row.engine for row in instructions().values()))
    target = ARCHITECTURES[rows[0].architecture].target
    found = compiler(target)
    if found is None:
        reason = f"no NVRTC for {target} here (pip install nvidia-cuda-nvrtc, -cu12 for sm_70)"
        return Build(engine=engine, target=target, skipped=reason)
    known = [row for row in rows if (row.cuda or (0, 0)) <= found.version]
    code = found.compile(source(known), target)
    return Build(
        engine=engine,
        target=target,
        instructions=sum(row.symbol.encode() in code for row in known),
        bytes=len(code),
        compiler=".".join(map(str, found.version)),
        left_out=tuple(row.name for row in rows if row not in known),
    )


@cache
def _loaded() -> tuple["Nvrtc", ...]:
    return tuple(_load())


def _load() -> Iterator["Nvrtc"]:
    for path in libraries():
        try:
            yield Nvrtc(path)
        except OSError:  # not a library of this machine, or one whose own dependencies are missing
            continue


class Nvrtc:
    """One loaded libnvrtc. Raises OSError if the file cannot be loaded."""

    def __init__(self, path: Path) -> None:
        for helper in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(helper), mode=ctypes.RTLD_GLOBAL)  # found by name, in a wheel on no search path
        self._library = ctypes.CDLL(str(path))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        count = ctypes.c_int()
        self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._library.nvrtcGetSupportedArchs(numbers)
        self.targets = frozenset(f"sm_{number}" for number in numbers)

    def compile(self, source: str, target: str) -> bytes:
        """Machine code (a cubin: the assembler has run too) of `source` for `target`. Raises CompileError."""
        program = ctypes.c_void_p()
        text = source.encode()
        self._library.nvrtcCreateProgram(ctypes.byref(program), text, b"probes.cu", 0, None, None)
        try:
            options = [f"--gpu-architecture={target}".encode(), b"--std=c++17"]
            status = self._library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * 2)(*options))
            if status:
                raise CompileError(
                    f"NVRTC {self.version[0]}.{self.version[1]} for {target}: {self._text(program, 'ProgramLog')}"
                )
            return self._bytes(program, "CUBIN")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> str:
        return self._bytes(program, what).decode(errors="replace").strip("\0\n")

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        getattr(self._library, f"nvrtcGet{what}")(program, data)
        return data.raw
