"""A generated unit as a program: Verilog -> C++ (Yosys' CXXRTL) -> machine code (g++) -> arrays.

The clocked module is what runs: every case is a sum of several cycles through its register and its readout.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .unit import Unit
from .yosys import cxxrtl_headers, run_yosys

Array = npt.NDArray[Any]

DRIVER = Path(__file__).with_name("driver.cpp")
SCRIPT = "read_verilog unit.v; hierarchy -check -top {top}; rename {top} top; proc; flatten; write_cxxrtl -g0 unit.cpp"


class NoCompiler(ValueError):  # noqa: N818 - it reads as what is wrong
    """No C++ compiler is installed."""


class Simulator:
    """The clocked module of a unit, compiled. Raises NoYosys or NoCompiler where a tool is missing."""

    def __init__(self, unit: Unit) -> None:
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            raise NoCompiler("simulation needs a C++ compiler: install g++")
        self.unit = unit
        self.operands = [name for name in unit.ports if name not in ("c", "y")]
        design = run_yosys(SCRIPT.format(top=unit.name), {"unit.v": unit.verilog}, "unit.cpp")
        with tempfile.TemporaryDirectory(prefix="fpsim-rtl-") as folder:
            source, library = Path(folder) / "unit.cpp", Path(folder) / "unit.so"
            source.write_text(f"{design}\n{self._driver()}", encoding="utf-8")
            command = [compiler, "-std=c++14", "-O1", "-shared", "-fPIC", "-w", f"-I{cxxrtl_headers()}"]
            done = subprocess.run(
                [*command, "-o", str(library), str(source)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise ValueError(f"{compiler} failed on the simulation of {unit.name}: {done.stderr.splitlines()[:1]}")
            self._run = ctypes.CDLL(str(library)).run

    def _driver(self) -> str:
        text = DRIVER.read_text(encoding="utf-8")
        arguments = " ".join(f"const uint32_t *{name}," for name in self.operands)
        feed = " ".join(f"put(top.p_{name.replace('_', '__')}, {name});" for name in self.operands)
        start = "put(top.p_c, c);" if self.unit.starts else ""
        return text.replace("OPERANDS", arguments).replace("FEED", feed).replace("START", start)

    def sums(self, operands: Mapping[str, Array], c: Array | None = None) -> Array:
        """Results (cases,) of sums of K cycles.

        operands : per operand port codes (cases, K, terms), or (cases, K) for one code per cycle.
        c : codes (cases,) that the sums start from; None where the register starts from zero.
        Returns uint64 words of the result port (its low 64 bits).
        """
        words = {name: packed(operands[name], self.unit.ports[name]) for name in self.operands}
        cases, steps = operands[self.operands[0]].shape[:2]
        width = self.unit.ports["y"]
        start = packed(np.zeros((cases, 1)) if c is None else c.reshape(cases, 1, 1), self.unit.ports.get("c", 1))
        out = np.zeros((cases, chunks(width)), np.uint32)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (*words.values(), start, out)]
        self._run(ctypes.c_uint64(cases), ctypes.c_uint64(steps), *pointers)
        low = out[:, :2].astype(np.uint64)
        return low[:, 0] | (low[:, 1] << np.uint64(32)) if low.shape[1] > 1 else low[:, 0]


def chunks(width: int) -> int:
    """32-bit words of a port."""
    return -(-width // 32)


def packed(codes: Array, width: int) -> Array:
    """Codes (cases, K, terms) or (cases, K) as the 32-bit words of a port of `width` bits, the first code lowest."""
    array = codes if codes.ndim == 3 else codes[..., None]
    each = width // array.shape[-1]
    words = array.astype(np.int64).view(np.uint64) if array.dtype.kind == "i" else array.astype(np.uint64)
    if array.shape[-1] == 1 and width <= 64:  # one code per word: no bits to shuffle
        kept = words & np.uint64((1 << width) - 1)
        return np.ascontiguousarray(np.ascontiguousarray(kept).view(np.uint32)[..., : chunks(width)])
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 8)
    bits = np.unpackbits(octets, axis=-1, bitorder="little")[..., :each]
    flat = bits.reshape(*array.shape[:2], each * array.shape[-1])
    full = np.zeros((*array.shape[:2], 32 * chunks(width)), np.uint8)
    full[..., : flat.shape[-1]] = flat
    return np.ascontiguousarray(np.packbits(full, axis=-1, bitorder="little")).view(np.uint32)
