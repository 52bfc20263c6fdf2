"""Reads a scene back from pixels, in closed form: no learned metric, no tolerance to tune per model.

The renderer is linear in the object's colour. Inside one cell, an object with coverage mask a (its shape, size and
offset) and brightness mask s = a * fill turns the background b into

    image = b * (1 - a) + colour * s

so the squared residual of every (shape, size, fill, offset, colour) hypothesis is a quadratic whose coefficients are
inner products of the cell's pixels with fixed masks. With d = image - b, summed over pixels and channels:

    R = <d,d> + 2 <d b, a> + <b b, a a> - 2 sum_c colour_c (<d_c, s> + <b_c, a s>) + |colour|^2 <s, s>

Four matrix products per cell cover all 54 masks x 25 offsets x 10 colours. The background is read first, from the lines
that no object can reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from analysis.scenes import (
    BORDER_LINES,
    CELLS,
    CENTRES,
    COLOURS,
    FILLS,
    JITTER,
    SIZE_PX,
    SIZES,
    Scenes,
    backgrounds,
    fill_shade,
    render,
    signed_distance,
)

#: A cell is occupied when the best object explains it this much better than the bare background does ...
OCCUPIED_RATIO = 0.6
#: ... and the bare background leaves at least this squared error (a 22 x 22 cell with sigma = 0.026 noise reaches 1).
OCCUPIED_FLOOR = 1.0
_WINDOW = 22
_OFFSETS_PER_AXIS = 5
#: Bounds the largest temporary to about 1350 masks x 10 colours x 9 cells x 32 images x 4 bytes = 16 MB.
_CHUNK_CPU, _CHUNK_GPU = 32, 512


@dataclass(frozen=True)
class Decoded:
    """What was read from N images.

    cells      : int64 [N, 9]   as Scenes.cells(): 0 empty, else 1 + mixed-radix attributes
    background : int64 [N]
    offset     : float32 [N, 9, 2]  estimated (x, y) jitter in pixels, zero where empty
    """

    cells: Tensor
    background: Tensor
    offset: Tensor

    def attributes(self) -> dict[str, Tensor]:
        """int64 [N, 9] each for "shape", "colour", "size", "fill"; -1 where the cell is empty."""
        return split_cells(self.cells)

    def nearest_legal(self) -> Tensor:
        """float32 [N, 3, 64, 64]: the rendering of the scene that was read."""
        occupied = self.cells > 0
        # The renderer wants the used slots first.
        order = torch.argsort(occupied.long(), dim=1, descending=True, stable=True)
        parts = {name: value.clamp(min=0).gather(1, order) for name, value in self.attributes().items()}
        return render(
            Scenes(
                count=occupied.sum(1),
                cell=order,
                background=self.background,
                jitter=self.offset.gather(1, order[..., None].expand(-1, -1, 2)),
                **parts,
            )
        )


def split_cells(cells: Tensor) -> dict[str, Tensor]:
    """Attribute indices from cell codes (the inverse of Scenes.cells), -1 where empty."""
    code = cells - 1
    empty = cells == 0
    fill, code = code % len(FILLS), code // len(FILLS)
    size, code = code % len(SIZES), code // len(SIZES)
    colour, shape = code % len(COLOURS), code // len(COLOURS)
    parts = {"shape": shape, "colour": colour, "size": size, "fill": fill}
    return {name: value.masked_fill(empty, -1) for name, value in parts.items()}


@dataclass(frozen=True)
class _Templates:
    """Masks over a 22 x 22 window, hypotheses ordered (shape, size, fill, offset), flattened to T = 1350."""

    coverage: Tensor  # [18 * 25, 484]: (shape, size, offset), shared by the fills
    shade: Tensor  # [T, 484]
    coverage_shade: Tensor  # [T, 484]
    shade_energy: Tensor  # [T]
    offsets: Tensor  # [25, 2]
    palette: Tensor  # [10, 3]
    rows: Tensor  # [9, 484] flat pixel indices of every cell's window


@lru_cache(maxsize=4)
def _templates(device: str) -> _Templates:
    steps = torch.linspace(-JITTER, JITTER, _OFFSETS_PER_AXIS)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).reshape(-1, 2).flip(1)
    pixel = torch.arange(_WINDOW) - (_WINDOW - 1) / 2
    y, x = torch.meshgrid(pixel, pixel, indexing="ij")
    x = x[None] - offsets[:, 0, None, None]
    y = y[None] - offsets[:, 1, None, None]
    radii = torch.tensor(list(SIZES.values()))
    distance = torch.stack([signed_distance(x, y, r) for r in radii])  # [size, offset, h, w, shape]
    coverage = (0.5 - distance).clamp(0, 1).permute(4, 0, 1, 2, 3).flatten(3)  # [shape, size, offset, 484]
    shade = fill_shade(x, y).permute(3, 0, 1, 2).flatten(2)  # [fill, offset, 484]
    shaded = coverage[:, :, None] * shade  # [shape, size, fill, offset, 484]
    pixels = _WINDOW * _WINDOW
    rows = []
    for cell in range(CELLS):
        left = int(CENTRES[cell % 3] - (_WINDOW - 1) / 2)
        top = int(CENTRES[cell // 3] - (_WINDOW - 1) / 2)
        grid = torch.arange(_WINDOW)
        rows.append(((top + grid)[:, None] * SIZE_PX + left + grid).flatten())
    on = torch.device(device)
    return _Templates(
        coverage=coverage.reshape(-1, pixels).to(on),
        shade=shaded.reshape(-1, pixels).to(on),
        coverage_shade=(coverage[:, :, None] * shaded).reshape(-1, pixels).to(on),
        shade_energy=shaded.square().sum(-1).flatten().to(on),
        offsets=offsets.to(on),
        palette=torch.tensor(list(COLOURS.values())).to(on),
        rows=torch.stack(rows).to(on),
    )


def decode(images: Tensor) -> Decoded:
    """The most likely scene of every image.

    images : float [N, 3, 64, 64] in [0, 1]; computed in float32 on the tensor's device.
    Raises ValueError for any other shape.
    """
    if images.ndim != 4 or images.shape[1:] != (3, SIZE_PX, SIZE_PX):
        raise ValueError(f"images must be [N, 3, {SIZE_PX}, {SIZE_PX}], not {list(images.shape)}")
    chunk = _CHUNK_CPU if images.device.type == "cpu" else _CHUNK_GPU
    parts = [_decode_chunk(part.float()) for part in images.split(chunk)]
    if not parts:
        empty = torch.zeros(0, CELLS, dtype=torch.int64, device=images.device)
        return Decoded(cells=empty, background=empty[:, 0], offset=torch.zeros(0, CELLS, 2, device=images.device))
    return Decoded(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _decode_chunk(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    device = images.device
    t = _templates(str(device))
    plain = backgrounds(device)
    lines = list(BORDER_LINES)
    border = torch.zeros(SIZE_PX, SIZE_PX, dtype=torch.bool, device=device)
    border[lines], border[:, lines] = True, True
    seen = images[:, :, border]
    # Absolute error: a few pixels that a model got wrong must not outvote the rest of the line.
    error = torch.stack([(seen - b[:, border]).abs().mean((1, 2)) for b in plain], dim=1)
    background = error.argmin(1)

    n, masks, colours = len(images), t.shade.shape[0], len(COLOURS)
    base = plain.flatten(2)[:, :, t.rows]  # [6, 3, 9, 484]
    b = base[background].transpose(1, 2)  # [N, 9, 3, 484]
    d = images.flatten(2)[:, :, t.rows].transpose(1, 2) - b

    def per_background(values: Tensor, mask: Tensor) -> Tensor:
        return (values @ mask.T)[background]

    offsets, fills = len(t.offsets), len(FILLS)

    def spread(values: Tensor) -> Tensor:
        """[..., shape * size * offset] -> [..., T]: the same coverage serves every fill."""
        grouped = values.unflatten(-1, (-1, 1, offsets))
        return grouped.expand(*grouped.shape[:-2], fills, offsets).flatten(-3)

    empty = d.square().sum((2, 3))  # [N, 9]
    uncovered = 2 * ((d * b).sum(2) @ t.coverage.T)
    uncovered = uncovered + per_background(base.square().sum(1), t.coverage.square())
    inner = d.transpose(1, 2) @ t.shade.T  # [N, 3, 9, T]
    inner = inner + per_background(base, t.coverage_shade)
    weight = torch.cat([-2 * t.palette, t.palette.square().sum(1, keepdim=True)], dim=1)  # [10, 4]
    moments = torch.cat([inner, t.shade_energy.expand(n, 1, CELLS, masks)], dim=1)  # [N, 4, 9, T]
    residual = torch.einsum("kc,ncgt->ngtk", weight, moments) + spread(uncovered)[..., None]
    best, winner = residual.flatten(2).min(2)
    best = best + empty

    occupied = (best < OCCUPIED_RATIO * empty) & (empty > OCCUPIED_FLOOR)
    mask, colour = winner // colours, winner % colours
    offset = t.offsets[mask % offsets]
    mask = mask // offsets  # (shape, size, fill)
    shape_size, fill = mask // fills, mask % fills
    shape, size = shape_size // len(SIZES), shape_size % len(SIZES)
    code = 1 + ((shape * colours + colour) * len(SIZES) + size) * fills + fill
    return torch.where(occupied, code, 0), background, offset * occupied[..., None]


def all_correct(decoded: Decoded, scenes: Scenes) -> Tensor:
    """bool [N]: every object, attribute, cell and the background are as asked, and nothing else is there."""
    wanted = scenes.to(decoded.cells.device)
    return (decoded.cells == wanted.cells()).all(1) & (decoded.background == wanted.background)


#: Attributes that `attribute_accuracy` reports, in order.
ATTRIBUTES = ("position", "shape", "colour", "size", "fill", "background")


def attribute_accuracy(decoded: Decoded, scenes: Scenes) -> dict[str, float]:
    """Share of objects (of scenes, for position and background) whose attribute is as asked, by attribute name."""
    wanted_cells = scenes.to(decoded.cells.device).cells()
    wanted, got = split_cells(wanted_cells), decoded.attributes()
    here = wanted_cells > 0
    result = {"position": float(((decoded.cells > 0) == here).all(1).float().mean())}
    for name in ("shape", "colour", "size", "fill"):
        result[name] = float((wanted[name] == got[name])[here].float().mean())
    same = decoded.background == scenes.background.to(decoded.background.device)
    result["background"] = float(same.float().mean())
    return result
