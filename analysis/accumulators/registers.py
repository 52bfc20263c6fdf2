"""Registers that integer products are added in: one of some width, or tiles in a narrow one and their sum in a wide."""

from dataclasses import dataclass
from typing import Any, Literal

from fpsim.accumulators import Accumulator, IntegerAccumulator, Promoted

Overflow = Literal["wrap", "saturate", "error"]


@dataclass(frozen=True, kw_only=True)
class Register:
    """What integer products are added in.

    bits  : of the register; with `tile`, of the one that each tile of so many products is added in
    outer : bits of the register that tiles' results are added in

    Raises ValueError for widths outside 2 to 63, an outer register below the inner one, and a tile without an outer.
    """

    bits: int
    tile: int | None = None
    outer: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 63 or (self.outer is not None and not self.bits <= self.outer <= 63):
            raise ValueError(f"registers have 2 to 63 bits, the outer at least the inner's, not {self}")
        if (self.tile is None) != (self.outer is None) or (self.tile is not None and self.tile < 1):
            raise ValueError(f"tile (at least 1) and outer go together, got tile={self.tile}, outer={self.outer}")

    def accumulator(self, overflow: Overflow = "wrap") -> Accumulator:
        """The same as `fpsim.matmul` takes it."""
        inner = IntegerAccumulator(bits=self.bits, overflow=overflow)
        if self.tile is None or self.outer is None:
            return inner
        return Promoted(inner=inner, every=self.tile, outer=IntegerAccumulator(bits=self.outer, overflow=overflow))

    @property
    def label(self) -> str:
        """ "int16", "int16 per 64 in int20"."""
        return f"int{self.bits}" + ("" if self.tile is None else f" per {self.tile} in int{self.outer}")


def register_of(accumulator: object) -> Register | None:
    """The register of an accumulator; None if it is not one of integers."""
    if isinstance(accumulator, IntegerAccumulator):
        return Register(bits=accumulator.bits)
    if isinstance(accumulator, Promoted) and accumulator.outer is not None:
        inner: Any = accumulator.inner
        return Register(bits=inner.bits, tile=accumulator.every, outer=accumulator.outer.bits)
    return None


def ends(bits: int) -> tuple[int, int]:
    """(lowest, highest) value of two's complement."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
