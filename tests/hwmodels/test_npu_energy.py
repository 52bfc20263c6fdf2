"""Joules, leakage and gates of the systolic model: by hand, against generated circuits, from files with mistakes."""

import pytest

import hwmodels as h
from hwmodels import rtl
from hwmodels.npu import energies, in_equal_area, joules
from hwmodels.npu.energy import nodes, parse_energy
from hwmodels.npu.gates import adder_gates, element_gates, gate_counts, gates, known_counts


@pytest.mark.parametrize("node", nodes())
def test_every_energy_has_a_source_and_says_what_it_is(node):
    constants = energies(node)
    numbers = [*constants.add.values(), *constants.multiply.values(), *constants.dram.values()]
    numbers += [number for pair in constants.sram for number in pair]
    for number in numbers:
        assert number.source in constants.sources
        assert number.status == "published" or number.note
    assert constants.sram_byte(1024) == constants.sram[0][1].value
    assert constants.sram_byte(2.0**30) == constants.sram[-1][1].value
    assert constants.sram[0][1].value < constants.sram_byte(16384) < constants.sram[1][1].value


def test_joules_of_a_product_by_hand():
    op = h.Gemm(m=256, n=256, k=256)
    found = h.estimate(op, "bf16", "my-npu", cache="cold", model="systolic")
    got = joules(found, "7nm")
    assert got.compute == pytest.approx(op.macs * (0.21 + 0.38) * 1e-12)
    assert got.dram == pytest.approx(3 * 256 * 256 * 2 * 1300e-12 / 8)
    assert got.total == got.compute + got.vector + got.sram + got.dram + got.leakage
    assert 0 < got.movement < 1
    assert joules(found, "7nm", dram="HBM2").dram == pytest.approx(got.dram * 350 / 1300)
    with pytest.raises(ValueError, match="no energy for main memory 'tape'; allowed: HBM"):
        joules(found, "7nm", dram="tape")
    with pytest.raises(ValueError, match="unknown technology node '3nm'"):
        joules(found, "3nm")


def test_unlisted_operations_are_derived_from_gates():
    joule, how = energies("7nm").mac("e4m3", "e4m3", "f32")
    assert joule == pytest.approx((0.07 + 0.03) * 1e-12 * rtl.mac_counts()["e4m3/f32"] / rtl.mac_counts()["int8/int32"])
    assert how == "derived from gate counts"
    assert energies("7nm").mac("int8", "int8", "int32") == (pytest.approx(0.1e-12), "published")
    with pytest.raises(ValueError, match="no gate count for int4 x e4m3 into f32"):
        energies("7nm").mac("int4", "e4m3", "f32")


def test_formats_in_equal_silicon():
    units = [("e2m1", "e2m1", "fixed16"), ("int4", "int4", "int16"), ("e4m3", "e4m3", "f32")]
    found = in_equal_area(("int8", "int8", "int32"), units)
    assert list(found) == units
    made = rtl.mac_counts()  # of the circuits themselves
    assert found == {u: made["int8/int32"] / made[f"{u[0]}/{u[2]}"] for u in units}
    assert found[units[2]] < 1 < found[units[0]]  # FP8 into FP32 is dearer than INT8 into INT32, FP4 into 16 bits not
    assert gates("mxfp8", "mxfp8", "f32") == made["e4m3/f32"]
    assert gates("int4", "int8", "int32") == gates("int8", "int4", "int32") == made["int8 x int4/int32"]
    mine = {"int8/int32": 100.0, "int4/int32": 40.0}
    assert in_equal_area(("int8", "int8", "int32"), [("int4", "int4", "int32")], mine) == {
        ("int4", "int4", "int32"): 2.5
    }
    with pytest.raises(ValueError, match="no gate count for int8 x int8 into int32"):
        gates("int8", "int8", "int32", {})


