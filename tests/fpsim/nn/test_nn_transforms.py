import pytest
import torch

from fpsim.nn import QuantizedConv2d, QuantizedLinear, Quantizer
from fpsim.nn.transforms import Chain, Hadamard, Smooth, hadamard, largest_block

F32 = Quantizer(format="f32")


def outliers(channels: int) -> torch.Tensor:
    factor = torch.ones(channels)
    factor[3] = 30.0
    return factor


def maps(channels: int, axis: int) -> list[torch.nn.Module]:
    smooth, rotate = Smooth(outliers(channels).sqrt(), axis), Hadamard(channels, 8, axis)
    return [smooth, rotate, Chain(smooth, rotate)]


@pytest.mark.parametrize("index", range(3))
def test_in_full_precision_a_transform_changes_nothing(index: int) -> None:
    torch.manual_seed(0)
    source, x = torch.nn.Linear(24, 10), torch.randn(2, 5, 24) * outliers(24)
    chosen = maps(24, -1)[index]
    layer = QuantizedLinear.from_float(
        source, weight=F32, values=chosen.weight(source.weight.detach()), transform=chosen
    )
    # 24 products and up to 2 x 8 more in the rotations, 2^-24 each relative to values of at most 100.
    assert torch.allclose(layer(x), source(x), atol=50 * 2.0**-24 * 200)
    conv, image = torch.nn.Conv2d(24, 10, 3, padding=1), torch.randn(2, 24, 6, 5) * outliers(24)[:, None, None]
    chosen = maps(24, 1)[index]
    made = QuantizedConv2d.from_float(conv, weight=F32, values=chosen.weight(conv.weight.detach()), transform=chosen)
    assert torch.allclose(made(image), conv(image), atol=250 * 2.0**-24 * 200)


@pytest.mark.parametrize("index", range(3))
def test_with_an_outlier_channel_a_transform_pays_on_a_coarse_grid(index: int) -> None:
    torch.manual_seed(0)
    source, x = torch.nn.Linear(24, 10), torch.randn(50, 24) * outliers(24)
    options = {
        "weight": Quantizer(format="int8", granularity="channel"),
        "activation": Quantizer(format="int4", granularity="token", range="dynamic"),
    }
    plain = QuantizedLinear.from_float(source, **options)
    chosen = maps(24, -1)[index]
    better = QuantizedLinear.from_float(
        source, **options, values=chosen.weight(source.weight.detach()), transform=chosen
    )
    error = [(layer(x) - source(x)).square().mean() for layer in (plain, better)]
    assert error[1] < 0.8 * error[0]


def test_hadamard_matrices() -> None:
    for size in (1, 2, 8, 64):
        h = hadamard(size)
        assert torch.equal(h @ h.T, size * torch.eye(size))
        assert h.abs().eq(1).all()
    rotation = Hadamard(64, 64, -1).rotation
    assert torch.equal(rotation @ rotation.T, torch.eye(64))  # entries +-1/8: every product and sum is exact
    spike = torch.zeros(1, 64)
    spike[0, 5] = 8.0
    assert torch.equal(Hadamard(64, 64, -1)(spike).abs(), torch.ones(1, 64))


def test_blocks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="power of two that divides the 24 channels"):
        Hadamard(24, 16, -1)
    with pytest.raises(ValueError, match="power of two"):
        Hadamard(24, 6, -1)
    assert [largest_block(n, 64) for n in (3, 24, 112, 256)] == [1, 8, 16, 64]


def test_a_side_branch_is_added() -> None:
    source = torch.nn.Linear(6, 4)
    branch = torch.nn.Linear(6, 4, bias=False)
    layer = QuantizedLinear.from_float(source, weight=F32, branch=branch)
    x = torch.randn(3, 6)
    # Sums of 6 products and a bias, below 4 in magnitude, in either order: 8 roundings of 2^-24 * 4 = 1.9e-6 at most.
    assert torch.allclose(layer(x), source(x) + branch(x), rtol=0, atol=8 * 2.0**-24 * 4)
