"""Every block format against the reference: codes, scales, zero points, values; and the one-pass road against both."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fpsim
from fpsim import blocks
from fpsim.formats import FORMATS, BlockFormat, alike
from fpsim.reference import blocks as truth
from fpsim.reference import decode
from tests.strategies import assert_same_bits, bits

ROWS = [name for name, row in FORMATS.items() if isinstance(row, BlockFormat)]
FAMILY = ["bfp6-b24", "int3-g128", "e2m1-g32-bf16", "uint8-g48-f32", "ue2m2-g32", "int4-g32-bf16", "e4m3fnuz-g32-f32"]
#: rules in place of a format's own
RULED = [
    *(replace(blocks.block_format(n), rule=r) for n in ("mxfp4", "mxint8") for r in alike("floor") if r != "floor"),
    replace(blocks.block_format("nvfp4"), rule="four-over-six"),
]


def tensor(row: BlockFormat, kind: str) -> np.ndarray:
    """Two rows of blocks (16 x 3 blocks for 2-D ones, 35 rows so that the last block is short)."""
    rng = np.random.default_rng(21)
    shape = (35 if row.rows > 1 else 8, 3 * row.block)
    x = rng.standard_normal(shape)
    if kind == "wide":
        x *= 2.0 ** rng.integers(-30, 30, (shape[0], 1))
    elif kind == "one-sided":
        x = np.abs(x) + 0.01
    elif kind == "halves":  # ties everywhere
        x = rng.integers(-24, 25, shape) / 4
    elif kind == "tiny":
        x *= 2.0**-130
    elif kind == "large":
        x *= 2.0**118
    x[0, : row.block] = 0
    x[1, ::2] = -0.0
    return x.astype(np.float32)


KINDS = ("normal", "wide", "one-sided", "halves", "tiny", "large")


def numbers(x: np.ndarray) -> list[object]:
    return [decode(int(c), "f32") for c in bits(x.reshape(-1))]


def title(row: str | BlockFormat) -> str:
    return row if isinstance(row, str) else f"{row.name}-{row.rule}"


@pytest.mark.parametrize(
    ("name", "kind"),
    [*product([*ROWS, *FAMILY], KINDS), *product(RULED, ("halves", "tiny"))],
    ids=lambda value: value if isinstance(value, str) else title(value),
)
def test_codes_scales_and_values_equal_the_reference(name: str | BlockFormat, kind: str) -> None:
    row = blocks.block_format(name)
    x = tensor(row, kind)[:, : row.block * (3 if row.block < 64 else 2)]
    got = blocks.encode(x, row)
    made = blocks.decode(got)
    unit = truth.tensor_scale(Fraction(float(np.abs(x).max())), row)
    assert Fraction(got.tensor_scale) == unit
    for top in range(0, x.shape[0], row.rows):
        for start in range(0, x.shape[1], row.block):
            part = (slice(top, top + row.rows), slice(start, start + row.block))
            want = truth.encode_block(numbers(x[part]), row, unit)
            where = f"{name} {kind} at {top}, {start}"
            assert (got.scales[part[0], start // row.block] == want.scale).all(), where
            assert got.codes[part].reshape(-1).tolist() == want.codes, where
            assert [Fraction(float(v)) for v in made[part].reshape(-1)] == want.values, where
            if got.zero_points is not None:
                assert got.zero_points[top, start // row.block] == want.zero_point, where


@pytest.mark.parametrize("name", [*ROWS, *FAMILY, *RULED], ids=title)
def test_one_pass_equals_encode_then_decode(name: str | BlockFormat) -> None:
    row = blocks.block_format(name)
    for kind in KINDS:
        x = np.concatenate([tensor(row, kind), tensor(row, "normal")])[:, : 2 * row.block + 5]
        for poison in (False, True):
            if poison:
                x[4, 3], x[6, row.block + 1], x[-1, 0] = np.nan, -np.inf, np.inf
            want = blocks.decode(blocks.encode(x, name))
            got = fpsim.quantize(x, name)
            nan = np.isnan(want)
            assert (nan == np.isnan(got)).all()
            assert nan.any() == poison
            assert_same_bits(np.where(nan, 0, got), np.where(nan, 0, want), f"{name} {kind}")


def test_two_dimensional_blocks_repeat_their_scale() -> None:
    x = np.random.default_rng(1).standard_normal((32, 48)).astype(np.float32)
    got = blocks.encode(x, "nvfp4-2d")
    assert got.scales.shape == (32, 3)
    assert (got.scales[:16] == got.scales[0]).all()
    assert (got.scales[16:] == got.scales[16]).all()
    with pytest.raises(ValueError, match="blocks of 16 x 16; x needs two axes"):
        fpsim.quantize(x[0], "nvfp4-2d")


def test_square_blocks_do_not_depend_on_the_direction() -> None:
    """A weight quantized this way is the same tensor for the forward and for the backward product."""
    x = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)
    assert_same_bits(fpsim.quantize(x, "nvfp4-2d", axis=0), fpsim.quantize(x, "nvfp4-2d", axis=1))


def test_four_over_six_uses_both_and_is_never_worse_than_six_alone() -> None:
    x = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
    both, six = blocks.encode(x, "nvfp4-4over6"), blocks.encode(x, "nvfp4-4over6", rule="amax")
    four = (both.scales != six.scales).mean()
    assert 0.1 < four < 0.9
    errors = [np.square(blocks.decode(e) - x.astype(np.float64)).reshape(64, 4, 16).sum(-1) for e in (both, six)]
    assert (errors[0] <= errors[1]).all()
    # sent to 4, this block is 1, 2, 3, 4 tens, exactly; sent to 6, it is not
    block = np.tile(np.float32([10, 20, 30, 40]), 4)
    assert_same_bits(fpsim.quantize(block, "nvfp4-4over6"), block)
    assert not (fpsim.quantize(block, "nvfp4") == block).all()


def test_asymmetric_groups_hold_zero_exactly() -> None:
    x = np.random.default_rng(4).uniform(-0.28, 4, (8, 128)).astype(np.float32)
    x[:, ::5] = 0
    made = fpsim.quantize(x, "uint4-g64")
    assert (made[:, ::5] == 0).all()
    error = np.abs(made - x).max()
    assert error < 4.28 / 15  # a step: half of it, plus the rounding of zero point and scale
    assert np.square(made - x).sum() < np.square(fpsim.quantize(x, "int4-g64") - x).sum()


def test_results_go_where_they_are_told() -> None:
    x = np.random.default_rng(5).standard_normal((4, 64)).astype(np.float32)
    for name in ("mxfp4", "nvfp4", "uint4-g32", "e4m3"):
        want, out = fpsim.quantize(x, name), np.empty_like(x)
        assert fpsim.quantize(x, name, out=out) is out
        assert_same_bits(out, want)
        same = x.copy()
        assert_same_bits(fpsim.quantize(same, name, out=same), want)
        room = np.concatenate([x.reshape(-1), np.zeros(16, np.float32)])  # and half over itself
        source, shifted = room[:256].reshape(4, 64), room[16:].reshape(4, 64)
        assert_same_bits(fpsim.quantize(source, name, out=shifted), want)
    with pytest.raises(ValueError, match=r"out is float32\[2, 64\]; it must be float32\[4, 64\]"):
        fpsim.quantize(x, "mxfp4", out=np.empty((2, 64), np.float32))


def test_rules_keep_to_their_kind() -> None:
    x = np.ones((1, 32), np.float32)
    with pytest.raises(ValueError, match=r"unknown scale rule 'floor' for 'int4-g32' \(known: amax, four-over-six"):
        blocks.encode(x, "int4-g32", rule="floor")
    with pytest.raises(ValueError, match="block formats round deterministically"):
        blocks.encode(x, "mxfp4", rounding="sra")
    with pytest.raises(ValueError, match="a zero point and rule 'range' go together"):
        BlockFormat(name="x", element=fpsim.format("int4"), scale=fpsim.format("f16"), block=32, rule="range")


FLOATS = st.lists(st.floats(width=32), min_size=1, max_size=80)


@given(FLOATS, st.sampled_from(["mxfp4", "nvfp4", "int4-g32", "bfp8-b32"]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_floats_in_one_pass(values: list[float], name: str) -> None:
    x = np.array(values, np.float32)
    want, got = blocks.decode(blocks.encode(x, name)), fpsim.quantize(x, name)
    assert_same_bits(np.where(np.isnan(got), 0, got), np.where(np.isnan(want), 0, want), name)
    assert (np.isnan(got) == np.isnan(want)).all()
