"""Estimates: the corners of the roofline in closed form, and what a scheme adds on a model."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

import hwmodels
from hwmodels import (
    DEVICES,
    SHORTHANDS,
    Attention,
    Elementwise,
    Gemm,
    Norm,
    Precision,
    UnsupportedFormat,
    Workload,
)
from hwmodels.lower import KEPT, program
from hwmodels.ops import Quantize

estimate = partial(hwmodels.estimate, model="roofline")
H200 = hwmodels.device("h200-sxm")
LARGE = Gemm(m=8192, n=8192, k=8192)
THIN = Gemm(m=1, n=8192, k=8192)
MODEL = Workload(
    name="toy",
    ops=(
        Norm(path="norm", rows=4096, columns=1024, affine=2048),
        Elementwise(path="mod", function="mul", elements=4096 * 1024, reads=4096 * 1024 + 1024),
        Gemm(path="q", m=4096, n=1024, k=1024, bias=True),
        Gemm(path="thin", m=4096, n=1024, k=64),
        Attention(path="attn", heads=16, queries=4096, keys=4096, head_dim=64),
        Elementwise(path="act", function="silu", elements=4096 * 1024),
        Elementwise(path="gate", function="mul", elements=4096 * 1024, reads=2 * 4096 * 1024),
    ),
    parameters=1024 * 1024 + 1024 + 64 * 1024 + 2048 + 5000,
    live_elements=10**6,
)


def test_compute_corner_is_operations_over_peak():
    result = estimate(LARGE, "bf16", "h200-sxm")
    assert result.time_s == pytest.approx(2 * 8192**3 / 989.4e12, rel=1e-12)
    assert result.bound == "compute"
    assert result.achieved == pytest.approx(1.0)
    assert result.macs == 8192**3


def test_memory_corner_is_bytes_over_bandwidth():
    result = estimate(THIN, "fp8", "h200-sxm")
    size = 8192 * 8192 + 8192 + 2 * 8192
    assert result.bytes == size
    assert result.time_s == pytest.approx(size / 4.8e12, rel=1e-12)
    assert result.bound == "memory"


@pytest.mark.parametrize("shorthand", SHORTHANDS)
@pytest.mark.parametrize("device", DEVICES)
def test_twice_the_work_takes_twice_the_time_and_never_less_than_either_bound(device, shorthand):
    try:
        one = estimate(LARGE, shorthand, device)
    except UnsupportedFormat:
        return
    two = estimate(replace(LARGE, count=2), shorthand, device)
    assert two.time_s == pytest.approx(2 * one.time_s)
    assert one.time_s >= max(one.compute_s, one.memory_s) * (1 - 1e-12)
    assert one.model == "roofline"
    assert "lower bound" in one.notes[0]
    assert one.energy_j is None


def test_a_what_if_device_is_a_replace():
    half = replace(H200.dram.bandwidth, value=H200.bandwidth / 2)
    slower = replace(H200, dram=replace(H200.dram, bandwidth=half))
    assert estimate(THIN, "bf16", slower).time_s == pytest.approx(2 * estimate(THIN, "bf16", H200).time_s)


def test_a_model_is_the_sum_of_its_kernels():
    result = estimate(MODEL, "fp8", "h200-sxm")
    rows = result.breakdown.rows()
    assert result.time_s == pytest.approx(sum(row.time_s for row in rows))
    assert result.time_s == pytest.approx(sum(result.breakdown.by_kind().values()))
    assert result.bytes == pytest.approx(sum(row.bytes for row in rows))
    assert result.kernels == len(MODEL.ops) + 1
    assert [row.path for row in rows if row.kind == "quantize"] == ["q"]
    assert [row.precision.split()[0] for row in rows if row.path in ("thin", "attn")] == ["bf16", "bf16"]


def test_footprint_counts_each_parameter_once_in_its_format():
    wide = estimate(MODEL, "bf16", "h200-sxm").footprint
    assert wide.weights == pytest.approx(2 * MODEL.parameters)
    assert wide.activations == 2 * MODEL.live_elements
    assert wide.fits
    narrow = estimate(MODEL, "fp8", "h200-sxm").footprint
    assert wide.weights - narrow.weights == pytest.approx(1024 * 1024)
    twice = replace(MODEL, ops=MODEL.ops + MODEL.ops)  # the same layers run twice
    assert estimate(twice, "bf16", "h200-sxm").footprint.weights == pytest.approx(2 * MODEL.parameters)
    assert estimate(MODEL, "fp16", "intel-npu4").footprint.fits is None


def test_compiled_merges_pointwise_runs_and_moves_no_more():
    scheme = SHORTHANDS["fp8"]
    plain, merged = (program(MODEL, scheme, mode) for mode in ("graph", "compiled"))
    assert len(plain) == len(MODEL) + 1
    plain, merged = ([kernel for kernel, _ in run.launches()] for run in (plain, merged))
    assert [k.op.path for k in merged] == ["norm", "q", "thin", "attn", "act"]
    assert [k.members for k in merged] == [3, 1, 1, 1, 2]  # norm + mul + cast; silu + mul
    assert not any(isinstance(k.op, Quantize) for k in merged)
    elements = 4096 * 1024
    assert merged[0].bytes == 2 * elements + 2 * 2048 + 2 * 1024 + elements  # in bf16, gains, the vector, out 8-bit
    assert merged[-1].bytes == 2 * elements + 2 * elements + 2 * elements
    assert sum(k.bytes for k in merged) < sum(k.bytes for k in plain)
    assert sum(k.macs for k in merged) == sum(k.macs for k in plain)
    assert estimate(MODEL, "fp8", "h200-sxm", mode="compiled").time_s < estimate(MODEL, "fp8", "h200-sxm").time_s


def test_a_maximum_over_the_tensor_cannot_be_merged_with_what_uses_it():
    merged = program(MODEL, SHORTHANDS["fp8-dynamic"], "compiled")
    assert [(k.op.path, k.members) for k, _ in merged.launches()][:3] == [("norm", 3), ("q", 1), ("q", 1)]


def test_a_scheme_object_decides_per_layer():
    class Mine:
        name = "mine"

        def precision_for(self, op):
            return Precision(weight="int8", activation="int8", accumulator="int32") if op.path == "q" else Precision()

    result = estimate(MODEL, Mine(), "h200-sxm")
    assert result.precision == "mine"
    labels = {row.path: row.precision for row in result.breakdown.rows() if row.macs}
    assert labels["q"].startswith("int8 x int8 + int32")
    assert labels["thin"].startswith("bf16 x bf16")


def test_a_scheme_that_cannot_change_is_lowered_once_for_all_devices():
    """Equal frozen schemes share a program; one that may change between two calls is asked again."""

    @dataclass(frozen=True)
    class Fixed:
        weight: str

        def precision_for(self, op):
            asked.append(op.path)
            return Precision(weight=self.weight)

    @dataclass(frozen=True)
    class Loose(Fixed):
        layers: list = field(default_factory=list)

    class Plain:
        precision_for = staticmethod(lambda op: Precision(weight=Plain.weight))
        weight = "e4m3"

    work, asked = replace(MODEL), []
    first = [estimate(work, Fixed("e4m3"), device).time_s for device in ("h200-sxm", "l4")]
    once = len(asked)
    assert [estimate(work, Fixed("e4m3"), device).time_s for device in ("h200-sxm", "l4")] == first
    assert len(asked) == once > 0
    assert estimate(work, Fixed("bf16"), "l4").footprint.weights > estimate(work, Fixed("e4m3"), "l4").footprint.weights
    asked.clear()
    for repeat in (1, 2):
        assert estimate(work, Loose("e4m3"), "l4").time_s == first[1]
        assert len(asked) == repeat * once
    narrow = estimate(work, Plain(), "l4").footprint.weights
    Plain.weight = "bf16"
    assert estimate(work, Plain(), "l4").footprint.weights > narrow
    for index in range(2 * KEPT):
        estimate(work, Precision(weight="e4m3", weight_group=index + 1), "l4")
    assert len(work.memo) == KEPT


def test_fallback_and_refusal_are_named():
    result = estimate(LARGE, "fp8", "intel-npu4")
    assert any("e4m3 unsupported" in note for note in result.notes)
    assert result.exact
    assert not estimate(LARGE, "bf16", "intel-npu4").exact
    with pytest.raises(UnsupportedFormat):
        estimate(LARGE, "fp32", "intel-npu4")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "fast"}, "unknown mode 'fast'"),
        ({"cache": "hot"}, "unknown cache 'hot'"),
        ({"model": "oracle"}, "unknown model 'oracle'"),
        ({"device": "h300-sxm"}, "did you mean 'h200-sxm'"),
        ({"precision": "fp88"}, "did you mean 'fp8'"),
    ],
)
def test_unknown_names_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        estimate(LARGE, **kwargs)


def test_nothing_and_the_wrong_thing_are_refused():
    with pytest.raises(ValueError, match="no operations"):
        estimate(Workload(name="empty", ops=()))
    with pytest.raises(ValueError, match="nothing to estimate"):
        estimate("gemm")


def test_to_dict_is_plain_data():
    import json

    row = estimate(MODEL, "nvfp4", "h200-sxm").to_dict()
    assert json.loads(json.dumps(row)) == row
    assert row["device"] == "h200-sxm"
    assert row["footprint"]["fits"] is True


def test_pricing_needs_neither_torch_nor_numba():
    code = (
        "import sys, hwmodels as h; h.estimate(h.Gemm(m=1, n=1, k=1), 'fp8', 'h200-sxm');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
