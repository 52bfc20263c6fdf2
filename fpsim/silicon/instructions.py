"""The matrix instructions of NVIDIA GPUs that can be probed: one row each, and the CUDA source made from the rows.

A row names the engine that emulates the instruction, its operand types, its shape and its PTX. The kernels around the
instructions are in `probes/*.cu`, one template per family; `source` appends to them one struct with the inline assembly
and one kernel per row. To probe another instruction, add a row.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import MappingProxyType

import numpy as np

from fpsim.engines import ENGINES, engine
from fpsim.engines.nvidia import F8F6F4, FP8, INT4, INT8
from fpsim.formats import scalar_format
from fpsim.spec import MatmulSpec


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`target` is what its probes are compiled for; `capabilities` are the compute capabilities with its arithmetic."""

    target: str
    capabilities: tuple[tuple[int, int], ...]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "volta": Architecture(target="sm_70", capabilities=((7, 0), (7, 2))),  # CUDA 12 was the last with a compiler
        "turing": Architecture(target="sm_75", capabilities=((7, 5),)),
        "ampere": Architecture(target="sm_80", capabilities=((8, 0), (8, 6), (8, 7))),
        "ada": Architecture(target="sm_89", capabilities=((8, 9),)),
        "hopper": Architecture(target="sm_90a", capabilities=((9, 0),)),
        "blackwell": Architecture(target="sm_100a", capabilities=((10, 0), (10, 3))),
        "rtx-blackwell": Architecture(target="sm_120a", capabilities=((12, 0), (12, 1))),
    }
)

_PTX = {"int8": "s8", "uint8": "u8", "int4": "s4", "uint4": "u4", "int32": "s32", "e8m0": "ue8m0"}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction: `rows` x `k` by `k` x `columns`, operand types a and b, accumulator and result `out`.

    family : "mma", "quad-pairs" (Volta), "wgmma" or "tcgen05": the template that runs it.
    ptx : the instruction's name with all qualifiers; for tcgen05 with the instruction descriptor in `descriptor`.
    scale, block : block-scaled ones: format of the scales, products per scale.
    cuda : the first CUDA version whose compiler knows it, where 13.0 does not.
    """

    engine: str
    a: str
    b: str
    out: str
    rows: int
    columns: int
    k: int
    family: str
    ptx: str
    descriptor: int = 0
    scale: str | None = None
    block: int | None = None
    cuda: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """What reports, records and the command line call it: engine, operands, result and shape."""
        scaled = f" {self.scale}/{self.block}" if self.scale else ""
        shape = f"m{self.rows}n{self.columns}k{self.k}"
        return f"{self.engine} {self.operands} {shape}{scaled}"

    @property
    def operands(self) -> str:
        return f"{self.a} x {self.b} -> {self.out}"

    @property
    def architecture(self) -> str:
        return self.engine.partition("/")[0]

    @property
    def symbol(self) -> str:
        """The kernel's name."""
        words = (self.engine, self.a, self.b, self.out, self.k, self.rows, self.scale or "", self.block or "")
        return "_".join(str(word) for word in words if word).replace("/", "_").replace("-", "_")

    @property
    def spec_k(self) -> int | None:
        """The k of the engine's row: the instruction's own where the engine has a row for it."""
        rows = ENGINES[self.engine].rows
        own = any((self.a, self.b) in row.pairs() and (row.output, row.k) == (self.out, self.k) for row in rows)
        return self.k if own else None

    @property
    def spec(self) -> MatmulSpec:
        """The emulator of this instruction."""
        return engine(self.engine, self.a, self.b, self.out, scale=self.scale, block=self.block, k=self.spec_k)

    @property
    def scales(self) -> int:
        """Scales per row of a and per column of b."""
        return self.k // self.block if self.block else 0

    @property
    def tiles_per_block(self) -> int:
        return {"mma": 4, "quad-pairs": 16}.get(self.family, 1)


def _type(name: str) -> str:
    return _PTX.get(name, name)


def _mma(unit: str, a: str, b: str, out: str, k: int, rows: int = 16, kind: str = "") -> Instruction:
    """mma.sync; the engine is the one with the qualifier's name."""
    result = _type(out)
    saturating = ".satfinite" if unit.endswith("satfinite") else ""
    ptx = f"mma.sync.aligned.m{rows}n8k{k}.row.col{kind}{saturating}.{result}.{_type(a)}.{_type(b)}.{result}"
    return Instruction(engine=unit, a=a, b=b, out=out, rows=rows, columns=8, k=k, family="mma", ptx=ptx)


