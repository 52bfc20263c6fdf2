"""Losses per layer: those of the layer's own product, the output unchanged."""

import numpy as np
import pytest
import torch

import fpsim
from fpsim.nn import QuantizedConv2d, QuantizedLinear, Quantizer, counted

WEIGHT = Quantizer(format="e4m3", granularity="channel", range="static")
ACTIVATION = Quantizer(format="e4m3", granularity="tensor", range="dynamic")
SPEC = fpsim.engine("hopper/wgmma", "e4m3")
OPTIONS = {"weight": WEIGHT, "activation": ACTIVATION}


def model(spec: fpsim.MatmulSpec | None = SPEC) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        QuantizedConv2d.from_float(torch.nn.Conv2d(3, 4, 3, padding=1), spec=spec, **OPTIONS),
        torch.nn.Flatten(),
        QuantizedLinear.from_float(torch.nn.Linear(4 * 25, 7), spec=spec, **OPTIONS),
    )


def test_losses_are_those_of_each_layers_product() -> None:
    made, x = model(), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        plain = made(x)
        with counted(made) as found:
            assert torch.equal(made(x), plain)
            once = dict(found)
            made(x)
        made(x)  # nobody counts any more
        codes, _, _ = made[2].encode_input(made[1](made[0](x)))
    wanted = fpsim.counts.matmul(codes.numpy(), np.ascontiguousarray(made[2].weight_codes.numpy().T), SPEC).totals
    assert once["2"] == wanted
    assert wanted.truncated > 0
    assert list(found) == ["0", "2"]
    assert (found["0"].outputs, found["0"].products) == (2 * 2 * 25 * 4, 2 * 2 * 25 * 4 * 27)
    assert found["2"] == wanted + wanted


def test_a_model_without_engines_has_nothing_to_count() -> None:
    with pytest.raises(ValueError, match="no layer of the model runs on an engine"), counted(model(None)):
        pass
