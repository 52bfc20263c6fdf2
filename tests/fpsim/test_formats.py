"""Formats as data: derived facts against published tables and ml_dtypes, and errors that teach."""

import subprocess
import sys
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

import fpsim
from fpsim.codec import ML_DTYPES
from fpsim.formats import FORMATS, BlockFormat, Format, container, integer, scalar_format

# OCP OFP8 1.0 tables 1 and 2; OCP MX 1.0 tables 2 to 5: max, smallest normal, smallest subnormal
PUBLISHED = {
    "e4m3": (448.0, 2.0**-6, 2.0**-9),
    "e5m2": (57344.0, 2.0**-14, 2.0**-16),
    "e2m3": (7.5, 1.0, 0.125),
    "e3m2": (28.0, 0.25, 0.0625),
    "e2m1": (6.0, 1.0, 0.5),
    "f16": (65504.0, 2.0**-14, 2.0**-24),
    "e8m0": (2.0**127, 2.0**-127, 2.0**-127),
    "int8": (127.0, 1.0, 1.0),
    "int4": (7.0, 1.0, 1.0),
    "uint8": (255.0, 1.0, 1.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_range_is_the_published_one(name: str) -> None:
    row = scalar_format(name)
    assert (row.max, row.smallest_normal, row.smallest_subnormal) == PUBLISHED[name]


@pytest.mark.parametrize(("dtype", "name"), ML_DTYPES.items())
def test_range_agrees_with_finfo(dtype: str, name: str) -> None:
    row = scalar_format(name)
    info = ml_dtypes.finfo(getattr(ml_dtypes, dtype, None) or dtype)
    assert row.bits == info.bits
    assert row.max == float(info.max)
    assert row.min == float(info.min)
    assert row.smallest_normal == float(info.smallest_normal)
    assert row.smallest_subnormal == float(info.smallest_subnormal)


@pytest.mark.parametrize("name", [n for n, row in FORMATS.items() if isinstance(row, Format) and row.bits <= 8])
def test_codes_ascend_with_their_values(name: str) -> None:
    row = scalar_format(name)
    values = [row.magnitude(code) for code in range(row.max_code + 1)]
    assert all(a < b for a, b in pairwise(values))


def test_bits_per_element_counts_the_scale() -> None:
    assert [fpsim.format(n).bits_per_element for n in ("mxfp8", "mxfp6", "mxfp4", "nvfp4", "int4")] == [
        8.25,
        6.25,
        4.25,
        4.5,
        4.0,
    ]


def test_summaries_tell_block_formats_apart() -> None:
    rows = [row for row in FORMATS.values() if isinstance(row, BlockFormat)]
    assert fpsim.format("nvfp4-2d").summary == "e2m1 in blocks of 16 x 16, ue4m3 scales, float32 tensor scale"
    assert fpsim.format("uint4-g64").summary == "uint4 in blocks of 64, f16 scales and uint4 zero points"
    assert len({row.summary for row in rows}) == len(rows)


def test_names_aliases_and_identity() -> None:
    assert fpsim.format("fp16") is fpsim.format("f16")
    assert fpsim.format("E4M3") is fpsim.format("e4m3")
    row = fpsim.format("nvfp4")
    assert fpsim.format(row) is row
    assert isinstance(row, BlockFormat)
    assert all(name == row.name for name, row in FORMATS.items())
    assert container("e8m13").name == "f32"
    assert container("bf16").name == "bf16"


def test_code_types() -> None:
    names = ("e2m1", "e4m3", "int4", "int8", "uint8", "bf16", "int16", "tf32", "f64")
    assert [np.dtype(scalar_format(n).code_dtype).name for n in names] == [
        "uint8",
        "uint8",
        "int8",
        "int8",
        "uint8",
        "uint16",
        "int16",
        "uint32",
        "uint64",
    ]


def test_narrow_and_fixed_point_integers() -> None:
    assert integer(8, narrow=True).min == -127
    assert integer(8, fraction_bits=4).max == 127 / 16
    assert integer(8, fraction_bits=4).name == "int8.4"


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown format 'e4m4'; did you mean 'e4m3'\? \(known: f64, f32"):
        fpsim.format("e4m4")
    with pytest.raises(ValueError, match=r"unknown engine 'hopper/wgma'; did you mean 'hopper/wgmma'\?"):
        fpsim.engine("hopper/wgma", "e4m3")
    with pytest.raises(ValueError, match=r"'hopper/wgmma' does not take a='e2m1'.*it takes: .*e4m3"):
        fpsim.engine("hopper/wgmma", "e2m1")
    with pytest.raises(ValueError, match=r"'mxfp4' is a block format; .* its element 'e2m1'"):
        fpsim.MatmulSpec("mxfp4", "e4m3", fpsim.FusedDot(32, 13))


def test_rows_reject_nonsense() -> None:
    with pytest.raises(ValueError, match="0 exponent bits"):
        Format(name="x", mantissa_bits=3)
    with pytest.raises(ValueError, match="strictly ascending"):
        Format(name="x", kind="codebook", values=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"FusedDot.terms is 0"):
        fpsim.FusedDot(0, 13)
    with pytest.raises(ValueError, match="allowed: wrap, saturate, error"):
        fpsim.IntegerAccumulator(16, "clip")  # type: ignore[arg-type]


def test_import_is_light_and_lazy() -> None:
    code = (
        "import sys, fpsim; fpsim.format('e4m3'); fpsim.engine('hopper/wgmma', 'e4m3');"
        "bad = {'torch', 'numba', 'numpy'} & set(sys.modules); sys.exit(len(bad))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves() -> None:
    for name in fpsim.__all__:
        assert getattr(fpsim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fpsim.nonsense  # noqa: B018
