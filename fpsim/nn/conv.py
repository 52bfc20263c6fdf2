"""A two-dimensional convolution in low precision.

Scales per block run along the input channels, at each position of the kernel. Scales per "token" belong to one input
pixel; a window sees several, so in exact arithmetic each kernel position is a product of its own (see `exact.py`).
"""

import torch
from torch import Tensor

from fpsim.nn import exact
from fpsim.nn.layer import QuantizedLayer
from fpsim.spec import MatmulSpec


class QuantizedConv2d(QuantizedLayer):
    """A Conv2d with x (N, C, H, W), W (out, C / groups, kernel height, kernel width); see `QuantizedLayer`.

    Raises ValueError for padding other than zeros and, in exact arithmetic, for more than one group.
    """

    CHANNEL_AXIS = 1

    def geometry(self, source: torch.nn.Conv2d) -> None:
        if source.padding_mode != "zeros":
            raise ValueError(f"padding mode {source.padding_mode!r} is not supported; only 'zeros' is")
        if isinstance(source.padding, str):
            raise ValueError(f"padding {source.padding!r} is not supported; give it in pixels")
        if self.spec is not None and source.groups != 1:
            raise ValueError(f"exact arithmetic takes convolutions of one group, this one has {source.groups}")
        self.in_channels = source.in_channels
        self.out_channels = source.out_channels
        self.kernel_size = (source.kernel_size[0], source.kernel_size[1])
        self.stride = (source.stride[0], source.stride[1])
        self.padding = (source.padding[0], source.padding[1])
        self.dilation = (source.dilation[0], source.dilation[1])
        self.groups = source.groups

    @classmethod
    def blank_branch(cls, source: torch.nn.Conv2d, rank: int) -> torch.nn.Module:
        down = torch.nn.Conv2d(
            source.in_channels,
            rank,
            source.kernel_size,  # type: ignore[arg-type]
            source.stride,  # type: ignore[arg-type]
            source.padding,  # type: ignore[arg-type]
            source.dilation,  # type: ignore[arg-type]
            bias=False,
        )
        return torch.nn.Sequential(down, torch.nn.Conv2d(rank, source.out_channels, 1, bias=False))

    def multiply(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.conv2d(values, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def exact(self, values: Tensor, spec: MatmulSpec) -> Tensor:
        codes, quantizer, scales = self.encode_input(values)
        pixels = exact.operand(codes, quantizer, scales, 1, self.windows)
        kernels = exact.operand(
            self.exact_weight(), self.weight_quantizer, self.weight_scales, 1, lambda w: w.flatten(2).transpose(1, 2)
        )
        y = self.plus_bias(exact.product(pixels, kernels, spec))
        height, width = self.output_size(values.shape[2], values.shape[3])
        return y.reshape(values.shape[0], height, width, self.out_channels).permute(0, 3, 1, 2).contiguous()

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of `height` x `width`."""
        sizes = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                (height, width), self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        return next(sizes), next(sizes)

    def windows(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N * output pixels, taps, C): what each output pixel sees, zeros outside the image."""
        height, width = self.output_size(x.shape[2], x.shape[3])
        padded = torch.nn.functional.pad(x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]))
        taps = []
        for row in range(self.kernel_size[0]):
            for column in range(self.kernel_size[1]):
                top, left = row * self.dilation[0], column * self.dilation[1]
                down, right = top + (height - 1) * self.stride[0] + 1, left + (width - 1) * self.stride[1] + 1
                taps.append(padded[:, :, top : down : self.stride[0], left : right : self.stride[1]])
        return torch.stack(taps, 1).permute(0, 3, 4, 1, 2).reshape(-1, len(taps), x.shape[1])
