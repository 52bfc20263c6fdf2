"""Circuits: Verilog of a multiply-accumulate or dot-product unit from the `MatmulSpec` that the emulator runs.

    >>> import fpsim, hwmodels.rtl as rtl
    >>> spec = fpsim.MatmulSpec("e4m3", "e4m3", fpsim.SequentialFma("f32"))
    >>> rtl.verilog(spec).splitlines()[0]
    >>> rtl.gates(spec).gates

The circuit computes the emulator's bits; `Simulator` runs it, and the tests compare. Generating Verilog and reading the
shipped gate counts need nothing; counting others needs Yosys, running them a C++ compiler too (extra `rtl`).

| file | what it holds |
|---|---|
| `text.py` | Verilog as text: modules, wires, exponents as offsets |
| `operand.py`, `product.py` | a code taken apart; exact products; leading zeros |
| `adder.py`, `rounding.py`, `special.py` | a floating-point sum; one rounding to a code; NaN, Inf and overflow |
| `integers.py`, `fixed.py`, `sequential.py`, `fused.py` | one file per kind of accumulator |
| `readout.py`, `unit.py` | conversion of the result; which circuit a spec is; what is refused |
| `yosys.py`, `synthesis.py`, `ripple.v` | running Yosys; cells and depth of a module |
| `counts.py`, `defaults.py`, `table.py`, `gates.csv` | gate counts, shipped and fresh |
| `technology.py`, `nodes/` | area, energy and delay by technology |
| `simulator.py`, `driver.cpp` | the unit as a program |
| `spelling.py` | accumulators as words of a command line |
"""

from fpsim.spec import MatmulSpec

from .counts import GateCount as GateCount
from .counts import gates as gates
from .counts import in_equal_area as in_equal_area
from .counts import mac_counts as mac_counts
from .simulator import NoCompiler as NoCompiler
from .simulator import Simulator as Simulator
from .spelling import accumulator as accumulator
from .synthesis import Cells as Cells
from .technology import REFERENCE as REFERENCE
from .technology import Silicon as Silicon
from .technology import nodes as nodes
from .technology import silicon as silicon
from .unit import NoCircuit as NoCircuit
from .unit import Unit as Unit
from .unit import unit as unit
from .yosys import NoYosys as NoYosys


def verilog(spec: MatmulSpec) -> str:
    """Verilog-2005 of the unit of `spec`, as `unit` describes it."""
    return unit(spec).verilog
