"""Integer accumulators: widths to 63 bits, orders, trees and tiles, against the reference and plain definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fpsim
from fpsim.accumulators import IntegerAccumulator, Promoted, SplitK
from fpsim.spec import MatmulSpec
from tests.strategies import DISTRIBUTIONS, assert_same_bits

SPECS = [
    MatmulSpec("int16", "int16", IntegerAccumulator(40, "saturate")),
    MatmulSpec("int16", "int16", IntegerAccumulator(34, "saturate", 4)),
    MatmulSpec("int32", "int32", IntegerAccumulator(63, "wrap")),
    MatmulSpec("int32", "int32", IntegerAccumulator(63, "saturate")),
    MatmulSpec("uint16", "int16", IntegerAccumulator(33, "wrap", 2, 30)),
    MatmulSpec("int8", "int8", IntegerAccumulator(16, "saturate", 8, None, "pairwise")),
    MatmulSpec("uint8", "int8", IntegerAccumulator(13, "saturate", 128, None, "pairwise")),
    MatmulSpec("int8", "uint8", IntegerAccumulator(11, "wrap", 4, None, "pairwise")),
    MatmulSpec("int16", "int16", IntegerAccumulator(33, "saturate", 2, None, "pairwise")),
    MatmulSpec("int4", "int4", IntegerAccumulator(9, "saturate", 1, None, "pairwise")),
    MatmulSpec(
        "int8", "int8", Promoted(IntegerAccumulator(16, "saturate"), 8, outer=IntegerAccumulator(18, "saturate"))
    ),
    MatmulSpec("int8", "int8", Promoted(IntegerAccumulator(12, "wrap"), 16, outer=IntegerAccumulator(48, "wrap"))),
    MatmulSpec(
        "uint8",
        "int8",
        Promoted(IntegerAccumulator(16, "saturate", 4, None, "pairwise"), 4, outer=IntegerAccumulator(32, "wrap")),
    ),
    MatmulSpec("int8", "int8", SplitK(IntegerAccumulator(16, "saturate"), 3, 8)),
    MatmulSpec(
        "int8",
        "int8",
        SplitK(Promoted(IntegerAccumulator(14, "saturate"), 8, outer=IntegerAccumulator(15, "saturate")), 2, 16),
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.a.name}-{s.b.name}-{s.accumulator}")
def test_equal_reference(spec: MatmulSpec) -> None:
    rng = np.random.default_rng(7)
    for name, draw in DISTRIBUTIONS.items():
        a, b = draw(rng, spec.a, (4, 61)), draw(rng, spec.b, (3, 61)).T
        start = rng.integers(-100, 100, (4, 3)).astype(spec.accumulator.output)
        for c in (None, start):
            got = fpsim.matmul(a, b, spec, c)
            assert_same_bits(got, fpsim.matmul(a, b, spec, c, backend="reference"), f"{spec} {name}")


def clamped(x: int, bits: int) -> int:
    return min(max(x, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-128, 127), st.integers(-128, 127)), min_size=1, max_size=24),
    st.integers(9, 20),
    st.sampled_from([1, 2, 4, 8]),
)
def test_tiles_and_trees_by_their_definition(pairs: list[tuple[int, int]], bits: int, tile: int) -> None:
    a, b = np.array([[x for x, _ in pairs]], np.int8), np.array([[y] for _, y in pairs], np.int8)
    products = [x * y for x, y in pairs]

    def run(accumulator: Promoted | IntegerAccumulator) -> int:
        return int(fpsim.matmul(a, b, MatmulSpec("int8", "int8", accumulator))[0, 0])

    outer = 0
    for start in range(0, len(products), tile):
        inner = 0
        for p in products[start : start + tile]:
            inner = clamped(inner + p, bits)
        outer = clamped(outer + inner, bits + 2)
    two_level = Promoted(IntegerAccumulator(bits, "saturate"), tile, outer=IntegerAccumulator(bits + 2, "saturate"))
    assert run(two_level) == outer

    total = 0
    padded = products + [0] * (-len(products) % tile)
    for start in range(0, len(padded), tile):
        level = [clamped(p, bits) for p in padded[start : start + tile]]
        while len(level) > 1:
            level = [clamped(level[i] + level[i + 1], bits) for i in range(0, len(level), 2)]
        total = clamped(total + level[0], bits)
    assert run(IntegerAccumulator(bits, "saturate", tile, None, "pairwise")) == total


def test_order_matters_when_sums_saturate_and_not_when_they_wrap() -> None:
    """100 products of 127 * 127 up, then as many down: what a 16-bit chain forgets depends on who meets whom."""
    a = np.full((1, 200), 127, np.int8)
    b = np.repeat(np.array([127, -127], np.int8), 100)[:, None]
    mixed = np.argsort(np.arange(200) % 100, kind="stable")  # up, down, up, down

    def run(accumulator: IntegerAccumulator, order: np.ndarray) -> int:
        return int(fpsim.matmul(a[:, order], b[order], MatmulSpec("int8", "int8", accumulator))[0, 0])

    ascending, saturating = np.arange(200), IntegerAccumulator(16, "saturate")
    assert run(saturating, mixed) == 0
    assert run(saturating, ascending) == -32768
    assert run(IntegerAccumulator(16, "saturate", 2, None, "pairwise"), mixed) == 0
    assert run(IntegerAccumulator(16, "wrap"), ascending) == run(IntegerAccumulator(16, "wrap"), mixed) == 0


def test_wide_results_are_int64() -> None:
    a = np.full((1, 8), -(1 << 31), np.int32)
    got = fpsim.matmul(a, a.T, MatmulSpec("int32", "int32", IntegerAccumulator(63, "wrap")))
    assert got.dtype == np.int64
    assert got[0, 0] == (8 * (1 << 62) + (1 << 62)) % (1 << 63) - (1 << 62)
    assert (
        fpsim.matmul(a[:, :1], a.T[:1], MatmulSpec("int32", "int32", IntegerAccumulator(63, "saturate")))[0, 0]
        == (1 << 62) - 1
    )


@pytest.mark.parametrize(
    "kind",
    [
        IntegerAccumulator(16, "error", 2, None, "pairwise"),
        Promoted(IntegerAccumulator(15, "error"), 2, outer=IntegerAccumulator(32)),
        Promoted(IntegerAccumulator(32), 2, outer=IntegerAccumulator(16, "error")),
        SplitK(IntegerAccumulator(16, "error"), 2, 2),  # the parts fit, their sum does not
    ],
    ids=str,
)
def test_overflow_as_an_error_names_the_output(kind: IntegerAccumulator | Promoted | SplitK) -> None:
    a, b = np.full((2, 4), 127, np.int8), np.full((4, 3), 127, np.int8)
    a[0] = 1
    with pytest.raises(OverflowError, match=r"output \[1, 0\] reaches (64516|32258)"):
        fpsim.matmul(a, b, MatmulSpec("int8", "int8", kind))
    assert fpsim.matmul(a[:1], b, MatmulSpec("int8", "int8", kind)).tolist() == [[508] * 3]


def test_errors_say_what_is_possible() -> None:
    with pytest.raises(ValueError, match=r"IntegerAccumulator.bits is 64; allowed: 2 to 63"):
        IntegerAccumulator(64)
    with pytest.raises(ValueError, match=r"IntegerAccumulator.order is 'sorted'; allowed: ascending, pairwise"):
        IntegerAccumulator(16, order="sorted")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a step that is a power of two and no step_bits"):
        IntegerAccumulator(16, "saturate", 3, None, "pairwise")
    one, small = np.ones((1, 1), np.int32), np.ones((1, 1), np.int8)
    with pytest.raises(ValueError, match="do not fit the 64 bits they are added in"):
        fpsim.matmul(one, one, MatmulSpec("int32", "int32", IntegerAccumulator(63, "saturate", 2)))
    with pytest.raises(ValueError, match="allowed: an IntegerAccumulator with step=1 around another one"):
        Promoted(IntegerAccumulator(16), 8, outer=IntegerAccumulator(32, step=2))
    narrow = MatmulSpec("int8", "int8", IntegerAccumulator(16, "saturate"))
    with pytest.raises(ValueError, match="c leaves the range of the 16-bit accumulator"):
        fpsim.matmul(small, small, narrow, np.array([[40000]], np.int32))
    with pytest.raises(ValueError, match="an IntegerAccumulator takes integer operands, got e4m3 x int8"):
        fpsim.matmul(small.view(np.uint8), small, MatmulSpec("e4m3", "int8", IntegerAccumulator()))
