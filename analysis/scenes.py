"""Captioned scenes with known ground truth: the data the embedded pipelines learn and are judged by.

A scene is one to four objects on a 3 x 3 grid of cells. Each object has a shape, a colour, a size, a fill and a cell;
the scene has a background. The caption names all of it, so a generated image can be checked attribute by attribute
without any learned metric: `analysis.decoder` inverts the renderer in closed form.

Everything is a batch and everything is a torch tensor, so a training loop draws, renders and tokenises hundreds of
thousands of scenes per second on a GPU and stores none of them.

Geometry, in pixels of a 64 x 64 image whose pixel centres are 0, 1, ..., 63: cell centres are 10.5, 31.5 and 52.5; an
object's centre is jittered by up to 1 px in x and y; its radius is 5, 7 or 9. So objects keep off the lines 0, 21, 42
and 63 that separate the cells (1 + 9 + half a pixel of anti-aliasing = 10.5) and never overlap; only the mitred tip of
a large star or triangle at full jitter may tint a pixel or two of a line. The background is read from those lines.

Two disjoint held-out sets, by construction and not by chance of a seed:
- *held-out scenes*: the attributes hash to 0 modulo `SPLIT`; training never draws one;
- *novel pairs*: the scene contains one of the six (shape, colour) pairs of `NOVEL_PAIRS`, never seen together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "ring", "star", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.10, 0.12),
    "orange": (1.00, 0.52, 0.00),
    "yellow": (0.98, 0.93, 0.18),
    "green": (0.13, 0.68, 0.22),
    "cyan": (0.15, 0.87, 0.92),
    "blue": (0.13, 0.32, 0.98),
    "purple": (0.58, 0.12, 0.80),
    "pink": (1.00, 0.55, 0.78),
    "brown": (0.52, 0.30, 0.10),
    "white": (1.00, 1.00, 1.00),
}
SIZES = {"small": 5.0, "medium": 7.0, "large": 9.0}
FILLS = ("plain", "striped", "dotted")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
#: (colour at the top, colour at the bottom); equal for the plain ones
BACKGROUNDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "dark": ((0.06, 0.06, 0.08), (0.06, 0.06, 0.08)),
    "gray": ((0.46, 0.47, 0.48), (0.46, 0.47, 0.48)),
    "sand": ((0.84, 0.77, 0.60), (0.84, 0.77, 0.60)),
    "teal": ((0.05, 0.32, 0.36), (0.05, 0.32, 0.36)),
    "dusk": ((0.10, 0.08, 0.26), (0.40, 0.22, 0.34)),
    "dawn": ((0.55, 0.68, 0.82), (0.90, 0.70, 0.62)),
}
#: Every shape and six of ten colours lose one partner each.
NOVEL_PAIRS = (
    ("circle", "cyan"),
    ("square", "purple"),
    ("triangle", "green"),
    ("ring", "orange"),
    ("star", "blue"),
    ("cross", "pink"),
)
#: One scene in SPLIT is held out.
SPLIT = 8

SIZE_PX = 64
CELLS = 9
MAX_OBJECTS = 4
CENTRES = (10.5, 31.5, 52.5)
BORDER_LINES = (0, 21, 42, 63)
JITTER = 1.0
FILL_PERIOD = 4.0
#: Stripes and dots are the object's colour times this.
SHADE = 0.4

WORDS = (
    *("a", "and", "at", "on", "background"),
    *SIZES,
    *COLOURS,
    *FILLS,
    *SHAPES,
    *ROWS,
    *COLUMNS,
    *BACKGROUNDS,
)
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
VOCABULARY = (PAD, BOS, EOS, *WORDS)
MAX_TOKENS = 48
_TOKEN = {word: index for index, word in enumerate(VOCABULARY)}
_FIRST = {
    "size": _TOKEN["small"], "colour": _TOKEN["red"], "fill": _TOKEN["plain"], "shape": _TOKEN["circle"],
    "row": _TOKEN["top"], "column": _TOKEN["left"], "background": _TOKEN["dark"],
}  # fmt: skip


@dataclass(frozen=True)
class Scenes:
    """A batch of N scenes. Object slots beyond `count` hold zeros and are ignored everywhere.

    There are MAX_OBJECTS = 4 slots in every scene that is drawn or parsed; what the decoder reads back may need nine.

    count      : int64 [N]      1 to 4
    cell       : int64 [N, 4]   0 to 8, row-major; distinct within a scene
    shape, colour, size, fill : int64 [N, 4]  indices into SHAPES, COLOURS, SIZES, FILLS
    background : int64 [N]      index into BACKGROUNDS
    jitter     : float32 [N, 4, 2]  (x, y) offset of the centre in pixels, within +-JITTER
    """

    count: Tensor
    cell: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    fill: Tensor
    background: Tensor
    jitter: Tensor

    def __len__(self) -> int:
        return int(self.count.shape[0])

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(*(getattr(self, f.name).to(device) for f in fields(self)))

    @property
    def present(self) -> Tensor:
        """bool [N, slots]: which object slots are in use."""
        return torch.arange(self.cell.shape[1], device=self.count.device) < self.count[:, None]

    def cells(self) -> Tensor:
        """int64 [N, 9]: one code per cell, 0 when empty, else 1 + the object's four attributes in mixed radix.

        Two scenes show the same objects exactly when these rows are equal, whatever the order of the slots.
        """
        code = 1 + ((self.shape * len(COLOURS) + self.colour) * len(SIZES) + self.size) * len(FILLS) + self.fill
        empty = torch.zeros(len(self), CELLS, dtype=torch.int64, device=code.device)
        return empty.scatter_add(1, self.cell, code * self.present)

    def captions(self) -> list[str]:
        """One sentence per scene, objects in slot order."""
        return [" ".join(VOCABULARY[t] for t in row if t > _TOKEN[EOS]) for row in self.tokens().tolist()]

    def tokens(self) -> Tensor:
        """int64 [N, MAX_TOKENS]: what the pipelines' tokenizer returns for `captions()`, computed without strings."""
        n, device = len(self), self.count.device
        word = {w: torch.full((n,), _TOKEN[w], device=device) for w in ("a", "and", "at", "on", "background", BOS, EOS)}
        absent = torch.zeros_like(self.count)
        columns: list[Tensor] = [word[BOS]]
        for slot in range(MAX_OBJECTS):
            here = self.present[:, slot].long()
            phrase = [
                word["and"] if slot else absent,
                word["a"],
                _FIRST["size"] + self.size[:, slot],
                _FIRST["colour"] + self.colour[:, slot],
                _FIRST["fill"] + self.fill[:, slot],
                _FIRST["shape"] + self.shape[:, slot],
                word["at"],
                _FIRST["row"] + self.cell[:, slot] // 3,
                _FIRST["column"] + self.cell[:, slot] % 3,
            ]
            columns += [token * here for token in phrase]
        columns += [word["on"], word["a"], _FIRST["background"] + self.background, word["background"], word[EOS]]
        padded = torch.stack(columns, dim=1)
        # PAD is token 0, so a stable sort on "is padding" closes the gaps that absent objects left.
        order = torch.argsort((padded == 0).long(), dim=1, stable=True)
        packed = padded.gather(1, order)
        return torch.nn.functional.pad(packed, (0, MAX_TOKENS - packed.shape[1]))


