"""Layers behind a concatenation: two layers that add up, each half with scales of its own."""

import pytest
import torch

from fpsim.nn import Concatenated, QuantizedConv2d, QuantizedLinear, Quantizer
from fpsim.nn.concat import sliced


def halves(source: torch.nn.Module, cut: int, **options: object) -> Concatenated:
    kind = QuantizedLinear if isinstance(source, torch.nn.Linear) else QuantizedConv2d
    whole = source.weight.shape[1]
    return Concatenated([kind.from_float(sliced(source, *ends), **options) for ends in ((0, cut), (cut, whole))])


@pytest.mark.parametrize("source", [torch.nn.Linear(20, 6), torch.nn.Conv2d(20, 6, 3, padding=1, stride=2)])
def test_in_full_precision_the_halves_add_up_to_the_layer(source: torch.nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 20, 8, 8) if isinstance(source, torch.nn.Conv2d) else torch.randn(2, 5, 20)
    made = halves(source, 13, weight=Quantizer(format="f32"))
    assert torch.equal(made.weight, source.weight)
    # 180 products, added as two sums: 182 * 2^-24 of the sum of magnitudes, which 40 bounds here.
    assert torch.allclose(made(x), source(x), rtol=0, atol=182 * 2.0**-24 * 40)
    assert source.bias is made.halves[1].bias
    assert made.halves[0].bias is None


def test_a_small_half_survives_beside_a_large_one() -> None:
    torch.manual_seed(0)
    source = torch.nn.Conv2d(16, 8, 1)
    x = torch.cat([300 * torch.randn(1, 8, 6, 6), torch.randn(1, 8, 6, 6)], 1)
    with torch.no_grad():
        source.weight[:, :8] /= 300  # both halves matter equally
    options = {
        "weight": Quantizer(format="int8", granularity="channel"),
        "activation": Quantizer(format="int8", range="dynamic"),
    }
    whole = QuantizedConv2d.from_float(source, **options)
    error = [float((layer(x) - source(x)).square().mean()) for layer in (halves(source, 8, **options), whole)]
    assert error[0] < 1e-3 * error[1]


def test_grouped_convolutions_are_not_cut() -> None:
    with pytest.raises(ValueError, match="2 groups cannot be cut"):
        sliced(torch.nn.Conv2d(8, 8, 3, groups=2), 0, 2)
