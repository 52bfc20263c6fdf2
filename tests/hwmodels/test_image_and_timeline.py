"""Images from passes, and timelines that add up."""

import itertools
import json
from functools import partial

import pytest

from hwmodels import Elementwise, Gemm, Workload
from hwmodels import estimate as any_estimate
from hwmodels.image import image_cost
from hwmodels.timeline import to_chrome_trace

estimate = partial(any_estimate, model="auto")
STEP = Workload(
    name="step",
    ops=(
        Gemm(path="down.0.q", m=4096, n=1024, k=1024),
        Gemm(path="down.0.k", m=4096, n=1024, k=1024),
        Elementwise(path="down.1.act", elements=4096 * 1024),
        Gemm(path="up.0.q", m=4096, n=1024, k=1024, count=2),
    ),
    parameters=3 * 1024 * 1024,
    live_elements=10**7,
)
DECODE = Workload(name="decode", ops=(Gemm(path="out", m=65536, n=256, k=256),), parameters=65536, live_elements=10**8)
TEXT = Workload(name="text", ops=(Gemm(path="t", m=77, n=4096, k=4096),), parameters=10**9)


def test_a_request_is_text_then_steps_then_decode():
    step, decode, text = (estimate(work, "bf16", "h200-sxm") for work in (STEP, DECODE, TEXT))
    cost = image_cost(step, steps=20, batch=2, decoder=decode, text=text)
    assert cost.seconds == pytest.approx(text.time_s + 20 * step.time_s + decode.time_s)
    assert cost.images_per_second == pytest.approx(2 / cost.seconds)
    assert cost.memory == pytest.approx(2 * (3 * 1024**2 + 65536 + 10**9) + 2 * 10**8)
    assert cost.offloaded == pytest.approx(2e9)  # the text encoder alone
    assert cost.fits
    assert cost.fits_offloaded


def test_requests_are_checked():
    step = estimate(STEP, "bf16", "h200-sxm")
    with pytest.raises(ValueError, match="steps=0"):
        image_cost(step, steps=0)
    with pytest.raises(ValueError, match="different devices: h200-sxm, l40s"):
        image_cost(step, steps=1, decoder=estimate(DECODE, "bf16", "l40s"))


def test_a_timeline_covers_the_estimate_without_gaps():
    result = estimate(STEP, "fp8", "h200-sxm")
    trace = json.loads(to_chrome_trace(result))["traceEvents"]
    kernels = [e for e in trace if e["ph"] == "X" and e["tid"] == 2]
    layers = [e for e in trace if e["ph"] == "X" and e["tid"] == 1]
    assert len(kernels) == len(result.breakdown.program)
    for track in (kernels, layers):
        assert sum(e["dur"] for e in track) == pytest.approx(result.time_s * 1e6)
        for before, after in itertools.pairwise(track):
            assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    assert [e["name"] for e in layers] == ["down.0", "down.1", "up.0"]
    assert kernels[1]["args"]["precision"].startswith("e4m3")