def draw(count: int, generator: torch.Generator, weights: Sequence[float] = (0.25, 0.25, 0.25, 0.25)) -> Scenes:
    """`count` scenes with every attribute uniform and the number of objects drawn with `weights`, on the generator's
    device. Nothing is held out here; see `training_scenes` and `held_out`."""
    device = generator.device

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator, device=device)

    objects = torch.multinomial(torch.tensor(weights, device=device), count, replacement=True, generator=generator) + 1
    order = torch.rand(count, CELLS, generator=generator, device=device).argsort(dim=1)
    present = torch.arange(MAX_OBJECTS, device=device) < objects[:, None]
    # Absent slots must still name a cell of their own for `cells()` to scatter into; the permutation gives one.
    return Scenes(
        count=objects,
        cell=order[:, :MAX_OBJECTS],
        shape=integers(len(SHAPES), count, MAX_OBJECTS) * present,
        colour=integers(len(COLOURS), count, MAX_OBJECTS) * present,
        size=integers(len(SIZES), count, MAX_OBJECTS) * present,
        fill=integers(len(FILLS), count, MAX_OBJECTS) * present,
        background=integers(len(BACKGROUNDS), count),
        jitter=(torch.rand(count, MAX_OBJECTS, 2, generator=generator, device=device) * 2 - 1) * JITTER,
    )


def is_held_out(scenes: Scenes) -> Tensor:
    """bool [N]: the attributes (not the jitter, not the slot order) hash to 0 modulo SPLIT."""
    code = scenes.background + 1
    for column in scenes.cells().unbind(1):
        code = (code * 1_000_003 + column) % 2_147_483_647  # stays below 2**51: no overflow on any backend
    return code % SPLIT == 0


