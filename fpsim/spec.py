"""MatmulSpec: the hinge of the toolkit. One frozen object says which arithmetic a matrix product runs on."""

from dataclasses import dataclass, field

from fpsim.accumulators import Accumulator, FusedDot, GroupedDot
from fpsim.formats import Format, container, scalar_format


class _FormatField:
    """A dataclass field that takes a format or its name and always reads as a `Format`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = name

    def __get__(self, obj: object | None, owner: type) -> Format:
        if obj is None:
            raise AttributeError(self._key)  # tells dataclass that the field has no default
        row: Format = vars(obj)[self._key]
        return row

    def __set__(self, obj: object, value: Format | str) -> None:
        vars(obj)[self._key] = scalar_format(value)


@dataclass(frozen=True)
class Epilogue:
    """What a library does to the accumulator, each step one float32 operation to nearest even.

    Two scalar scales: acc * (scale_a * scale_b). Otherwise (acc * scale_b) * scale_a, in that order. Then + bias, then
    the cast to the output format. torch 2.11 with CUDA 13.0; older versions had another order for row-wise scales.
    """

    scaled: bool = True
    bias: bool = True


@dataclass(frozen=True)
class MatmulSpec:
    """Operand formats, accumulator and output of a matrix product.

    a, b : operand formats (names are taken, `Format` rows come out).
    accumulator : one of the kinds in `fpsim.accumulators`.
    out : format of the result; by default the accumulator's. Another one is a final rounding to nearest even.
    scale, block : block-scaled engines: format of the scale codes, and products per scale along K.
    epilogue : library engines: scales and bias after the accumulation, in float32 (integer sums then come out as f32).
    engine : the name it was looked up by, "" for a free one. Not part of the arithmetic.
    """

    a: _FormatField = _FormatField()
    b: _FormatField = _FormatField()
    accumulator: Accumulator  # type: ignore[misc] # the two fields above have no default; see _FormatField.__get__
    out: str = ""
    scale: str | None = None
    block: int | None = None
    epilogue: Epilogue | None = None
    engine: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.out:
            own = container(self.accumulator.output)
            object.__setattr__(self, "out", own.name if self.epilogue is None or own.kind == "float" else "f32")
        scalar_format(self.out)
        if (self.scale is None) != (self.block is None):
            raise ValueError(f"scale={self.scale!r} and block={self.block!r} go together: give both or neither")
        needs, takes = isinstance(self.accumulator, GroupedDot), isinstance(self.accumulator, FusedDot | GroupedDot)
        if needs if self.scale is None else not takes:
            raise ValueError(
                f"scale={self.scale!r} with {self.accumulator}: block scales join the products of a FusedDot, "
                "a GroupedDot needs them, and no other accumulator takes them"
            )