def _floats(unit: str, types: Iterable[str], k16: int = 16) -> Iterator[Instruction]:
    """f16, bf16 and tf32 in both shapes of 16 rows (`k16` 8: only the smaller)."""
    shapes = {"f16": (8, 16), "bf16": (8, 16), "tf32": (4, 8)}
    for a in types:
        for k in shapes[a]:
            if a == "tf32" or k <= k16:
                yield _mma(unit, a, a, "f32", k)
                if a == "f16":
                    yield _mma(unit, a, a, "f16", k)


def _mixes(
    unit: str, types: tuple[str, ...], outs: tuple[str, ...], *shapes: tuple[int, int], kind: str = ""
) -> Iterator[Instruction]:
    """Every mix of `types` in every (rows, k)."""
    for (rows, k), out, (a, b) in product(shapes, outs, product(types, types)):
        yield _mma(unit, a, b, out, k, rows, kind)


def _integers(unit: str, *, wide: bool, nibbles: bool) -> Iterator[Instruction]:
    """int8 and int4, wrapping and saturating; `wide`: 16 rows as well as the 8 of Turing."""
    for name in (unit, f"{unit}-satfinite"):
        yield from _mixes(name, INT8, ("int32",), *(((16, 32), (16, 16)) if wide else ((8, 16),)))
        if nibbles:
            yield from _mixes(name, INT4, ("int32",), *(((16, 64), (16, 32)) if wide else ((8, 32),)))


def _doubles(unit: str, shapes: Iterable[tuple[int, int]]) -> Iterator[Instruction]:
    for rows, k in shapes:
        yield _mma(unit, "f64", "f64", "f64", k, rows)


def _volta() -> Iterator[Instruction]:
    for out in ("f32", "f16"):
        ptx = f"mma.sync.aligned.m8n8k4.row.col.{out}.f16.f16.{out}"
        yield Instruction(
            engine="volta/mma", a="f16", b="f16", out=out, rows=8, columns=8, k=4, family="quad-pairs", ptx=ptx
        )


def _wgmma() -> Iterator[Instruction]:
    pairs = [("f16", "f16", "f32"), ("f16", "f16", "f16"), ("bf16", "bf16", "f32"), ("tf32", "tf32", "f32")]
    pairs += [(a, b, out) for out, a, b in product(("f32", "f16"), FP8, FP8)]
    pairs += [(a, b, "int32") for a, b in product(INT8, INT8)]
    for name, (a, b, out) in product(("hopper/wgmma", "hopper/wgmma-satfinite"), pairs):
        saturating = name.endswith("satfinite")
        if out == "int32" or not saturating:
            k = 256 // (8 * np.dtype(scalar_format(a).code_dtype).itemsize)
            ptx = f"wgmma.mma_async.sync.aligned.m64n8k{k}.{_type(out)}.{_type(a)}.{_type(b)}"
            ptx += ".satfinite" if saturating else ""
            yield Instruction(engine=name, a=a, b=b, out=out, rows=64, columns=8, k=k, family="wgmma", ptx=ptx)


_BLACKWELL_TYPES = {"f16": 0, "bf16": 1, "tf32": 2, "e4m3": 0, "e5m2": 1, "e2m3": 3, "e3m2": 4, "e2m1": 5}
_BLACKWELL_TYPES |= {"uint8": 0, "int8": 1}


def _tcgen05(
    unit: str, a: str, b: str, out: str, k: int, kind: str, scale: str | None = None, block: int | None = None
) -> Instruction:
    """One tile of 128 x 16. The instruction descriptor: PTX ISA 9.0, tables 42 to 44 of "tcgen05"."""
    rows, columns = 128, 16
    types = _BLACKWELL_TYPES | ({"e2m1": 1} if kind.startswith("mxf4") else {})
    descriptor = types[a] << 7 | types[b] << 10 | columns >> 3 << 17 | rows >> 4 << 24
    if scale is None:
        descriptor |= {"f16": 0, "f32": 1, "int32": 2}[out] << 4 | int(unit.endswith("satfinite")) << 3
    else:
        descriptor |= int(scale == "e8m0") << 23
    scaled = f".block_scale.scale_vec::{k // block}X" if block else ""
    return Instruction(
        engine=unit,
        a=a,
        b=b,
        out=out,
        rows=rows,
        columns=columns,
        k=k,
        family="tcgen05",
        ptx=f"tcgen05.mma.cta_group::1.kind::{kind}{scaled}",
        descriptor=descriptor,
        scale=scale,
        block=block,
    )


