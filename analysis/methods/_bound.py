"""Integer weights whose dot products fit a register, whatever the input: projections onto the L1 balls of A2Q.

With inputs x in [low, high] (low <= 0 <= high) and integer weights q, let p be the sum of the positive weights and n
that of the negative ones' magnitudes. No partial sum in any order leaves [-2**(P-1), 2**(P-1) - 1] exactly when

    high * p - low * n <= 2**(P-1) - 1        and        high * n - low * p <= 2**(P-1)

A2Q (Colbert et al., arXiv:2301.13376, equation 11) asks for more, one ball for all: (p + n) * max(high, -low) at most
2**(P-1) - 1. For inputs without a sign the two conditions fall apart into one for p and one for n, which leaves twice
the room where the weights of a channel balance (A2Q+, arXiv:2401.10432, proposition 2). For signed inputs, -128 to
127, they are nearly the same ball.

Tiles of T products in a narrow inner register, their results in a wider outer one (AXE, arXiv:2409.17092), ask the same
of each tile with the inner width and of the whole with the outer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from analysis.accumulators.registers import Register, ends, register_of
from fpsim._names import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.methods import Layer

Rounding = Literal["toward-zero", "nearest"]


def wanted(layer: "Layer", bits: int | None, tile: int | None, outer: int | None) -> Register:
    """The register asked for, or that of the layer's own engine.

    Raises ValueError, naming the layer, if there is neither, and for operands that are no integers with one scale.
    """
    weight, activation = layer.weight, layer.activation
    rows = [None if one is None else one.row for one in (weight, activation)]
    if any(getattr(row, "kind", "") != "int" for row in rows) or weight.has_zero or weight.block is not None:
        raise ValueError(
            f"layer {layer.path}: bounds of integer registers are for signed integer weights per tensor or channel and "
            f"integer activations, not {weight} with {activation}; use a scheme such as int8-w8a8"
        )
    if bits is not None:
        return Register(bits=bits, tile=tile, outer=outer)
    found = None if layer.spec is None else register_of(layer.spec.accumulator)
    if found is None:
        raise ValueError(f"layer {layer.path}: give the accumulator's width, for example bits=16")
    return found


@dataclass(frozen=True, kw_only=True)
class Ball:
    """Weights with positive * p + negative * n <= size; p, n as in the module's text."""

    positive: int
    negative: int
    size: int

    def cost(self, weights: "Tensor") -> "Tensor":
        """(rows,): what the weights take of `size`."""
        return self.positive * weights.clamp(min=0).sum(-1) - self.negative * weights.clamp(max=0).sum(-1)

    def price(self, weights: "Tensor") -> "Tensor":
        """Of one unit of each weight, by its sign."""
        import torch

        return torch.where(weights >= 0, float(self.positive), float(self.negative)).to(weights.dtype)


def balls(low: int, high: int, bits: int, sign_aware: bool) -> tuple[Ball, ...]:
    """The conditions for a register of `bits` and inputs in [low, high]."""
    lowest, top = ends(bits)
    if not sign_aware:
        largest = max(high, -low)
        return (Ball(positive=largest, negative=largest, size=top),)
    return Ball(positive=high, negative=-low, size=top), Ball(positive=-low, negative=high, size=-lowest)


def fitted(
    weights: "Tensor", low: int, high: int, register: Register, *, sign_aware: bool, rounding: Rounding = "toward-zero"
) -> "Tensor":
    """Whole numbers near `weights` (rows, K) whose sums fit `register` for all inputs in [low, high], in any order.

    weights  : float64, in steps of the grid; K in the order that tiles are cut in
    rounding : "toward-zero", as A2Q has it: the nearest point of the ball, truncated, which cannot leave it again;
               "nearest": magnitudes are lowered by the least amount after which their nearest whole numbers fit
    """
    import torch

    if rounding not in get_args(Rounding):
        raise unknown("rounding", rounding, get_args(Rounding))
    made = weights.double().clone()
    for bits, part in _parts(made.shape[1], register):
        for ball in balls(low, high, bits, sign_aware):
            cut = made[:, part]
            made[:, part] = projected(cut, ball) if rounding == "toward-zero" else _rounded(cut, ball)
    return torch.trunc(made) if rounding == "toward-zero" else made


def _parts(depth: int, register: Register) -> Iterator[tuple[int, slice]]:
    """(bits, columns): everything that must fit a register of its own."""
    if register.tile is None or register.outer is None:
        yield register.bits, slice(0, depth)
        return
    for start in range(0, depth, register.tile):
        yield register.bits, slice(start, min(start + register.tile, depth))
    yield register.outer, slice(0, depth)


def projected(weights: "Tensor", ball: Ball) -> "Tensor":
    """The nearest point of the ball to each row: magnitudes lowered by lambda * price, none below 0 (soft threshold).

    Duchi et al. 2008, figure 1, with prices: over the weights in order of magnitude / price, lambda is the largest
    (sum of price * magnitude - size) / (sum of price**2) of any prefix.
    """
    price, magnitude = ball.price(weights), weights.abs()
    order = (magnitude / price.clamp(min=1e-300)).argsort(-1, descending=True)
    p, m = price.gather(-1, order), magnitude.gather(-1, order)
    share = ((p * m).cumsum(-1) - ball.size) / (p * p).cumsum(-1).clamp(min=1e-300)
    threshold = share.amax(-1, keepdim=True).clamp(min=0)
    return weights.sign() * (magnitude - threshold * price).clamp(min=0)


def fitted_nearest(weights: "Tensor", low: int, high: int, register: Register, halvings: int) -> "Tensor":
    """`fitted` with one ball for both signs and rounding="nearest", in the type of `weights` and a shorter search."""
    made = weights.clone()
    for bits, part in _parts(made.shape[1], register):
        for ball in balls(low, high, bits, sign_aware=False):
            made[:, part] = _rounded(made[:, part], ball, halvings)
    return made


#: Halvings of the search for a threshold: a step in 2**24 of the largest weight.
HALVINGS = 24


def _rounded(weights: "Tensor", ball: Ball, halvings: int = HALVINGS) -> "Tensor":
    """Nearest whole numbers after the least soft threshold with which they fit, found by bisection."""
    import torch

    price, magnitude = ball.price(weights), weights.abs()

    def at(threshold: "Tensor") -> "Tensor":
        return weights.sign() * (magnitude - threshold * price).clamp(min=0).round()

    low = torch.zeros_like(weights[:, :1])
    high = (magnitude / price.clamp(min=1)).amax(-1, keepdim=True)
    fits = ball.cost(at(low)) <= ball.size
    for _ in range(halvings):
        middle = (low + high) / 2
        good = (ball.cost(at(middle)) <= ball.size)[:, None]
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
    return at(torch.where(fits[:, None], torch.zeros_like(high), high))
