"""A fake-quantized denoiser with static ranges takes at most 1.5 times the CPU time of full precision."""

import statistics
import time
from typing import Any

import pytest
import torch

from analysis.models import embedded
from analysis.runner import calibrate, quantize
from analysis.runner.load import denoiser_name
from analysis.runner.sample import call
from analysis.scenes import held_out

LIMIT, ROUNDS = 1.5, 9


def seconds(run: Any) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes-sd", "shapes-dit"])
@pytest.mark.parametrize("scheme", ["fp8-w8a8", "int8-w8a8", "int8-w8a8+asymmetric", "fp4-w4a4+asymmetric"])
def test_static_ranges_cost_less_than_half_of_full_precision(name: str, scheme: str) -> None:
    pipe = embedded.load(name)
    part = denoiser_name(pipe)
    full = getattr(pipe, part)
    given: list[Any] = []
    handle = full.register_forward_pre_hook(lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
    call(pipe, held_out(4).captions(), list(range(4)), 1, 3.0, output="latent")
    handle.remove()
    fake = getattr(quantize(pipe, scheme, calibration=calibrate(pipe, held_out(2).captions(), steps=2)), part)
    args, kwargs = given[0]
    ratios = []
    with torch.no_grad():
        for model in (full, fake):  # compile and warm up
            model(*args, **kwargs)
        for _ in range(ROUNDS):
            before = seconds(lambda: full(*args, **kwargs))
            ratios.append(seconds(lambda: fake(*args, **kwargs)) / before)
    assert statistics.median(ratios) < LIMIT
