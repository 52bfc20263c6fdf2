"""Unsigned formats with a zero point: what they are, what they gain, and the correction in exact arithmetic."""

import numpy as np
import pytest
import torch

import fpsim
from fpsim.nn import QuantizedConv2d, QuantizedLinear, Quantizer, scaling, search
from fpsim.nn.quantizer import resolve

FORMATS = ["uint4", "uint8", "ue2m2", "ue4m4", "ue3m1", "ue1m3-finite"]


def silu(deviation: float, count: int = 20_001) -> torch.Tensor:
    """SiLU of Gaussian quantiles."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.nn.functional.silu(deviation * torch.special.ndtri(quantiles)).float()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_values_are_those_of_the_numpy_codec_around_a_zero_point_of_the_format(name: str, granularity: str) -> None:
    quantizer = Quantizer(format=name, granularity=granularity, range="dynamic")
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 7)[:, None] + 0.5
    x[2], x[3], x[4] = x[2].abs(), -x[3].abs(), 0.0  # no negative values, no positive ones, none at all
    scales = scaling.find(x, quantizer, -1)
    made = scaling.fake_quantize(x, quantizer, scales, -1)
    values = x.numpy()
    axis = -1 if granularity == "token" else None
    low = np.minimum(values.min(axis, keepdims=True), np.float32(0))
    high = np.maximum(values.max(axis, keepdims=True), np.float32(0))
    step = np.maximum((high - low) / np.float32(quantizer.row.max), np.float32(2.0**-126))
    zero = fpsim.quantize(-low / step, quantizer.row)
    wanted = (fpsim.quantize(values / step + zero, quantizer.row) - zero) * step
    assert np.array_equal(made.numpy(), wanted)
    codes = scaling.encode(x, quantizer, scales, -1)
    assert torch.equal(scaling.decode(codes, quantizer, scales, -1), made)


@pytest.mark.parametrize("name", FORMATS)
def test_zero_stays_zero(name: str) -> None:
    ends = torch.linspace(0, 5, 101)
    scales = scaling.from_range(-ends, ends.flip(0) + 1e-3, resolve(name))
    assert torch.equal(scaling.rounded(torch.zeros(101), scales, resolve(name)), torch.zeros(101))


# Best signal-to-noise ratios in dB at 4 bits on SiLU of Gaussians of deviation 1 and 2, from an independent
# implementation with real-valued zero points (methods digest after arXiv:2408.06995 and arXiv:2505.21591); on the grid
# the zero point costs up to 0.1 dB there, and quantiles for random samples 0.15.
@pytest.mark.parametrize(("deviation", "signed", "integer", "unsigned"), [(1, 17.5, 20.0, 22.0), (2, 16.8, 20.1, 23.1)])
def test_one_sided_values_gain_what_others_found(
    deviation: float, signed: float, integer: float, unsigned: float
) -> None:
    x = silu(deviation)

    def best(*names: str) -> float:
        error = search.best_split(x[None], [resolve(name) for name in names]).error
        return float(10 * torch.log10(x.square().sum() / error))

    assert best("e1m2-finite", "e2m1", "e3m0-finite") == pytest.approx(signed, abs=0.3)
    assert best("uint4") == pytest.approx(integer, abs=0.3)
    assert best("ue2m2") == pytest.approx(unsigned, abs=0.3)
    chosen = search.best_split(x[None], [*search.splits(4), *search.splits(4, signed=False)])
    assert chosen.format.name == "ue2m2-finite"


def test_the_search_over_two_ends_beats_the_extremes_and_finds_what_a_full_grid_finds() -> None:
    x = torch.cat([silu(2), torch.tensor([40.0])])
    for name in ("uint4", "ue2m2"):
        row = resolve(name)
        low, high, error = search.best_range(x[None], row)
        scales = scaling.from_range(low, high, row)
        reached = (scaling.rounded(x, scales, row) - x).square().sum()
        assert float(reached) == pytest.approx(float(error), rel=1e-4)  # 20,000 terms in another order
        tried = [
            float((scaling.rounded(x, scaling.from_range(x.min() * a, x.max() * b, row), row) - x).square().sum())
            for a in torch.linspace(0, 1.25, 11)
            for b in 1.2 * 2.0 ** (-torch.arange(97) / 16)
        ]
        assert float(error) <= 1.12 * min(tried)  # one end at a time: within half a decibel of all pairs
        extremes = scaling.rounded(x, scaling.from_range(x.min(), x.max(), row), row)
        assert float(error) < 0.7 * float((extremes - x).square().sum())


CONVOLUTION = {"in_channels": 5, "out_channels": 6, "kernel_size": 3, "padding": 1, "stride": 2}


@pytest.mark.parametrize(("granularity", "range_"), [("tensor", "static"), ("tensor", "dynamic"), ("token", "dynamic")])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_exact_arithmetic_corrects_for_the_zero_point_up_to_the_border(
    granularity: str, range_: str, kind: str
) -> None:
    torch.manual_seed(0)
    spec = fpsim.engine("generic/int32", "uint8", "int8")
    activation = Quantizer(format="uint8", granularity=granularity, range=range_)
    x = torch.nn.functional.silu(3 * torch.randn(2, 5, 9, 7)) if kind == "conv" else silu(2, 120).view(2, 12, 5)
    options = {
        "weight": Quantizer(format="int8", granularity="channel"),
        "activation": activation,
        "input_range": (float(x.min()), float(x.max())),
    }
    source = torch.nn.Conv2d(**CONVOLUTION) if kind == "conv" else torch.nn.Linear(5, 6)
    layers = QuantizedConv2d if kind == "conv" else QuantizedLinear
    exact, fast = layers.from_float(source, spec=spec, **options), layers.from_float(source, **options)
    axis = 1 if kind == "conv" else -1
    values = scaling.fake_quantize(x, activation, exact.input_scales(x), axis).double()
    weight, bias = exact.weight.double(), source.bias.detach().double()
    if kind == "conv":
        wanted = torch.nn.functional.conv2d(values, weight, bias, 2, 1)
        size = torch.nn.functional.conv2d(values.abs() + 0.3, weight.abs(), bias.abs(), 2, 1)
    else:
        wanted, size = values @ weight.T + bias, (values.abs() + 0.3) @ weight.abs().T + bias.abs()
    # Products and sums of integers are exact; K <= 45 float32 terms in the zero term, K in the float sum of `fast`, and
    # 5 roundings of scales, bias and difference, relative to the sum of magnitudes with the shift (0.28 at most).
    for layer in (exact, fast):
        assert torch.all((layer(x) - wanted).abs() <= 52 * 2.0**-24 * size)


def test_what_exact_arithmetic_does_not_take_is_one_line() -> None:
    source, spec = torch.nn.Linear(8, 4), fpsim.engine("generic/int32", "uint8", "int8")
    with pytest.raises(ValueError, match="weights without a zero point, and 'uint4' has one"):
        QuantizedLinear.from_float(
            source,
            weight=Quantizer(format="uint4", granularity="channel"),
            activation=Quantizer(format="uint8", range="dynamic"),
            spec=spec,
        )
    with pytest.raises(ValueError, match="one zero point per tensor or token"):
        QuantizedLinear.from_float(
            source,
            weight=Quantizer(format="int8"),
            activation=Quantizer(format="uint8", granularity="block", group=4, range="dynamic"),
            spec=spec,
        )


def test_weights_may_have_a_zero_point_in_float_arithmetic() -> None:
    source = torch.nn.Linear(40, 3)
    with torch.no_grad():
        source.weight.abs_()  # one-sided: all sixteen levels serve
    error = {}
    for name in ("int4", "uint4"):
        layer = QuantizedLinear.from_float(source, weight=Quantizer(format=name, granularity="channel"))
        assert layer.weight_codes.dtype == (torch.uint8 if name == "uint4" else torch.int8)
        error[name] = float((layer.weight - source.weight.detach()).square().sum())
    assert error["uint4"] < 0.3 * error["int4"]


def test_which_of_two_formats_is_decided_by_what_calibration_saw() -> None:
    quantizer = Quantizer(format="e2m1", one_sided="ue2m2")
    assert quantizer.seen(-0.28, 3.0) == Quantizer(format="ue2m2")
    assert quantizer.seen(0.0, 1.0) == Quantizer(format="ue2m2")
    assert quantizer.seen(-1.0, 3.0) == Quantizer(format="e2m1")
    assert quantizer.needs_calibration
    assert str(quantizer) == "e2m1 per tensor, ue2m2 where one-sided"
    with pytest.raises(ValueError, match="calibration decides first"):
        QuantizedLinear.from_float(
            torch.nn.Linear(8, 4), weight=Quantizer(format="e2m1"), activation=quantizer, input_range=1.0
        )
    with pytest.raises(ValueError, match="one_sided is for activations"):
        quantizer.check_weight()
