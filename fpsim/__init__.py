"""fpsim: bit-exact low-bit arithmetic, from a number format to a matrix engine.

Everything public is importable from here and loaded on first use, so that `import fpsim` costs nothing: no torch, no
numba, no numpy until an array is touched.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fpsim._attention import Attention, attention
    from fpsim.accumulators import (
        FixedPoint,
        FusedDot,
        GroupedDot,
        IntegerAccumulator,
        PairwiseTree,
        Promoted,
        SequentialFma,
        SplitK,
        TwoStageDot,
    )
    from fpsim.codec import decode, encode, quantize
    from fpsim.conv import conv2d
    from fpsim.engines import ENGINES, engine
    from fpsim.formats import FORMATS, BlockFormat, Format, format  # noqa: A004 - the field's word
    from fpsim.gemm import matmul
    from fpsim.packing import pack, unpack
    from fpsim.spec import Epilogue, MatmulSpec

__all__ = [
    "ENGINES",
    "FORMATS",
    "Attention",
    "BlockFormat",
    "Epilogue",
    "FixedPoint",
    "Format",
    "FusedDot",
    "GroupedDot",
    "IntegerAccumulator",
    "MatmulSpec",
    "PairwiseTree",
    "Promoted",
    "SequentialFma",
    "SplitK",
    "TwoStageDot",
    "attention",
    "conv2d",
    "decode",
    "encode",
    "engine",
    "format",
    "matmul",
    "pack",
    "quantize",
    "unpack",
]

#: public name -> module that defines it
_HOME = {
    "Attention": "_attention",
    "BlockFormat": "formats",
    "ENGINES": "engines",
    "Epilogue": "spec",
    "FORMATS": "formats",
    "FixedPoint": "accumulators",
    "Format": "formats",
    "FusedDot": "accumulators",
    "GroupedDot": "accumulators",
    "IntegerAccumulator": "accumulators",
    "MatmulSpec": "spec",
    "PairwiseTree": "accumulators",
    "Promoted": "accumulators",
    "SequentialFma": "accumulators",
    "SplitK": "accumulators",
    "TwoStageDot": "accumulators",
    "attention": "_attention",
    "conv2d": "conv",
    "decode": "codec",
    "encode": "codec",
    "engine": "engines",
    "format": "formats",
    "matmul": "gemm",
    "pack": "packing",
    "quantize": "codec",
    "unpack": "packing",
}
_MODULES = {
    "accumulators",
    "blocks",
    "certificates",
    "codec",
    "counts",
    "engines",
    "formats",
    "gemm",
    "nn",
    "packing",
    "reference",
    "requantize",
    "rounding",
    "silicon",
    "spec",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(f"fpsim.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"fpsim.{name}")
    raise AttributeError(f"module 'fpsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
