"""Layers of half-precision models: rounding in float32, products in the model's own dtype, scales as they were."""

import copy
import pickle

import pytest
import torch

import fpsim
from fpsim.nn import QuantizedConv2d, QuantizedLinear, Quantizer, fused, scaling

HALVES = [torch.float16, torch.bfloat16]
FP8, CHANNEL = Quantizer(format="e4m3"), Quantizer(format="e4m3", granularity="channel")


def linear(dtype: torch.dtype) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(32, 8).to(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("activation", [FP8, Quantizer(format="nvfp4", granularity="block", range="dynamic"), None])
def test_values_are_rounded_in_float32_and_multiplied_in_half(dtype: torch.dtype, activation: Quantizer | None) -> None:
    source, x = linear(dtype), torch.randn(5, 32).to(dtype)
    layer = QuantizedLinear.from_float(source, weight=CHANNEL, activation=activation, input_range=4.0)
    whole = QuantizedLinear.from_float(linear(dtype).float(), weight=CHANNEL, activation=activation, input_range=4.0)
    assert layer.weight.dtype == dtype
    assert torch.equal(layer.weight_codes, whole.weight_codes)
    rounded = x if activation is None else whole.rounded_input(x.float()).to(dtype)
    assert torch.equal(layer.rounded_input(x), rounded)
    assert torch.equal(layer(x), torch.nn.functional.linear(rounded, whole.weight.to(dtype), source.bias))


def test_a_convolution_too() -> None:
    torch.manual_seed(0)
    source, x = torch.nn.Conv2d(16, 4, 3, padding=1).bfloat16(), torch.randn(2, 16, 5, 5).bfloat16()
    layer = QuantizedConv2d.from_float(source, weight=CHANNEL, activation=FP8, input_range=4.0)
    rounded = layer.rounded_input(x)
    assert torch.equal(rounded.float(), scaling.rounded(x, layer.input_scales(x), FP8.row).bfloat16().float())
    assert torch.equal(layer(x), torch.nn.functional.conv2d(rounded, layer.weight, source.bias, padding=1))


@pytest.mark.parametrize("name", ["e4m3", "nvfp4", "uint8"])
def test_moving_to_half_leaves_codes_and_scales(name: str) -> None:
    block = isinstance(fpsim.format(name), fpsim.BlockFormat)
    quantizer = Quantizer(format=name, granularity="block" if block else "channel")
    layer = QuantizedLinear.from_float(linear(torch.float32), weight=quantizer, activation=FP8, input_range=4.0)
    before = {key: value.clone() for key, value in layer.state_dict().items() if key != "bias"}
    weight, x = layer.weight, torch.randn(3, 32)
    layer(x)
    layer.to(torch.bfloat16)
    after = layer.state_dict()
    assert all(after[key].dtype == value.dtype and torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(layer.weight, weight.bfloat16())
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_exact_layers_compute_in_float32_whatever_they_are_moved_to() -> None:
    spec = fpsim.engine("hopper/wgmma", a="e4m3")
    options = {"weight": CHANNEL, "activation": FP8, "input_range": 4.0, "spec": spec}
    source = torch.nn.Linear(32, 8, bias=False)
    layer = QuantizedLinear.from_float(source, **options)
    x = torch.randn(3, 32).bfloat16()
    wanted = layer(x)
    assert torch.equal(layer.to(torch.bfloat16)(x), wanted)
    assert layer.weight.dtype == torch.float32


def test_copies_and_pickles_of_a_layer_work_like_it() -> None:
    layer = QuantizedLinear.from_float(linear(torch.float32), weight=CHANNEL, activation=FP8, input_range=4.0)
    x = torch.randn(3, 32)
    wanted = layer(x)
    assert isinstance(layer._prepared, fused.Prepared)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._prepared is None
        assert torch.equal(other(x), wanted)


def test_a_changed_input_scale_is_seen() -> None:
    layer = QuantizedLinear.from_float(linear(torch.float32), weight=CHANNEL, activation=FP8, input_range=4.0)
    other = QuantizedLinear.from_float(linear(torch.float32), weight=CHANNEL, activation=FP8, input_range=0.5)
    x = torch.randn(3, 32)
    layer(x)
    layer.load("input_step", other.input_step)
    assert torch.equal(layer(x), other(x))