def test_counts_without_a_circuit_come_from_the_other_description(monkeypatch):
    monkeypatch.setattr(rtl, "mac_counts", lambda: {"int8/int32": 500.0})
    known = known_counts.__wrapped__()
    assert known["int8/int32"] == 500.0
    assert known["e4m3/f32"] == gate_counts()["e4m3/f32"] == 1736


def test_an_adder_is_what_a_wider_accumulator_adds():
    made = rtl.mac_counts()
    for narrow, wide in ((20, 24), (24, 32)):
        per_bit = (made[f"int8/int{wide}"] - made[f"int8/int{narrow}"]) / (wide - narrow)
        assert adder_gates(wide) - adder_gates(narrow) == per_bit * (wide - narrow)
    assert adder_gates(2) == 4  # two XOR, one AND between them, and an XOR for the carry
    assert adder_gates(16, saturate=True) - adder_gates(16) == made["int8/int16-saturate"] - made["int8/int16"]
    with pytest.raises(ValueError, match="an adder of 1 bits; allowed: at least 2"):
        adder_gates(1)


@pytest.mark.parametrize("node", ["45nm", "7nm"])
def test_leakage_is_the_arrays_cells_and_where_known_the_memories(node):
    found = h.estimate(h.Gemm(m=64, n=64, k=64), "bf16", "my-npu", model="systolic")
    got, constants = joules(found, node), energies(node)
    # the largest mode: four FP4 products into float32 in each of 128 x 128 elements
    watts = 128 * 128 * 4 * rtl.mac_counts()["e2m1/f32"] * constants.leakage.gate.value
    if node == "45nm":
        watts += 8 * 2**20 * constants.leakage.sram.value
    assert got.leakage == pytest.approx(watts * found.time_s, rel=1e-12)
    assert any("leakage: the array" in note for note in got.notes)
    assert any("memories is not known at 7nm" in note for note in got.notes) == (node == "7nm")
    assert element_gates((), ()) is None


GOOD = """
title = "x"
[sources.s]
title = "t"
date = "2024"
[add]
int32 = { value = 1, unit = "pJ", source = "s" }
f32 = { value = 1, unit = "pJ", source = "s" }
[multiply]
int8 = { value = 1, unit = "pJ", source = "s" }
[sram.a]
capacity = { value = 1, unit = "KiB", source = "s" }
access = { value = 1, unit = "pJ/bit", source = "s" }
[dram]
DDR = { value = 1, unit = "pJ/byte", source = "s" }
[leakage]
device = { value = 2, unit = "W", source = "s" }
"""


def test_constants_of_your_own_with_leakage():
    mine = parse_energy(GOOD, "mine")
    found = h.estimate(h.Gemm(m=64, n=64, k=64), "int8", "my-npu", model="systolic")
    got = joules(found, mine, dram="DDR")
    assert got.leakage == 2 * found.time_s
    without = joules(found, parse_energy(GOOD.partition("[leakage]")[0], "mine"), dram="DDR")
    assert without.leakage is None
    assert without.total == pytest.approx(got.total - got.leakage)
    assert "leakage: that of the array is not known at mine, that of the memories is not known at mine" in without.notes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'unit = "pJ", source = "s" }\n[sram',
            'unit = "J", source = "s" }\n[sram',
            "unit 'J' is not a per-operation energy",
        ),
        ("[dram]", "[drum]", "mine.toml: dram: missing"),
        ("[sram.a]", "[srum.a]", "mine.toml: sram: missing"),
        ("f32 =", "f16 =", "add.f32: missing; other operations are derived from it"),
        ('title = "x"', "", "title: missing"),
        ('title = "x"', 'title = "x"\nwatts = 1', "mine.toml: watts: unknown key"),
        ("[add]", "[add", "not TOML"),
        ("device = {", "chip = {", "mine.toml: leakage.chip: unknown key"),
        ('value = 2, unit = "W"', 'value = 2, unit = "J"', "unit 'J' is not a power; allowed: pW, nW, W, kW"),
    ],
)
def test_a_mistake_in_energies_names_file_and_key(old, new, message):
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        parse_energy(GOOD.replace(old, new), "mine")
