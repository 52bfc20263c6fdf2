"""Ranges of rows on all cores: what every runner shares."""

from collections.abc import Callable

from fpsim import _jit
from fpsim.codec import Array

Scales = tuple[Array, Array]


def words(c: Array) -> Array:
    """Container codes as kernels store them: unsigned up to 32 bits, which holds every code without wrapping."""
    return c.view(f"u{c.itemsize}") if c.itemsize < 8 else c


def rows(run: Callable[[int, int], object], c: Array, depth: int) -> None:
    """`run` over ranges of the rows of c, on all cores once there is enough work to share."""
    _jit.parallel(run, c.shape[0], grain=max(1, 200_000 // max(c.shape[1] * depth, 1)))
