"""Integer weights in training that fit a narrow register at every moment: A2Q's quantizer and one that wastes less.

Rows of weights are kept in steps of their grid, all layers with as many products in one matrix, so that a training step
of a network is few operations.

"toward-zero" is the paper's (arXiv:2301.13376, equations 17 to 23): a direction and a length, w = g * v / |v|_1, where
g = 2**min(t, log2(cap)) and cap is what the register leaves; integers are truncated, which cannot raise the norm. The
penalty on t beyond its cap is the paper's too. What truncation takes off every weight that is not zero, half a step on
the average, is room in the register that nobody uses: a channel whose 255 steps are shared by 100 weights loses 50.

"nearest" uses it. Magnitudes are lowered by the least amount after which their *nearest* integers fit, so what is
bounded is the norm of the integers themselves. Gradients pass rounding straight through; the least amount grows with
every weight that grows, and what they say about that is subtracted: the derivative of a projection onto an L1 ball. Its
first step is the post-training projection of `analysis.methods.a2q` exactly, so training starts where that ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from analysis.accumulators.registers import Register
from analysis.methods import Layer, _bound, a2q
from analysis.methods._bound import Rounding
from analysis.runner.statistics import as_weight

#: One learning rate moves integers by steps, logarithms by so many octaves and biases by so much.
OCTAVES = 0.05
BIAS = 0.05
#: Halvings of the search for the least amount while training; exported weights get the full search.
HALVINGS = 12


class Rows(nn.Module):
    """Rows of weights with K products each, of all layers that have K. Parameters are scaled to share a learning rate.

    v : (rows, K) latent weights in steps, for "toward-zero" directions; d : (rows, 1) log2 of steps;
    t : (rows, tiles) log2 of lengths in steps; bias : (rows,); inputs, codes : ends of activations' and weights' codes
    """

    def __init__(
        self,
        v: Tensor,
        steps: Tensor,
        bias: Tensor,
        register: Register,
        rounding: Rounding,
        inputs: tuple[int, int],
        codes: tuple[int, int],
    ) -> None:
        super().__init__()
        self.register, self.rounding, self.inputs, self.codes = register, rounding, inputs, codes
        self.tile = register.tile or v.shape[1]
        self.v = nn.Parameter(v.clone())
        self.d = nn.Parameter(steps.log2() / OCTAVES)
        self.bias = nn.Parameter(bias / BIAS)
        if rounding == "toward-zero":
            self.t = nn.Parameter(self._tiles(v).abs().sum(-1).clamp(min=1e-12).log2() / OCTAVES)

    def _tiles(self, matrix: Tensor) -> Tensor:
        """(rows, tiles, products of a tile), filled up with zeros."""
        short = -matrix.shape[1] % self.tile
        return nn.functional.pad(matrix, (0, short)).reshape(len(matrix), -1, self.tile)

    @property
    def cap(self) -> float:
        """The longest a tile may be, in steps."""
        return float(((1 << (self.register.bits - 1)) - 1) // max(self.inputs[1], -self.inputs[0]))

    def excess(self) -> Tensor:
        """Octaves of lengths beyond their cap, which the paper's penalty is on; 0 where nothing has a length."""
        if self.rounding == "nearest":
            return self.d.new_zeros(())
        return (OCTAVES * self.t - math.log2(self.cap)).clamp(min=0).sum()

    def integers(self, halvings: int | None = HALVINGS) -> Tensor:
        """(rows, K) integers that fit, with the gradient that training uses. halvings=None: the full search."""
        if self.rounding == "nearest":
            return self._nearest(halvings)
        tiles = self._tiles(self.v)
        length = torch.exp2(torch.clamp(OCTAVES * self.t, max=math.log2(self.cap)))[..., None]
        steps = (length * tiles / tiles.abs().sum(-1, keepdim=True).clamp(min=1e-12)).flatten(1)[:, : self.v.shape[1]]
        return steps + (steps.trunc().clamp(*self.codes) - steps).detach()

    def _nearest(self, halvings: int | None) -> Tensor:
        low, high = self.inputs
        with torch.no_grad():
            latent = (self.v.double() if halvings is None else self.v).clamp(*self.codes)
            found = _bound.fitted_nearest(latent, low, high, self.register, halvings or _bound.HALVINGS).to(
                self.v.dtype
            )
            active = self._tiles(found != 0)
            lowered = self._tiles(found != latent.round()).any(-1, keepdim=True)
        tiles = self._tiles(self.v)
        threshold = (tiles.abs() * active).sum(-1, keepdim=True) / active.sum(-1, keepdim=True).clamp(min=1)
        soft = torch.where(active & lowered, tiles - tiles.sign() * threshold, tiles).flatten(1)[:, : self.v.shape[1]]
        return soft + (found - soft).detach()

    def steps(self) -> Tensor:
        """(rows, 1)"""
        return torch.exp2(OCTAVES * self.d)