def has_novel_pair(scenes: Scenes) -> Tensor:
    """bool [N]: some object is one of NOVEL_PAIRS."""
    table = torch.zeros(len(SHAPES), len(COLOURS), dtype=torch.bool, device=scenes.count.device)
    for shape, colour in NOVEL_PAIRS:
        table[SHAPES.index(shape), tuple(COLOURS).index(colour)] = True
    return (table[scenes.shape, scenes.colour] & scenes.present).any(dim=1)


def training_scenes(count: int, generator: torch.Generator, weights: Sequence[float]) -> Scenes:
    """`count` scenes, none of them held out and none with a novel pair."""
    return _filtered(count, generator, weights, held_out=False, novel=False)


def held_out(count: int, objects: int | None = None, seed: int = 0, novel: bool = False) -> Scenes:
    """`count` scenes that training never drew.

    objects : 1 to 4, or None for equal shares of each
    novel   : False, held-out scenes of familiar pairs; True, every scene has at least one pair never seen together
    """
    if objects is not None and not 1 <= objects <= MAX_OBJECTS:
        raise ValueError(f"objects must be 1 to {MAX_OBJECTS} or None, not {objects}")
    weights = [1.0 if objects in (None, k) else 0.0 for k in range(1, MAX_OBJECTS + 1)]
    generator = torch.Generator().manual_seed(seed)
    return _filtered(count, generator, weights, held_out=None if novel else True, novel=novel)


def _filtered(
    count: int, generator: torch.Generator, weights: Sequence[float], *, held_out: bool | None, novel: bool
) -> Scenes:
    parts, found = [], 0
    while found < count:
        batch = draw(max(1024, 2 * count), generator, weights)
        keep = has_novel_pair(batch) == novel
        if held_out is not None:
            keep &= is_held_out(batch) == held_out
        parts.append(batch[keep])
        found += len(parts[-1])
    return Scenes(*(torch.cat([getattr(p, f.name) for p in parts])[:count] for f in fields(Scenes)))


_OBJECT = re.compile(
    rf"a (?P<size>{'|'.join(SIZES)}) (?P<colour>{'|'.join(COLOURS)}) (?P<fill>{'|'.join(FILLS)}) "
    rf"(?P<shape>{'|'.join(SHAPES)}) at (?P<row>{'|'.join(ROWS)}) (?P<column>{'|'.join(COLUMNS)})"
)
_CAPTION = re.compile(rf"(?P<objects>.+) on a (?P<background>{'|'.join(BACKGROUNDS)}) background")


def parse(captions: Sequence[str]) -> Scenes:
    """The scenes that captions of the grammar describe, with zero jitter.

    Raises ValueError, naming the caption, when one is not a sentence of the grammar.
    """
    return Scenes(*(torch.stack(column) for column in zip(*(_parse_one(c) for c in captions), strict=True)))


def _parse_one(caption: str) -> tuple[Tensor, ...]:
    whole = _CAPTION.fullmatch(caption.strip())
    phrases = whole["objects"].split(" and ") if whole else []
    matches = [_OBJECT.fullmatch(phrase) for phrase in phrases]
    if whole is None or not all(matches) or not 1 <= len(matches) <= MAX_OBJECTS:
        raise ValueError(
            f"not a caption of the scene grammar: {caption!r}; expected one to four of 'a SIZE COLOUR FILL SHAPE at "
            f"ROW COLUMN' joined by 'and', then 'on a BACKGROUND background', for example "
            f"'a small red striped ring at top left on a dusk background'"
        )
    found = [m for m in matches if m is not None]
    cells = [ROWS.index(m["row"]) * 3 + COLUMNS.index(m["column"]) for m in found]
    if len(set(cells)) < len(cells):
        raise ValueError(f"two objects share a cell in {caption!r}; every object needs a cell of its own")

    def slots(values: list[int], padding: list[int]) -> Tensor:
        return torch.tensor(values + padding[: MAX_OBJECTS - len(values)])

    free = [c for c in range(CELLS) if c not in cells]
    zeros = [0] * MAX_OBJECTS
    return (
        torch.tensor(len(found)),
        slots(cells, free),
        slots([SHAPES.index(m["shape"]) for m in found], zeros),
        slots([tuple(COLOURS).index(m["colour"]) for m in found], zeros),
        slots([tuple(SIZES).index(m["size"]) for m in found], zeros),
        slots([FILLS.index(m["fill"]) for m in found], zeros),
        torch.tensor(tuple(BACKGROUNDS).index(whole["background"])),
        torch.zeros(MAX_OBJECTS, 2),
    )


