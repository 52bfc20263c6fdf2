"""Shorthands and what they mean on one operation and on a model."""

from dataclasses import dataclass

import pytest

import fpsim
from hwmodels import SHORTHANDS, Attention, Gemm, Precision, precision_map
from hwmodels.lower import quantize_ops
from hwmodels.ops import Quantize, Reduction
from hwmodels.precision import eligible, kernel_precision, stored_bits

LINEAR = Gemm(m=64, n=512, k=256)


@pytest.mark.parametrize("name", SHORTHANDS)
def test_every_shorthand_names_formats_that_exist(name):
    row = SHORTHANDS[name]
    for precision in (row.linear, row.rest):
        for stored in (precision.weight, precision.activation, precision.output):
            assert stored in fpsim.FORMATS


@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        (Gemm(m=1, n=16, k=256), True),
        (Gemm(m=1, n=16, k=240), False),
        (Gemm(m=1, n=24, k=256), False),
        (Gemm(m=1, n=16, k=264), False),
        (Gemm(m=1, n=16, k=256, parameter=False), False),
        (Attention(heads=1, queries=16, keys=16, head_dim=256), False),
    ],
)
def test_only_large_aligned_linears_are_quantized(op, wanted):
    assert eligible(op) is wanted
    assert (SHORTHANDS["fp8"].precision_for(op).weight == "e4m3") is wanted
    assert SHORTHANDS["fp32"].precision_for(op).weight == "f32"


def test_on_one_operation_a_shorthand_is_the_kernel_whatever_its_shape():
    small = Gemm(m=1, n=1, k=1)
    assert kernel_precision("fp8", small).activation == "e4m3"
    assert kernel_precision("fp8", small).output == "bf16"


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("bf16", []),
        ("tf32", []),
        ("w8a16", []),
        ("w4a16", []),
        ("fp8", [Quantize]),
        ("int8", [Quantize]),
        ("fp8-dynamic", [Reduction, Quantize]),
        ("int8-dynamic", [Quantize]),
        ("nvfp4", [Quantize]),
        ("w4a8-fp", [Quantize]),
    ],
)
def test_the_work_a_scheme_adds_is_explicit(name, kinds):
    extra = quantize_ops(LINEAR, SHORTHANDS[name].precision_for(LINEAR))
    assert [type(op) for op in extra] == kinds
    assert all(op.traffic.reads == LINEAR.m * LINEAR.k for op in extra)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("f32", 32), ("tf32", 32), ("bf16", 16), ("e4m3", 8), ("e2m1", 4), ("int4", 4), ("nvfp4", 4.5), ("mxfp8", 8.25)],
)
def test_stored_bits(name, bits):
    assert stored_bits(name) == bits


def test_an_object_with_precision_for_is_a_scheme():
    @dataclass(frozen=True)
    class Mine:
        def precision_for(self, op):
            return Precision(weight="int8" if op.path == "first" else "bf16")

    assert precision_map(Mine()).precision_for(Gemm(path="first", m=1, n=1, k=1)).weight == "int8"


def test_names_are_normalised_and_checked():
    assert Precision(weight="fp16", output="fp32").weight == "f16"
    assert Precision(accumulator=fpsim.IntegerAccumulator(bits=16)).accumulator == "int32"
    with pytest.raises(ValueError, match="unknown format 'e44m3'; did you mean"):
        Precision(weight="e44m3")
    with pytest.raises(ValueError, match="unknown precision 'fp9'; did you mean 'fp8'"):
        precision_map("fp9")
    with pytest.raises(ValueError, match=r"precision_for\(op\)"):
        precision_map(3)
    with pytest.raises(ValueError, match="granularity"):
        Precision(granularity="row")
