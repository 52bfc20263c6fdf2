"""What the comparisons are fed with: the same values on every machine, made on the CPU or on the GPU.

Every array is a function of (seed, batch, class, operand): words of a counter-based generator (Philox4x32-10) that pick
entries of a table of 65,536 codes, or that are the codes themselves. The tables are made with exact arithmetic (sums of
uniform integers for a bell shape, powers of two), so that they do not depend on a mathematics library; vectors recorded
on a GPU can be checked years later from their seed.

The classes: random bits (every code, NaN and infinities too); corners (zeros, ends of the subnormal and normal ranges);
ordinary (a bell around zero); cancelling (the second half of k undoes the first); huge start (c far above the products,
or, for integers, next to the limits); wide (magnitudes over 60 binades).
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.codec import encode, random_words
from fpsim.formats import Format, container, scalar_format
from fpsim.spec import MatmulSpec

Array = npt.NDArray[Any]

KINDS = ("bits", "corners", "ordinary", "cancelling", "huge start", "wide")
ENTRIES = 1 << 16
PARTS = ("a", "b", "c", "a_scale", "b_scale")

#: what a table is made of; each has words of its own
_BELL, _UNIFORM, _OTHER, _EXPONENT, _SIGNIFICAND = range(1, 6)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """`count` independent products of (rows, k) by (k, columns)."""

    count: int
    rows: int
    k: int
    columns: int

    @property
    def outputs(self) -> int:
        return self.count * self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One draw of one class: which words of the generator it uses."""

    seed: int
    kind: str
    batch: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.seed < 1 << 31 and 0 <= self.batch < 1 << 20):
            raise ValueError(f"seed is {self.seed} and batch {self.batch}; allowed: 0 to 2**31 - 1, 0 to 2**20 - 1")

    def key(self, slot: int) -> int:
        """The generator's key of one array: below 8 the parts, above the ingredients of their tables."""
        return self.seed << 32 | self.batch << 12 | KINDS.index(self.kind) << 9 | slot

    def words(self, ingredient: int, part: int, count: int) -> Array:
        """What tables are made of: the same in every batch."""
        return random_words(replace(self, batch=0).key(ingredient * 8 + part), count)


def shapes(spec: MatmulSpec, tiles: Tiles) -> dict[str, tuple[int, int, int]]:
    """Part -> shape, with b as (tiles, columns, k), the order in which an instruction takes it."""
    found = {
        "a": (tiles.count, tiles.rows, tiles.k),
        "b": (tiles.count, tiles.columns, tiles.k),
        "c": (tiles.count, tiles.rows, tiles.columns),
    }
    if spec.block:
        blocks = tiles.k // spec.block
        found |= {"a_scale": (tiles.count, tiles.rows, blocks), "b_scale": (tiles.count, tiles.columns, blocks)}
    return found


def draw(spec: MatmulSpec, tiles: Tiles, stream: Stream) -> dict[str, Array]:
    """Part -> array, on the CPU. `fpsim.silicon.nvidia.draw` gives the same on the GPU."""
    found = {}
    for part, shape in shapes(spec, tiles).items():
        entries, dtype = table(spec, part, stream)
        count = int(np.prod(shape))
        if entries is not None:
            values = entries[random_words(stream.key(PARTS.index(part)), count) >> 16]
        else:
            per_value = dtype.itemsize // 4
            values = random_words(stream.key(PARTS.index(part)), count * per_value).view(dtype)
        found[part] = values.reshape(shape)
    return finish(spec, stream.kind, found)


