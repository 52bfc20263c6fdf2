"""A minimal FP8 Linear: E4M3 weights and activations, per-tensor scales, `torch._scaled_mm` with fast accumulation.

static   the activation's scale is a constant: one cast kernel, one product
dynamic  the largest magnitude is found first: one reduction, one cast, one product

The casts are one Triton kernel each; under `torch.compile` they are plain torch operations that the compiler fuses with
what produced the activation.  The scales make no accuracy claim: with random weights there is nothing to calibrate.
"""

from __future__ import annotations

import torch
from torch import nn

LARGEST = 448.0
FORMATS = ("fp8", "fp8-dynamic")


def plain_cast(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """E4M3 of x / scale, saturated, in torch operations."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def plain_amax(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of x, in one reduction."""
    return torch.linalg.vector_norm(x, ord=float("inf"))


def _kernels_apply(x: torch.Tensor) -> bool:
    return x.is_cuda and not torch.compiler.is_compiling()


def quantize_static(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """E4M3 codes of a contiguous x over a given scale."""
    if _kernels_apply(x):
        from analysis.measure import _triton

        return _triton.cast(x, scale)
    return plain_cast(x, scale)


def quantize_dynamic(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(E4M3 codes, scale) of a contiguous x."""
    amax = plain_amax(x)
    if _kernels_apply(x):
        from analysis.measure import _triton

        return _triton.cast_amax(x, amax)
    scale = amax.float().clamp(min=1e-12) / LARGEST
    return plain_cast(x, scale), scale


class Fp8Linear(nn.Module):
    """Stands in for a Linear whose features are multiples of 16; bfloat16 result (plus bias), in x's type."""

    weight: torch.Tensor
    weight_scale: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, dynamic: bool) -> None:
        super().__init__()
        self.dynamic = dynamic
        weight = linear.weight.detach()
        scale = weight.abs().amax().float().clamp(min=1e-12) / LARGEST
        self.register_buffer("weight", plain_cast(weight, scale))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("scale", torch.full((), 1 / 16, device=weight.device))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        if self.dynamic:
            codes, scale = quantize_dynamic(rows)
        else:
            codes, scale = quantize_static(rows, self.scale), self.scale
        out = torch._scaled_mm(
            codes,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return out.view(*x.shape[:-1], out.shape[-1]).to(x.dtype)


def eligible(layer: nn.Module) -> bool:
    """The rule of the `fp8` shorthand: in and out features divisible by 16, at least 256 inputs."""
    if type(layer).__name__ not in ("Linear", "LoRACompatibleLinear") or not isinstance(layer, nn.Linear):
        return False
    return layer.in_features % 16 == 0 and layer.out_features % 16 == 0 and layer.in_features >= 256


def convert(module: nn.Module, dynamic: bool = False) -> int:
    """Replace every eligible Linear of `module`, in place; how many were replaced.

    Raises ValueError if there is none.
    """
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if eligible(child)
    ]
    for parent, name, child in found:
        if isinstance(child, nn.Linear):
            setattr(parent, name, Fp8Linear(child, dynamic))
    if not found:
        raise ValueError(f"{type(module).__name__} has no Linear that the fp8 rule takes")
    return len(found)
