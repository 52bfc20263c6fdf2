"""Linear maps of the input channels that a layer applies before quantizing, undone in its weight.

y = W x = (W T^-1) (T x): in full precision nothing changes, on a coarse grid the flatter operand loses less. Each map
is a module with `forward` for activations (channels last for a Linear, axis 1 for a convolution) and `weight` for the
layer's weight (channels on axis 1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Smooth(nn.Module):
    """x / s per input channel, W * s: moves the range of outlier channels from activations into weights.

    SmoothQuant, Xiao et al., arXiv:2211.10438, equation 3. factor : (channels,) positive; axis : -1 or 1
    """

    factor: Tensor

    def __init__(self, factor: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return x / (self.factor if self.axis == -1 else self.factor.view(1, -1, 1, 1))

    def weight(self, w: Tensor) -> Tensor:
        """`w` for transformed inputs."""
        return w * self.factor.view(1, -1, *(1,) * (w.ndim - 2))


class Hadamard(nn.Module):
    """x R with R block-diagonal, blocks H diag(signs) / sqrt(n): spreads an outlier over the n channels of its block.

    QuaRot, Ashkboos et al., arXiv:2404.00456; block-wise and online as in ConvRot, arXiv:2512.03673. R is orthogonal,
    so the weight becomes W R. n is a power of two that divides the channels; the signs are drawn from a fixed seed.
    """

    rotation: Tensor

    def __init__(self, channels: int, block: int, axis: int, seed: int = 0) -> None:
        super().__init__()
        if block < 1 or block & (block - 1) or channels % block:
            raise ValueError(f"block {block} must be a power of two that divides the {channels} channels")
        signs = torch.randint(0, 2, (block,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
        self.axis = axis
        self.block = block
        self.register_buffer("rotation", hadamard(block) * signs / block**0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._rotate(x, self.axis)

    def weight(self, w: Tensor) -> Tensor:
        """`w` for transformed inputs."""
        return self._rotate(w, 1)

    def _rotate(self, x: Tensor, axis: int) -> Tensor:
        last = x.movedim(axis, -1)
        turned = (last.unflatten(-1, (-1, self.block)) @ self.rotation).flatten(-2)
        return turned.movedim(-1, axis).contiguous()


def hadamard(size: int) -> Tensor:
    """The Hadamard matrix of a power-of-two size (Sylvester's construction), entries +1 and -1."""
    made = torch.ones(1, 1)
    while made.shape[0] < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)], 0)
    return made


def largest_block(channels: int, most: int) -> int:
    """The largest power of two that divides `channels`, at most `most`."""
    return min(channels & -channels, most)


class Chain(nn.Module):
    """Several maps, one after the other."""

    def __init__(self, *parts: Smooth | Hadamard) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def weight(self, w: Tensor) -> Tensor:
        """`w` for transformed inputs."""
        for part in self.parts:
            w = part.weight(w)  # type: ignore[operator]
        return w


def recipe(transform: nn.Module | None) -> list[int] | None:
    """What `from_recipe` needs to build an equal transform: 0 for a smoothing, the block length for a rotation."""
    if transform is None:
        return None
    if not isinstance(transform, Chain):
        raise ValueError(f"a {type(transform).__name__} cannot be saved; put it into a Chain")
    return [part.block if isinstance(part, Hadamard) else 0 for part in transform.parts]


def from_recipe(made: Sequence[int] | None, channels: int, axis: int) -> Chain | None:
    """A transform of the kind `recipe` described; its tensors are placeholders until they are loaded."""
    if made is None:
        return None
    return Chain(*(Hadamard(channels, block, axis) if block else Smooth(torch.ones(channels), axis) for block in made))
