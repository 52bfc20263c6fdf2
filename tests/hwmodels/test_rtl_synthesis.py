"""Gate counts made now are the shipped ones."""

import resource

import pytest

import fpsim
from fpsim.accumulators import FixedPoint, IntegerAccumulator, SequentialFma
from hwmodels import rtl
from hwmodels.rtl import counts, defaults
from hwmodels.rtl.synthesis import synthesized
from tests.hwmodels.rtl_proof import needs_tools


@pytest.mark.parametrize(
    "spec",
    [
        fpsim.MatmulSpec("int8", "int8", IntegerAccumulator(32)),
        fpsim.MatmulSpec("e2m1", "e2m1", FixedPoint(16)),
        fpsim.MatmulSpec("e2m1", "e2m1", SequentialFma("f16")),
    ],
)
def test_the_table_is_what_yosys_says(spec: fpsim.MatmulSpec) -> None:
    needs_tools()
    assert rtl.gates(spec, fresh=True).step == rtl.gates(spec).step


def test_cells_of_a_known_circuit() -> None:
    """A full adder is 5 gates (2 XOR, 2 AND, 1 OR, or their like), and a two-bit ripple adder without carry-in 7."""
    needs_tools()
    adder = "module top(input a, b, c, output s, d); assign {d, s} = a + b + c; endmodule"
    found = synthesized(adder, "top")
    assert found.gates == 5
    assert found.depth == 3
    ripple = "module top(input [1:0] a, b, output [2:0] s); assign s = a + b; endmodule"
    assert synthesized(ripple, "top").gates == 7


def test_a_module_that_is_not_there() -> None:
    needs_tools()
    with pytest.raises(ValueError, match="Yosys failed: ERROR"):
        synthesized("module top(input a, output y); assign y = a; endmodule", "other")


@pytest.mark.slow
def test_every_shipped_count() -> None:
    """And none of a multiply-accumulate takes a minute of processor time."""
    needs_tools()
    for row in defaults.rows():
        if rtl.unit(row.spec).terms == 1:
            started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            fresh, kept = rtl.gates(row.spec, fresh=True), rtl.gates(row.spec)
            assert (fresh.step, fresh.readout) == (kept.step, kept.readout), row.label
            assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started < 60, row.label
    assert fresh.origin == counts.version()
