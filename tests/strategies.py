"""Named input distributions for the numerics tests, and a bitwise comparison that shows what differs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.codec import encode
from fpsim.formats import Format

Array = npt.NDArray[Any]


def random_codes(rng: np.random.Generator, row: Format, shape: tuple[int, ...]) -> Array:
    """Every code equally likely: NaN, Inf, subnormals and all."""
    if row.kind == "int":
        return rng.integers(int(row.min), int(row.max) + 1, shape).astype(row.code_dtype)
    return rng.integers(0, 1 << (row.bits + row.shift), shape, dtype=np.uint64).astype(row.code_dtype)


def finite_codes(rng: np.random.Generator, row: Format, shape: tuple[int, ...]) -> Array:
    """Random codes with NaN and Inf replaced by zero."""
    codes = random_codes(rng, row, shape)
    if row.kind == "float":
        magnitude = (codes >> row.shift) & ((1 << (row.exponent_bits + row.mantissa_bits)) - 1)
        codes[magnitude > row.max_code] = 0
        if row.nan == "negative-zero":
            codes[codes == row.nan_code] = 0
    return codes


def edge_codes(rng: np.random.Generator, row: Format, shape: tuple[int, ...]) -> Array:
    """The corners: both zeros, the smallest and largest subnormal and normal, one, Inf, NaN."""
    if row.kind == "int":
        return rng.choice([int(row.min), -1 if row.signed else 0, 0, 1, int(row.max)], shape).astype(row.code_dtype)
    m = row.mantissa_bits
    magnitudes = [0, 0, 0, 1, max((1 << m) - 1, 1), 1 << m, row.bias << m, row.max_code, row.max_code - 1]
    magnitudes += [code for code in (row.infinity_code,) if code is not None]
    picked = rng.choice(np.array(magnitudes, np.uint64), shape)
    signs = rng.integers(0, 2, shape).astype(np.uint64) * np.uint64(row.sign_bit)
    return ((picked | signs) << np.uint64(row.shift)).astype(row.code_dtype)


def subnormal_codes(rng: np.random.Generator, row: Format, shape: tuple[int, ...]) -> Array:
    """Zeros, subnormals and the first normals."""
    if row.kind == "int":
        return rng.integers(max(int(row.min), -2), 3, shape).astype(row.code_dtype)
    magnitude = rng.integers(0, (2 << row.mantissa_bits) + 1, shape).astype(np.uint64)
    signs = rng.integers(0, 2, shape).astype(np.uint64) * np.uint64(row.sign_bit)
    return ((magnitude | signs) << np.uint64(row.shift)).astype(row.code_dtype)


def normal_codes(rng: np.random.Generator, row: Format, shape: tuple[int, ...]) -> Array:
    """Standard normal values (times 40 for integers)."""
    return encode(rng.standard_normal(shape) * (40.0 if row.kind == "int" else 1.0), row)


def zero_mixed_codes(rng: np.random.Generator, row: Format, shape: tuple[int, ...]) -> Array:
    """Half of the values, and some whole rows, are zero."""
    codes = normal_codes(rng, row, shape)
    codes[rng.random(shape) < 0.5] = 0
    codes[rng.random(shape[0]) < 0.3] = 0
    return codes


def wide_codes(rng: np.random.Generator, row: Format, shape: tuple[int, ...]) -> Array:
    """Log-uniform magnitudes over most of the format's range (at most 2**-40 .. 2**40)."""
    if row.kind == "int":
        return random_codes(rng, row, shape)
    low, high = max(row.minimum_exponent - row.mantissa_bits, -40), min(int(np.frexp(row.max)[1]), 40)
    signs = rng.choice([-1.0, 1.0], shape)
    return encode(signs * 2.0 ** rng.uniform(low, high, shape), row)


#: name -> codes(rng, format, shape)
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, Format, tuple[int, ...]], Array]] = {
    "bits": random_codes,
    "finite": finite_codes,
    "edge": edge_codes,
    "subnormal": subnormal_codes,
    "normal": normal_codes,
    "zero-mixed": zero_mixed_codes,
    "wide": wide_codes,
}


def cancelling(a: Array, b: Array, row: Format) -> tuple[Array, Array]:
    """Make the second half of K undo the first: the same products with the sign of a flipped."""
    half = a.shape[1] // 2
    a, b = a.copy(), b.copy()
    if row.kind == "float" and row.signed:
        a[:, half : 2 * half] = a[:, :half] ^ np.array(row.sign_bit << row.shift, a.dtype)
        b[half : 2 * half] = b[:half]
    return a, b


def bits(x: Array) -> Array:
    """The array's bits as unsigned integers."""
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def assert_same_bits(got: Array, want: Array, context: object = "") -> None:
    """Equal shape, dtype and bits, or a message with the first few differences in hex."""
    assert got.shape == want.shape, f"{context}: shape {got.shape} != {want.shape}"
    assert got.dtype == want.dtype, f"{context}: dtype {got.dtype} != {want.dtype}"
    g, w = bits(got), bits(want)
    bad = np.argwhere(g != w)
    if len(bad):
        lines = [
            f"  {i}: got {int(g[i]):#x} ({got[i]}), want {int(w[i]):#x} ({want[i]})"
            for i in (tuple(map(int, at)) for at in bad[:5])
        ]
        raise AssertionError(f"{context}: {len(bad)} of {g.size} differ\n" + "\n".join(lines))
