"""A layer whose input is two tensors joined along the channels, each half in low precision by itself.

In a U-Net the upward path joins hidden states with a skip connection, and the two can differ in range by orders of
magnitude: with one scale the smaller one is lost. W [h; s] = W_h h + W_s s, so each half is a layer of its own, with
its own scales for activations and weights, and the two results are added (Q-Diffusion, Li et al., arXiv:2302.04304).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpsim.nn.layer import QuantizedLayer


class Concatenated(nn.Module):
    """The sum of quantized layers over consecutive runs of input channels.

    parts : quantized layers of the same kind; the bias belongs to the last one
    """

    def __init__(self, parts: Sequence[QuantizedLayer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    @property
    def halves(self) -> list[QuantizedLayer]:
        """The parts, typed."""
        return [part for part in self.parts if isinstance(part, QuantizedLayer)]

    @property
    def weight(self) -> Tensor:
        """float32 values of the whole weight."""
        return torch.cat([part.weight for part in self.halves], 1)

    def forward(self, x: Tensor) -> Tensor:
        halves = self.halves
        pieces = x.split([part.shape[1] for part in halves], halves[0].CHANNEL_AXIS)
        total = halves[0](pieces[0].contiguous())
        for part, piece in zip(halves[1:], pieces[1:], strict=True):
            total = total + part(piece.contiguous())
        return total

    def recipe(self) -> dict[str, Any]:
        """What is needed to build an equal one around blank parts."""
        return {"parts": [{"channels": part.shape[1], **part.recipe()} for part in self.halves]}


def sliced(source: Any, start: int, stop: int) -> Any:
    """`source` (Linear or Conv2d of one group) on its input channels `start` to `stop`; its weight is a view.

    The part that ends with the last channel has the bias. Raises ValueError for a grouped convolution.
    """
    if getattr(source, "groups", 1) != 1:
        raise ValueError(f"a convolution of {source.groups} groups cannot be cut along its input channels")
    bias = source.bias is not None and stop == source.weight.shape[1]
    with torch.device("meta"):
        if isinstance(source, nn.Linear):
            made: Any = nn.Linear(stop - start, source.out_features, bias=bias)
        else:
            made = nn.Conv2d(
                stop - start,
                source.out_channels,
                source.kernel_size,
                source.stride,
                source.padding,
                source.dilation,
                bias=bias,
                padding_mode=source.padding_mode,
            )
    made.weight = nn.Parameter(source.weight.detach()[:, start:stop], requires_grad=False)
    if bias:
        made.bias = source.bias
    return made