_FP4_SCALES = (("mxf4", "e8m0", 32), ("mxf4nvf4", "e8m0", 16), ("mxf4nvf4", "ue4m3", 16))


def _data_centre_blackwell() -> Iterator[Instruction]:
    unit = "blackwell/tcgen05"
    for out in ("f32", "f16"):
        yield _tcgen05(unit, "f16", "f16", out, 16, "f16")
    yield _tcgen05(unit, "bf16", "bf16", "f32", 16, "f16")
    yield _tcgen05(unit, "tf32", "tf32", "f32", 8, "tf32")
    for out, a, b in product(("f32", "f16"), F8F6F4, F8F6F4):
        yield _tcgen05(unit, a, b, out, 32, "f8f6f4")
    for name, a, b in product((unit, f"{unit}-satfinite"), INT8, INT8):
        yield _tcgen05(name, a, b, "int32", 32, "i8")
    for a, b in product(F8F6F4, F8F6F4):
        yield _tcgen05(f"{unit}-mxf8f6f4", a, b, "f32", 32, "mxf8f6f4", "e8m0", 32)
    for kind, scale, block in _FP4_SCALES:
        yield _tcgen05(f"{unit}-mxf4nvf4", "e2m1", "e2m1", "f32", 64, kind, scale, block)


def _rtx_blackwell_scaled() -> Iterator[Instruction]:
    """mma.sync with block scales: the kind goes behind "aligned", the scales' type at the end."""
    rows = [("mxf8f6f4", a, b, 32, "e8m0", 32) for a, b in product(F8F6F4, F8F6F4)]
    rows += [(kind, "e2m1", "e2m1", 64, scale, block) for kind, scale, block in _FP4_SCALES]
    for kind, a, b, k, scale, block in rows:
        ptx = (
            f"mma.sync.aligned.m16n8k{k}.row.col.kind::{kind}.block_scale.scale_vec::{k // block}X"
            f".f32.{a}.{b}.f32.{_type(scale)}"
        )
        yield Instruction(
            engine=f"rtx-blackwell/mma-{'mxf8f6f4' if kind == 'mxf8f6f4' else 'mxf4nvf4'}",
            a=a,
            b=b,
            out="f32",
            rows=16,
            columns=8,
            k=k,
            family="mma",
            ptx=ptx,
            scale=scale,
            block=block,
            cuda=(13, 1) if (scale, block) == ("e8m0", 16) else None,
        )


_HALF, _WIDE = ("f16", "bf16", "tf32"), ((8, 4), (16, 4), (16, 8), (16, 16))
_FP8_OUTS = ("f32", "f16")


def _all() -> Iterator[Instruction]:
    yield from _volta()
    yield from _floats("turing/mma", ("f16",), k16=8)
    yield from _integers("turing/mma", wide=False, nibbles=True)
    yield from _floats("ampere/mma", _HALF)
    yield from _doubles("ampere/mma", _WIDE[:1])
    yield from _integers("ampere/mma", wide=True, nibbles=True)
    yield from _floats("ada/mma", _HALF)
    yield from _mixes("ada/mma", FP8, _FP8_OUTS, (16, 32), (16, 16))
    yield from _doubles("ada/mma", _WIDE[:1])
    yield from _integers("ada/mma", wide=True, nibbles=True)
    yield from _floats("hopper/mma", _HALF)
    yield from _mixes("hopper/mma", FP8, _FP8_OUTS, (16, 32), (16, 16))
    yield from _doubles("hopper/mma", _WIDE)
    yield from _integers("hopper/mma", wide=True, nibbles=True)
    yield from _wgmma()
    yield from _floats("blackwell/mma", _HALF)
    yield from _mixes("blackwell/mma", FP8, _FP8_OUTS, (16, 32), (16, 16))
    yield from _doubles("blackwell/mma", _WIDE)
    yield from _integers("blackwell/mma", wide=True, nibbles=False)
    yield from _data_centre_blackwell()
    yield from _floats("rtx-blackwell/mma", _HALF)
    yield from _mixes("rtx-blackwell/mma", F8F6F4, _FP8_OUTS, (16, 32), kind=".kind::f8f6f4")
    yield from _mixes("rtx-blackwell/mma", FP8, _FP8_OUTS, (16, 16))
    yield from _doubles("rtx-blackwell/mma", _WIDE)
    yield from _integers("rtx-blackwell/mma", wide=True, nibbles=False)
    yield from _rtx_blackwell_scaled()


@cache
def instructions() -> Mapping[str, Instruction]:
    """Every row, by name. Read-only."""
    return MappingProxyType({row.name: row for row in _all()})