def signed_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance in pixels to the outline of every shape, negative inside; stacked along a new last axis in SHAPES order.

    x, y : offsets from the object's centre (y points down); radius broadcasts against them. Distances are exact near
    the outline, which is all that anti-aliasing over half a pixel needs.
    """
    distance = torch.hypot(x, y)
    circle = distance - radius
    square = torch.maximum(x.abs(), y.abs()) - 0.82 * radius
    slant = 0.8660254 * x.abs() - 0.5 * y
    triangle = torch.maximum(slant, y) - 0.5 * radius
    ring = (distance - 0.72 * radius).abs() - 0.28 * radius
    # Star: fold the plane onto one half-ray of the five, then measure to the edge from tip to inner corner.
    wedge = torch.pi / 5
    angle = (torch.remainder(torch.atan2(x, -y) + wedge, 2 * wedge) - wedge).abs()
    u, v = distance * torch.cos(angle), distance * torch.sin(angle)
    inner_u, inner_v = 0.42 * 0.8090170, 0.42 * 0.5877853  # inner corner at 0.42 r, angle pi / 5
    normal_u, normal_v = inner_v, 1 - inner_u
    star = ((u - radius) * normal_u + v * normal_v) / (normal_u**2 + normal_v**2) ** 0.5
    arm, reach = 0.34 * radius, radius
    cross = torch.minimum(torch.maximum(x.abs() - arm, y.abs() - reach), torch.maximum(x.abs() - reach, y.abs() - arm))
    return torch.stack([circle, square, triangle, ring, star, cross], dim=-1)


def fill_shade(x: Tensor, y: Tensor) -> Tensor:
    """Brightness factor of every fill at offsets (x, y) from the centre; new last axis in FILLS order."""

    def centred(t: Tensor) -> Tensor:
        return torch.remainder(t, FILL_PERIOD) - FILL_PERIOD / 2

    stripe = (0.5 + 1.0 - centred(y).abs()).clamp(0, 1)
    dot = (0.5 + 1.3 - torch.hypot(centred(x), centred(y))).clamp(0, 1)
    return 1 - (1 - SHADE) * torch.stack([torch.zeros_like(x), stripe, dot], dim=-1)


def backgrounds(device: torch.device | str = "cpu") -> Tensor:
    """float32 [6, 3, 64, 64]: every background, empty."""
    ends = torch.tensor([BACKGROUNDS[name] for name in BACKGROUNDS], device=device)
    ramp = torch.linspace(0, 1, SIZE_PX, device=device)[None, None, :, None]
    images = ends[:, 0, :, None, None] * (1 - ramp) + ends[:, 1, :, None, None] * ramp
    return images.expand(-1, -1, -1, SIZE_PX).contiguous()


def render(scenes: Scenes) -> Tensor:
    """float32 [N, 3, 64, 64] in [0, 1], on the scenes' device; anti-aliased over one pixel."""
    device = scenes.count.device
    image = backgrounds(device)[scenes.background]
    palette = torch.tensor(list(COLOURS.values()), device=device)
    radii = torch.tensor(list(SIZES.values()), device=device)
    centres = torch.tensor(CENTRES, device=device)
    pixel = torch.arange(SIZE_PX, device=device, dtype=torch.float32)
    for slot in range(scenes.cell.shape[1]):
        cell, jitter = scenes.cell[:, slot], scenes.jitter[:, slot]
        x = (pixel - (centres[cell % 3] + jitter[:, 0])[:, None])[:, None, :].expand(-1, SIZE_PX, -1)
        y = (pixel - (centres[cell // 3] + jitter[:, 1])[:, None])[:, :, None].expand(-1, -1, SIZE_PX)
        distance = _pick(signed_distance(x, y, radii[scenes.size[:, slot]][:, None, None]), scenes.shape[:, slot])
        coverage = (0.5 - distance).clamp(0, 1) * scenes.present[:, slot, None, None]
        shade = _pick(fill_shade(x, y), scenes.fill[:, slot])
        colour = palette[scenes.colour[:, slot]][:, :, None, None] * shade[:, None]
        image = image + coverage[:, None] * (colour - image)
    return image


def _pick(stack: Tensor, index: Tensor) -> Tensor:
    """stack [N, H, W, S], index [N] -> [N, H, W]."""
    return stack.gather(3, index[:, None, None, None].expand(*stack.shape[:3], 1)).squeeze(3)
