"""Attention with quantized products against numpy, step by step, and against torch where nothing is quantized."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

import fpsim
from fpsim.nn import Quantizer
from fpsim.nn.attention import Products, attention

WIDE = Quantizer(format="f32")


def operands(shape: tuple[int, ...] = (2, 3)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((10, 32), (7, 32), (7, 16))
    return [torch.randn(*shape, *size, generator=generator) * (1 + index) for index, size in enumerate(sizes)]


def test_with_wide_formats_it_is_torchs_attention() -> None:
    q, k, v = operands()
    mask = torch.rand(10, 7, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[:, 0] = True
    bias = torch.randn(2, 1, 10, 7)
    for options in ({}, {"mask": mask}, {"mask": bias}, {"scale": 0.3}):
        theirs = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=options.get("mask"), scale=options.get("scale")
        )
        # Sums of 32 and 7 products and an exponential, relative 2^-24 each, on values of order 10.
        assert torch.allclose(attention(q, k, v, WIDE, WIDE, **options), theirs, atol=1e-5)


@pytest.mark.parametrize(("name", "probability"), [("int8", "uint8"), ("e4m3", "ue4m4"), ("e2m1", "ue2m2")])
@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_each_operand_is_quantized_along_what_is_summed(name: str, probability: str, granularity: str) -> None:
    q, k, v = operands()
    made = attention(
        q, k, v, Quantizer(format=name, granularity=granularity, range="dynamic"), Quantizer(format=probability)
    )
    row, unsigned = fpsim.format(name), fpsim.format(probability)

    def fake(x: np.ndarray, axis: int) -> np.ndarray:
        axes = (axis,) if granularity == "token" else (-2, -1)
        step = np.abs(x).max(axes, keepdims=True) / np.float32(row.max)
        return fpsim.quantize(x / step, row) * step

    scores = torch.from_numpy(fake(q.numpy(), -1)) @ torch.from_numpy(fake(k.numpy(), -1)).mT * 32**-0.5
    p, step = scores.softmax(-1).numpy(), np.float32(1) / np.float32(unsigned.max)
    p = fpsim.quantize(p / step, unsigned) * step
    assert np.array_equal(made.numpy(), (torch.from_numpy(p) @ torch.from_numpy(fake(v.numpy(), -2))).numpy())


def test_block_formats_run_along_the_sums_too() -> None:
    q, k, v = operands()
    block = Quantizer(format="mxfp8", granularity="block", range="dynamic")
    made = attention(q, k, v, block, block)
    scores = (
        torch.from_numpy(fpsim.quantize(q.numpy(), "mxfp8")) @ torch.from_numpy(fpsim.quantize(k.numpy(), "mxfp8")).mT
    )
    p = fpsim.quantize((scores * 32**-0.5).softmax(-1).numpy(), "mxfp8")
    wanted = torch.from_numpy(p) @ torch.from_numpy(fpsim.quantize(v.numpy(), "mxfp8", axis=-2))
    assert torch.equal(made, wanted)


def test_a_processor_is_wrapped_whatever_it_does_around() -> None:
    torch.manual_seed(0)
    module = Attention(query_dim=16, heads=2, dim_head=8, processor=AttnProcessor2_0())
    x = torch.randn(2, 5, 16)
    plain = module(x)
    module.set_processor(Products(AttnProcessor2_0(), WIDE, WIDE))
    assert torch.allclose(module(x), plain, atol=1e-6)  # sums of at most 16 terms of order 1
    module.set_processor(
        Products(AttnProcessor2_0(), Quantizer(format="e2m1", range="dynamic"), Quantizer(format="ue2m2"))
    )
    assert not torch.allclose(module(x), plain, atol=1e-3)
    module.set_processor(Products(AttnProcessor(), WIDE, WIDE))
    with pytest.raises(ValueError, match="AttnProcessor does not compute attention through scaled_dot_product"):
        module(x)


def test_what_denoisers_do_not_use_is_refused() -> None:
    def causal(*_: object) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(*operands(), is_causal=True)

    with pytest.raises(ValueError, match="no causal mask"):
        Products(causal, WIDE, WIDE)()
    with pytest.raises(ValueError, match="takes its scales at run time"):
        attention(*operands(), WIDE, Quantizer(format="mxfp8", granularity="block"))
