"""Outlier variants: the same function, with a few channels of its activations 8 to 32 times larger.

Large pretrained diffusion models have activation channels that dwarf the rest; the small ones embedded here do not, and
formats, smoothing and rotation would have nothing to prove themselves on. So we make the outliers: wherever one module
scales channels freely and the next reads them linearly, channel j of the first is multiplied by 2^k and column j of the
second divided by it. Every factor is a power of two, so every product of the two stays the same float and full
precision returns the very same bits; only whoever rounds in between sees a difference.

Pairs used, in a U-Net: GroupNorm -> proj_in; LayerNorm -> to_q, to_k, to_v and the feed-forward; to_v -> to_out; the
value half of GEGLU -> ff.net.2. In PixArt: adaLN (the norm's affine weights together with both shift terms, which all
blocks share through `adaln_single`) -> to_q, to_k, to_v and the feed-forward; to_v -> to_out; caption projection ->
cross-attention to_k and to_v. Convolutions behind SiLU have no exact pair and keep their tame inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS = 2
EXPONENTS = (3, 4, 5)


def add_outliers(denoiser: nn.Module, seed: int = 0) -> None:
    """Rescale the denoiser's own weights in place (the caller has just loaded them).

    Raises ValueError for a denoiser that holds no rescalable pair.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = 0
    for module in denoiser.modules():
        part: Any = module
        kind = type(module).__name__
        if kind == "Transformer2DModel":
            pairs += _scale(generator, [part.norm], [part.proj_in])
        elif kind == "BasicTransformerBlock" and part.norm_type == "layer_norm":
            pairs += _layer_norm_block(generator, part)
        elif kind == "PixArtTransformer2DModel":
            pairs += _pixart(generator, part)
    if not pairs:
        raise ValueError(f"{type(denoiser).__name__} has no pair of modules between which channels can be rescaled")


def _layer_norm_block(generator: torch.Generator, block: Any) -> int:
    _scale(generator, [block.norm1], [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v])
    _scale(generator, [block.norm2], [block.attn2.to_q])
    _scale(generator, [block.norm3], [block.ff.net[0].proj])
    for attention in (block.attn1, block.attn2):
        _scale(generator, [attention.to_v], [attention.to_out[0]])
    # GEGLU is value * gelu(gate); the value half comes first in the projection's rows.
    return _scale(generator, [block.ff.net[0].proj], [block.ff.net[2]])


def _pixart(generator: torch.Generator, model: Any) -> int:
    blocks = list(model.transformer_blocks)
    width = blocks[0].norm1.normalized_shape[0]
    # Rows of the six modulation vectors: shift, scale, gate of attention, then of the feed-forward.
    for norm, shift in (("norm1", 0), ("norm2", 3)):
        channels, factors = _draw(generator, width)
        readers: list[nn.Module] = []
        for block in blocks:
            attention = [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v]
            readers += attention if norm == "norm1" else [block.ff.net[0].proj]
            _multiply_rows(getattr(block, norm), channels, factors)
            block.scale_shift_table.data[shift, channels] *= factors
        _multiply_rows(model.adaln_single.linear, channels + shift * width, factors)
        _divide_columns(readers, channels, factors)
    for block in blocks:
        for attention in (block.attn1, block.attn2):
            _scale(generator, [attention.to_v], [attention.to_out[0]])
    readers = [layer for block in blocks for layer in (block.attn2.to_k, block.attn2.to_v)]
    return _scale(generator, [model.caption_projection.linear_2], readers)


def _scale(generator: torch.Generator, writers: Iterable[nn.Module], readers: list[nn.Module]) -> int:
    channels, factors = _draw(generator, int(_weight(readers[0]).shape[1]))
    for writer in writers:
        _multiply_rows(writer, channels, factors)
    _divide_columns(readers, channels, factors)
    return 1


def _draw(generator: torch.Generator, width: int) -> tuple[Tensor, Tensor]:
    channels = torch.randperm(width, generator=generator)[:CHANNELS]
    picks = torch.randint(len(EXPONENTS), (CHANNELS,), generator=generator)
    return channels, torch.exp2(torch.tensor(EXPONENTS)[picks].float())


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise ValueError(f"{type(module).__name__} has no weight; outliers need affine norms and linear layers")
    return weight.data


def _multiply_rows(module: nn.Module, channels: Tensor, factors: Tensor) -> None:
    weight = _weight(module)
    weight[channels] *= factors.view(-1, *[1] * (weight.ndim - 1))
    if isinstance(module.bias, Tensor):
        module.bias.data[channels] *= factors


def _divide_columns(modules: list[nn.Module], channels: Tensor, factors: Tensor) -> None:
    for module in modules:
        weight = _weight(module)
        weight[:, channels] /= factors.view(1, -1, *[1] * (weight.ndim - 2))