class Constrained(nn.Module):
    """A Linear or Conv2d in training: integers times integers, each on its grid, then steps and a bias.

    weight, scale, bias : of this call, set by `Network.settle`; e : log2 of the input's step
    """

    def __init__(self, layer: Layer, input_step: Tensor) -> None:
        super().__init__()
        self.source: Any = layer.module
        self.shape = tuple(layer.module.get_parameter("weight").shape)
        self.codes = a2q.input_ends(layer)
        self.e = nn.Parameter(input_step.log2() / OCTAVES)
        self.now: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for inputs on their grid. Raises ValueError before the first `Network.settle`."""
        if self.now is None:
            raise ValueError("weights have not been settled")
        weight, scale, bias = self.now
        step = torch.exp2(OCTAVES * self.e)
        near = (x / step).clamp(*self.codes)
        codes = near + (near.round() - near).detach()
        if len(self.shape) == 2:
            return nn.functional.linear(codes, weight) * (step * scale) + bias
        one = self.source
        made = nn.functional.conv2d(codes, weight, None, one.stride, one.padding, one.dilation, one.groups)
        return made * (step * scale)[:, None, None] + bias[:, None, None]


class Network(nn.Module):
    """The constrained layers of a denoiser and the rows they share, by number of products."""

    def __init__(self, layers: Mapping[str, Constrained], rows: Mapping[int, Rows], paths: Mapping[int, list[str]]):
        super().__init__()
        self.layers = dict(layers)  # not registered: their only parameters are `inputs`
        self.inputs = nn.ParameterList([layer.e for layer in layers.values()])
        self.shared = nn.ModuleList(rows.values())
        self.groups = [(one, list(paths[k])) for k, one in rows.items()]

    def settle(self) -> Tensor:
        """Give every layer its weights of this moment; the sum of excesses, per layer."""
        excess = []
        for one, paths in self.groups:
            whole, scale, at = one.integers(), one.steps()[:, 0], 0
            bias = BIAS * one.bias
            for path in paths:
                layer = self.layers[path]
                stop = at + layer.shape[0]
                layer.now = as_weight(whole[at:stop], layer.shape), scale[at:stop], bias[at:stop]
                at = stop
            excess.append(one.excess())
        return torch.stack(excess).sum() / len(self.layers)

    def export(self) -> dict[str, Tensor]:
        """Per layer: codes (int8, in the weight's shape), step per channel, step of the input, bias."""
        made = {}
        with torch.no_grad():
            for one, paths in self.groups:
                whole, steps, at = one.integers(None).round(), one.steps(), 0
                for path in paths:
                    layer = self.layers[path]
                    out, stop = layer.shape[0], at + layer.shape[0]
                    made[f"{path}/codes"] = as_weight(whole[at:stop], layer.shape).to(torch.int8)
                    made[f"{path}/step"] = steps[at:stop].reshape(out, *(1,) * (len(layer.shape) - 1))
                    made[f"{path}/input"] = torch.exp2(OCTAVES * layer.e)
                    made[f"{path}/bias"] = BIAS * one.bias[at:stop]
                    at = stop
        return {name: value.contiguous().cpu() for name, value in made.items()}
