"""The tiles libraries ship, by how a generation feeds its tensor cores: which kernels exist, not how fast they are.

mma      sides of mostly powers of two, as in the names of Ampere's and Ada's kernels
wgmma    one side a multiple of 64, the other of 16, within the registers that hold a result (128 x 320) and the shared
         memory that holds a few steps of both operands: read off cuBLAS's kernel names on an H200
tcgen05  at most 128 rows of tensor memory by 256 columns; a pair of SMs works on two of them side by side
implicit those of convolution libraries

`ENGINES` says which engine a generation has; anything older or smaller feeds its tensor cores through registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Tiles = tuple[tuple[int, int], ...]
Columns = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

ENGINES: Mapping[str, str] = MappingProxyType({"hopper": "wgmma", "blackwell": "tcgen05"})
DEFAULT_ENGINE = "mma"


def both_ways(long: int, short: Iterable[int]) -> Tiles:
    """Tiles of (long, each of short), lying and standing."""
    return tuple(dict.fromkeys(tile for side in short for tile in ((long, side), (side, long))))


CATALOGUE: Mapping[str, Tiles] = MappingProxyType(
    {
        "mma": (
            *((256, 128), (128, 256), (256, 256), (192, 128), (128, 192), (128, 128)),
            *((192, 192), (192, 160), (128, 160), (160, 128)),
            *((256, 64), (64, 256), (128, 64), (64, 128), (64, 64)),
            *((32, 128), (16, 128), (32, 64), (16, 64), (8, 64)),
        ),
        "wgmma": (
            *both_ways(64, (8, 16, 32, 48, 64, 80, 96)),
            *both_ways(128, (64, 80, 96, 112, 128, 144, 160, 192, 256, 320)),
            *both_ways(192, (160, 192)),
            *both_ways(256, (144, 160)),
        ),
        "tcgen05": (
            *both_ways(64, (32, 64, 96)),
            *both_ways(128, (32, 64, 96, 128, 160, 192, 224, 256)),
        ),
        "implicit": ((256, 128), (128, 256), (128, 128), (256, 64), (128, 64), (64, 64)),
    }
)
#: name -> (rows, columns) of its tiles
TILES: Mapping[str, Columns] = MappingProxyType(
    {
        name: (np.array([m for m, _ in tiles], dtype=np.float64), np.array([n for _, n in tiles], dtype=np.float64))
        for name, tiles in CATALOGUE.items()
    }
)
#: the ways k is cut: into one part, or several whose sums are added at the end
SPLITS = (2, 4, 8)
#: a split is worth trying where tiles of this size leave SMs idle
WIDE_TILE = (256, 128)