def finish(spec: MatmulSpec, kind: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """The last step of both draws: the cancelling class undoes the first half of k. Writes into `arrays`' members."""
    if kind == "cancelling":
        a, b = arrays["a"], arrays["b"]
        half = a.shape[-1] // 2
        b[..., half : 2 * half] = b[..., :half]
        first = a[..., :half]
        if spec.a.kind == "float":
            a[..., half : 2 * half] = first ^ a.dtype.type(spec.a.sign_bit << spec.a.shift)
        elif spec.a.signed:
            lowest = int(spec.a.min)  # has no opposite
            a[..., half : 2 * half] = first + (first != lowest) * (-2 * first)
    return arrays


def table(spec: MatmulSpec, part: str, stream: Stream) -> tuple[Array | None, np.dtype[Any]]:
    """The entries `part` is picked from (None: the words themselves), and the dtype of its codes."""
    return _table(spec, part, replace(stream, batch=0))


@lru_cache(maxsize=128)
def _table(spec: MatmulSpec, part: str, stream: Stream) -> tuple[Array | None, np.dtype[Any]]:
    if part == "c":
        return _start(spec, stream)
    if part in ("a_scale", "b_scale"):
        return _scales(scalar_format(spec.scale or ""), stream, part)
    row = spec.a if part == "a" else spec.b
    dtype = np.dtype(row.code_dtype)
    if stream.kind == "bits" and row.bits + row.shift > 16:
        return None, dtype
    return _operand(row, spec, stream, PARTS.index(part)).astype(dtype), dtype


def _operand(row: Format, spec: MatmulSpec, stream: Stream, part: int) -> Array:
    if stream.kind == "bits":
        return np.arange(ENTRIES) % (1 << row.bits) + (int(row.min) if row.kind == "int" else 0)
    if stream.kind == "corners":
        return _cycle(_corner_codes(row))
    if row.kind == "int":
        if stream.kind == "wide":
            return np.where(
                _uniform(stream, part, 2) == 0, 0, _uniform(stream, part, 1 << row.bits, _OTHER) + int(row.min)
            )
        return encode(_bell(stream, part) * (row.max / 4) + (0 if row.signed else row.max / 2), row).astype(np.int64)
    if stream.kind == "wide":
        reach = 7 if spec.accumulator.output == "f16" else 30
        low = max(row.minimum_exponent - row.mantissa_bits, -reach)
        return encode(_powers(stream, part, low, min(int(np.frexp(row.max)[1]), reach)), row)
    return encode(_bell(stream, part), row)


def _corner_codes(row: Format) -> Array:
    if row.kind == "int":
        return np.array([int(row.min), 0, 1, int(row.max)])
    m = row.mantissa_bits
    magnitudes = np.array([0, 1, (1 << m) - 1, 1 << m, row.bias << m, row.max_code], np.uint64)
    return np.concatenate([magnitudes, magnitudes | np.uint64(row.sign_bit)]) << np.uint64(row.shift)


def _start(spec: MatmulSpec, stream: Stream) -> tuple[Array | None, np.dtype[Any]]:
    """Start values, in the accumulator's own array type."""
    held, part, kind = container(spec.accumulator.output), PARTS.index("c"), stream.kind
    dtype = np.dtype({"f64": np.float64, "f32": np.float32, "f16": np.float16, "int32": np.int32}[held.name])
    if kind == "bits" and dtype.itemsize > 2:
        return None, dtype
    if held.kind == "int":
        return _integer_start(kind, stream, part).astype(dtype), dtype
    if kind == "bits":
        return np.arange(ENTRIES).astype(np.uint16).view(dtype), dtype
    if kind == "corners":
        codes = np.append(_corner_codes(held), [held.infinity_code, held.nan_code]).astype(held.code_dtype)
        return _cycle(codes).view(dtype), dtype
    top = 15 if held.name == "f16" else 40
    values = {
        "ordinary": lambda: _bell(stream, part) * (_uniform(stream, part, 2) == 0),
        "cancelling": lambda: _powers(stream, part, -24, 8),
        "huge start": lambda: (
            _powers(stream, part, 0, top) * np.where(_uniform(stream, part, 4), 1.0, 2.0 ** (2 * top))
        ),
        "wide": lambda: _powers(stream, part, -2 * top, top),
    }[kind]()
    with np.errstate(over="ignore"):
        return values.astype(dtype), dtype


def _integer_start(kind: str, stream: Stream, part: int) -> Array:
    """Next to the limits, where a sum wraps or saturates, in the class of huge starts."""
    limit = (1 << 31) - 1
    if kind == "corners":
        return _cycle(np.array([-limit - 1, limit, 0, 1, -1]))
    if kind == "huge start":
        near = limit - _uniform(stream, part, 1 << 18)
        return np.where(_uniform(stream, part, 2, _OTHER) == 0, near, -near - 1)
    return np.rint(_bell(stream, part) * 1000)


def _scales(row: Format, stream: Stream, part: str) -> tuple[Array, np.dtype[Any]]:
    index = PARTS.index(part)
    if stream.kind == "bits":
        codes = np.arange(ENTRIES) & 255
    elif stream.kind == "corners":
        codes = _cycle(np.array([0, 1, row.bias << row.mantissa_bits, row.max_code]))
    else:
        one = row.bias << row.mantissa_bits
        codes = one - 16 + _uniform(stream, index, 33)
    return codes.astype(np.uint8), np.dtype(np.uint8)


def _cycle(codes: Array) -> Array:
    return np.resize(codes, ENTRIES)


@lru_cache(maxsize=32)
def _uniform(stream: Stream, part: int, below: int, ingredient: int = _UNIFORM) -> Array:
    words = stream.words(ingredient, part, ENTRIES).astype(np.uint64)
    return ((words * np.uint64(below)) >> np.uint64(32)).astype(np.int64)


@lru_cache(maxsize=32)
def _bell(stream: Stream, part: int) -> Array:
    """Twelve uniform values added, minus six: mean 0, variance 1, every operation exact."""
    words = stream.words(_BELL, part, 12 * ENTRIES).reshape(12, ENTRIES)
    return words.astype(np.float64).sum(axis=0) * 2.0**-32 - 6.0


@lru_cache(maxsize=32)
def _powers(stream: Stream, part: int, low: int, high: int) -> Array:
    """Either sign, significand uniform in [1, 2), exponent uniform in low .. high - 1."""
    exponents = low + (stream.words(_EXPONENT, part, ENTRIES) % max(high - low, 1)).astype(np.int64)
    words = stream.words(_SIGNIFICAND, part, ENTRIES)
    significands = 1.0 + (words >> 1) * 2.0**-31
    return np.ldexp(np.where(words & 1, -significands, significands), exponents)
