"""The torch grid against `fpsim.quantize`: every format, compared as bit patterns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fpsim
from fpsim.formats import FORMATS, Format, alike
from fpsim.nn import functional

SCALARS = [row for row in FORMATS.values() if isinstance(row, Format) and row.name not in ("f64", "e8m0")]
SCALARS = [row for row in SCALARS if row.kind == "float" or (row.kind == "int" and row.precision <= 24)]
ALL_BLOCKS = [row for row in FORMATS.values() if not isinstance(row, Format)]
BLOCKS = [row for row in ALL_BLOCKS if row.rows == 1 and (row.rule == "floor" or row.tensor_scale)]
#: every rule that a block format may be asked for
RULED = [replace(row, rule=rule) for row in BLOCKS for rule in alike(row.rule)]


def patterns() -> np.ndarray:
    """All 2^16 bf16 values, all 2^16 f16 values, random float32 patterns, and numbers of everyday size."""
    rng = np.random.default_rng(0)
    return np.concatenate(
        [
            np.arange(1 << 16, dtype=np.uint32) << 16,
            np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32),
            rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32),
            (rng.standard_normal(1 << 16) * rng.choice([1e-3, 1, 30, 500], 1 << 16)).astype(np.float32).view(np.uint32),
        ]
    )


def near_grid_points(row: Format) -> np.ndarray:
    """Every value of an 8-bit format, the middle of each two neighbours, and the floats on both sides of those."""
    if row.kind == "int":
        values = np.arange(row.min, row.max + 1)
    else:
        values = np.unique(fpsim.decode(np.arange(1 << (row.bits - row.pad_bits), dtype=np.uint8), row))
        values = values[np.isfinite(values)]
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2, values * 1.5]).astype(np.float32)
    return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)]).astype(np.float32)


def assert_same_bits(ours: np.ndarray, wanted: np.ndarray, given: np.ndarray, name: str) -> None:
    left, right = ours.astype(np.float32).view(np.uint32), wanted.astype(np.float32).view(np.uint32)
    bad = np.flatnonzero((left != right).ravel())
    shown = [
        f"{given.ravel().view(np.uint32)[i]:08x}: {left.ravel()[i]:08x} not {right.ravel()[i]:08x}" for i in bad[:5]
    ]
    assert bad.size == 0, f"{name}: {bad.size} of {left.size} differ; {'; '.join(shown)}"


@pytest.mark.parametrize("row", SCALARS, ids=lambda row: row.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's cast of NaN in the other implementation
def test_scalar_formats_equal_the_numpy_codec_on_every_bit(row: Format) -> None:
    x = patterns().view(np.float32)
    if row.bits <= 8:
        x = np.concatenate([x, near_grid_points(row)])
    given = torch.from_numpy(x.copy())
    made = functional.quantize(given, row.name)
    assert_same_bits(made.numpy(), fpsim.quantize(x, row.name), x, row.name)
    assert np.array_equal(given.numpy().view(np.uint32), x.view(np.uint32)), "the argument was written to"


@pytest.mark.parametrize("row", [row for row in SCALARS if row.bits <= 8], ids=lambda row: row.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_codes_equal_the_numpy_codec_and_decode_back(row: Format) -> None:
    x = np.concatenate([patterns().view(np.float32), near_grid_points(row)])
    codes = functional.encode(torch.from_numpy(x.copy()), row)
    wanted = fpsim.encode(x, row)
    assert codes.numpy().dtype == wanted.dtype
    assert np.array_equal(codes.numpy(), wanted)
    assert_same_bits(functional.decode(codes, row).numpy(), fpsim.decode(wanted, row), x, row.name)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_sixteen_bit_codes_are_the_patterns_of_the_numpy_codec(name: str) -> None:
    x = patterns().view(np.float32)
    codes = functional.encode(torch.from_numpy(x.copy()), name)
    finite = ~np.isnan(x)  # torch's cast drops the payload and sign of NaN
    assert np.array_equal(codes.numpy().view(np.uint16)[finite], fpsim.encode(x, name)[finite])


def block_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shape = (12, 70, 50)
    spread = rng.standard_normal(shape) * np.exp(8 * rng.standard_normal((12, 70, 1)))
    sparse = np.where(rng.random(shape) < 0.9, -0.0, rng.standard_normal(shape))
    sparse[:6] = -0.0
    sparse[6:, :, :25] *= 1e-30
    subnormal = rng.integers(0, 1 << 24, shape, dtype=np.uint32).view(np.float32).copy()
    broken = rng.standard_normal(shape)
    broken[3, 4, 5], broken[7, 1, 1], broken[8, 2, 2] = np.nan, np.inf, -np.nan
    return {
        "normal": rng.standard_normal(shape).astype(np.float32),
        "bits": rng.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32),
        "wide": spread.astype(np.float32),
        "sparse": sparse.astype(np.float32),
        "subnormal": subnormal,
        "broken": broken.astype(np.float32),
    }


@pytest.mark.parametrize("row", RULED, ids=lambda row: f"{row.name}-{row.rule}")
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_block_formats_equal_the_numpy_codec_on_every_bit(row: fpsim.BlockFormat, axis: int) -> None:
    for kind, x in block_tensors().items():  # 50 and 70 leave short last blocks
        made = functional.quantize(torch.from_numpy(x.copy()), row, axis)
        assert_same_bits(made.numpy(), fpsim.quantize(x, row, axis), x, f"{row.name} {row.rule} {kind}")


@pytest.mark.parametrize("row", [row for row in ALL_BLOCKS if row not in BLOCKS], ids=lambda row: row.name)
def test_block_formats_without_a_torch_version_say_so(row: fpsim.BlockFormat) -> None:
    with pytest.raises(ValueError, match="has no torch version; use fpsim"):
        functional.quantize(torch.ones(16, 64), row)


def test_scale_of_a_block_just_below_a_power_of_two() -> None:
    x = torch.ones(32)
    x[0] = 15.999999  # the floor of its logarithm is 3; log2 in float32 says 4
    assert functional.quantize(x, "mxfp4")[:2].tolist() == [12.0, 1.0]


def test_half_precision_input_is_quantized_in_float32() -> None:
    x = torch.linspace(-3, 3, 101, dtype=torch.bfloat16)
    assert torch.equal(functional.quantize(x, "e2m1"), functional.quantize(x.float(), "e2m1"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="convert it first"):
        functional.quantize(torch.ones(3, dtype=dtype), "e4m3")


def test_formats_that_float32_cannot_round_to_are_refused() -> None:
    with pytest.raises(ValueError, match=r"use fpsim\.quantize"):
        functional.quantize(torch.ones(3), "f64")
    with pytest.raises(ValueError, match="no uniform grid"):
        functional.quantize(torch.ones(3), "nf4")
    with pytest.raises(ValueError, match="24 magnitude bits"):
        functional.quantize(torch.ones(3), "int32")
    with pytest.raises(ValueError, match="unknown format 'e4m4'; did you mean"):
        functional.quantize(torch.ones(3), "e4m4")


def test_blocking_and_joining_are_inverse() -> None:
    x = torch.arange(2 * 7 * 3.0).reshape(2, 7, 3)
    for axis in (0, 1, 2, -1, -2):
        split = functional.blocked(x, 4, axis)
        assert torch.equal(functional.unblocked(split, x.shape[axis], axis), x)
