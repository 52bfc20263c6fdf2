"""Matrix engines of real hardware: (architecture, instruction) -> operand types -> MatmulSpec.

One file per maker: `nvidia`, `amd`, `x86`, GEMMs of `libraries`, `generic` definitions. Each engine says how its
rows were known (`basis`, `source`); which of them were then compared with a device, on how many outputs, is in
`verified.json`, which `fpsim verify --record` writes (`Engine.evidence`, `Engine.seen`).

To add an engine, add a row to the file of its maker.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from fpsim._names import unknown
from fpsim.accumulators import Accumulator, FusedDot, Promoted, SplitK
from fpsim.engines import amd, generic, libraries, nvidia, x86
from fpsim.engines.rows import Engine, Row, Seen
from fpsim.formats import ALIASES, scalar_format
from fpsim.spec import MatmulSpec

__all__ = ["ENGINES", "Engine", "Row", "Seen", "engine"]


def _table(engines: Iterable[Engine]) -> Mapping[str, Engine]:
    table: dict[str, Engine] = {}
    for row in engines:
        if row.name in table:
            raise ValueError(f"engine {row.name!r} is in the table twice")
        table[row.name] = row
    return MappingProxyType(table)


#: name -> Engine. Read-only.
ENGINES: Mapping[str, Engine] = _table((*nvidia.ROWS, *amd.ROWS, *x86.ROWS, *libraries.ROWS, *generic.ROWS))


def engine(
    name: str,
    a: str,
    b: str | None = None,
    out: str | None = None,
    *,
    scale: str | None = None,
    block: int | None = None,
    k: int | None = None,
    split_k: int = 1,
) -> MatmulSpec:
    """The arithmetic of `name` for operands `a` and `b` (by default of the same format).

    out : result format where the engine offers several; by default the first listed (float32 for float engines).
    scale, block : block-scaled engines only: format of the scale codes, products per scale.
    k : the instruction's K, where that changes the result (FP8 m16n8k16 of rtx-blackwell/mma).
    split_k : library engines: how many contiguous ranges of K the library chose for this shape, each its own chain.

    Raises ValueError for an unknown engine, or naming the combinations the engine has.
    """
    row = ENGINES.get(name)
    if row is None:
        raise unknown("engine", name, ENGINES)
    a_name, b_name = scalar_format(a).name, scalar_format(a if b is None else b).name
    out_name = None if out is None else ALIASES.get(out, out)
    for candidate in row.rows:
        if (
            (a_name, b_name) in candidate.pairs()
            and out_name in (None, candidate.output)
            and (scale, block) == (candidate.scale, candidate.block)
            and k == candidate.k
        ):
            return MatmulSpec(
                a_name,
                b_name,
                _split(candidate.accumulator, split_k),
                candidate.out,
                candidate.scale,
                candidate.block,
                candidate.epilogue,
                row.name,
            )
    wanted = f"a={a_name!r}, b={b_name!r}, out={out!r}" + "".join(
        f", {key}={value!r}" for key, value in (("scale", scale), ("block", block), ("k", k)) if value is not None
    )
    raise ValueError(f"engine {name!r} does not take {wanted}; it takes: {'; '.join(map(_describe, row.rows))}")


def _split(accumulator: Accumulator, splits: int) -> Accumulator:
    if splits == 1:
        return accumulator
    if not isinstance(accumulator, FusedDot | Promoted):
        raise ValueError(f"split_k={splits} is for chains of fused dot products, not {type(accumulator).__name__}")
    return SplitK(accumulator, splits)


def _describe(row: Row) -> str:
    operands = f"a and b each of {'|'.join(row.a)}" if row.b == row.a and len(row.a) > 1 else f"a={'|'.join(row.a)}"
    if row.b != row.a or len(row.a) == 1:
        operands += f", b={'|'.join(row.b) if row.b else 'the same'}"
    extras = "".join(
        f", {key}={value!r}"
        for key, value in (("scale", row.scale), ("block", row.block), ("k", row.k))
        if value is not None
    )
    return f"{operands}, out={row.output}{extras}"
