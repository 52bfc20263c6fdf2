"""Device files: every number has a source, every peak is reproduced, every mistake is named."""

import re

import pytest

import hwmodels
from hwmodels import DEVICES, parse_device
from hwmodels.device import Quantity

GOOD = """
title = "A device"
vendor = "v"
kind = "gpu"
architecture = "a"
[sources.s]
title = "A datasheet"
date = "2024-01"
[units]
name = "SM"
count = { value = 10, unit = "1", source = "s" }
[clocks]
boost = { value = 1, unit = "GHz", source = "s" }
[dram]
capacity = { value = 16, unit = "GB", source = "s" }
bandwidth = { value = 1, unit = "TB/s", source = "s" }
[[rate]]
operands = ["bf16"]
accumulator = "f32"
clock = "boost"
per_clock = { value = 1000, unit = "FLOP/clk", source = "s" }
peak = { value = 10, unit = "TFLOP/s", source = "s" }
"""


@pytest.mark.parametrize("name", DEVICES)
def test_peaks_are_units_times_rate_times_clock(name):
    device = hwmodels.device(name)
    for rate in device.rates.values():
        product = device.reproduced_peak(rate)
        if product is None:
            assert rate.peak.note, f"{name} {rate.key}: the file neither reproduces the peak nor says why not"
        else:
            assert product == pytest.approx(rate.peak.value, rel=0.01), (name, rate.key)


@pytest.mark.parametrize("name", DEVICES)
def test_every_number_names_a_declared_source_and_derived_ones_say_how(name):
    device = hwmodels.device(name)
    numbers = [
        *device.clocks.values(),
        *(n for m in (device.dram, *device.caches.values()) for n in (m.capacity, m.bandwidth)),
        device.units,
        device.power,
        *(n for r in device.rates.values() for n in (r.peak, r.per_clock)),
    ]
    for number in numbers:
        if number is not None:
            assert isinstance(number, Quantity)
            assert number.source in device.sources
            assert number.status == "published" or number.note or number.unit.endswith("clk"), number
    for source in device.sources.values():
        assert re.fullmatch(r"\d{4}(-\d{2}){0,2}", source.date), source
        assert source.title
    assert device.decisions
    assert device.summary.startswith(device.title)
    assert device.to_dict()["rates"]


def test_the_good_example_loads():
    device = parse_device(GOOD, "mine")
    assert device.rates["bf16", "bf16", "f32"].peak.value == 10e12
    assert device.bandwidth == 1e12
    assert device.capacity == 16e9


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'unit = "TB/s"',
            'unit = "TB"',
            r"mine.toml: dram.bandwidth.unit: unit 'TB' is not a bandwidth; allowed: GB/s",
        ),
        ('unit = "TFLOP/s"', 'unit = "W"', r"rate\[0\].peak.unit: unit 'W' is not a rate"),
        ("value = 16", "value = -16", "dram.capacity.value: -16; allowed: a positive number"),
        ("value = 16", 'value = "16"', "allowed: a positive number"),
        ("value = 16", "value = true", "allowed: a positive number"),
        ("value = 16", "value = inf", "allowed: a positive number"),
        ('vendor = "v"', 'vendor = "v"\nvendr = "x"', "mine.toml: vendr: unknown key; allowed: .*vendor"),
        ('vendor = "v"', "", "mine.toml: vendor: missing"),
        ('vendor = "v"', "vendor = 3", "vendor: 3 is not a string"),
        ('vendor = "v"', 'vendor = "v"\nvendor = "w"', "mine.toml: not TOML: Cannot overwrite a value"),
        ('kind = "gpu"', 'kind = "cpu"', "kind: 'cpu'; allowed: gpu, npu, tpu"),
        (
            'operands = ["bf16"]',
            'operands = ["bf61"]',
            r"rate\[0\].operands: unknown format 'bf61'; did you mean 'bf16'",
        ),
        ('operands = ["bf16"]', 'operands = ["bf16", "bf16"]', "bf16 x bf16 with accumulator f32 is given twice"),
        ('clock = "boost"', 'clock = "turbo"', "clock: 'turbo'; allowed: boost"),
        ('bandwidth = { value = 1, unit = "TB/s", source = "s" }', "", "dram.bandwidth: missing"),
        ('source = "s" }\n[[rate]]', 'source = "t" }\n[[rate]]', "'t' is not declared; allowed: s"),
        ('source = "s" }\n[[rate]]', 'source = "s", sauce = 1 }\n[[rate]]', "dram.bandwidth.sauce: unknown key"),
        ("[[rate]]", "[[rat]]", "rate: at least one"),
        ("[dram]", "[dram]\n3", "not TOML"),
    ],
)
def test_a_mistake_names_file_key_and_what_is_allowed(old, new, message):
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        parse_device(GOOD.replace(old, new), "mine")


def test_devices_by_name_by_file_and_as_they_are(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    mine = hwmodels.device(path)
    assert mine.name == "mine"
    assert hwmodels.device(mine) is mine
    with pytest.raises(ValueError, match="unknown device 'h200'; did you mean 'h200-sxm'"):
        hwmodels.device("h200")
    with pytest.raises(ValueError, match="no device file"):
        hwmodels.device(tmp_path / "other.toml")
