"""Formats a device lacks: widened without changing a value, or refused."""

import pytest

import fpsim
from fpsim.formats import Format
from hwmodels import DEVICES, SHORTHANDS, Precision, UnsupportedFormat, execution
from hwmodels import device as find_device
from hwmodels.fallback import RENOUNCES, RESCALED, holds

SMALL = [row for row in fpsim.FORMATS.values() if isinstance(row, Format) and row.bits <= 8 and row.kind != "codebook"]
HOSTS = [
    fpsim.format(name)
    for name in ("bf16", "f16", "e4m3", "e5m2", "e3m4", "int8", "uint8", "e2m3", "e4m3fnuz", "e5m2fnuz")
]


def _values(row: Format) -> set[float]:
    """All finite values, from the format's own reading of its codes."""
    if row.kind == "int":
        return {v * 2.0**-row.bias for v in range(int(row.min * 2**row.bias), int(row.max * 2**row.bias) + 1)}
    positive = {row.magnitude(code) for code in range(row.max_code + 1)}
    return positive | {-v for v in positive} if row.signed else positive


VALUES = {row.name: _values(row) for row in [*SMALL, *HOSTS]}


@pytest.mark.parametrize("host", HOSTS, ids=lambda row: row.name)
def test_holds_is_the_inclusion_of_value_sets(host):
    for guest in SMALL:
        if host.name in RESCALED.get(guest.name, ()):
            assert VALUES[guest.name] <= {2 * v for v in VALUES[host.name]}
        elif holds(host.name, guest.name):
            assert VALUES[guest.name] <= VALUES[host.name], (host.name, guest.name)
        elif guest.kind == host.kind and not (guest.kind == "int" and guest.bias != host.bias):
            # the other direction holds within a kind: nothing that fits is refused
            assert not VALUES[guest.name] <= VALUES[host.name], (host.name, guest.name)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("shorthand", SHORTHANDS)
def test_every_cell_is_a_rate_a_named_fallback_or_a_refusal(name, shorthand):
    device, precision = find_device(name), SHORTHANDS[shorthand].linear
    try:
        found = execution(precision, device)
    except UnsupportedFormat:
        assert not any(
            holds(rate.activation, precision.operands()[0]) and holds(rate.weight, precision.operands()[1])
            for rate in device.rates.values()
        )
        return
    assert found.rate in device.rates.values()
    assert found.native or found.note
    if found.exact:
        assert holds(found.rate.activation, precision.operands()[0])
        assert holds(found.rate.weight, precision.operands()[1])
    else:
        assert RENOUNCES.keys() & set(precision.operands())


def test_fallbacks_widen_as_stated():
    h200, npu, rtx = (find_device(name) for name in ("h200-sxm", "intel-npu4", "rtx-4090"))
    assert execution(SHORTHANDS["nvfp4"].linear, h200).rate.activation in ("bf16", "f16")
    assert execution(SHORTHANDS["w4a8-fp"].linear, h200).rate.key == ("e4m3", "e4m3", "f32")
    assert execution(SHORTHANDS["fp8"].linear, npu).rate.activation == "f16"
    assert "e4m3 unsupported" in execution(SHORTHANDS["fp8"].linear, npu).note
    lossy = execution(Precision(), npu)
    assert lossy.rate.activation == "f16"
    assert not lossy.exact
    with pytest.raises(UnsupportedFormat, match=r"intel-npu4 has no rate for f32 .* choose one of those"):
        execution(SHORTHANDS["fp32"].linear, npu)
    fast = execution(Precision(weight="e4m3", activation="e4m3", accumulator="f16"), rtx)
    slow = execution(Precision(weight="e4m3", activation="e4m3", accumulator="f32"), rtx)
    assert fast.native
    assert slow.native
    assert fast.rate.peak.value == 2 * slow.rate.peak.value


def test_a_narrow_accumulator_is_never_used_unasked():
    for name in DEVICES:
        for rate in find_device(name).rates.values():
            asked = Precision(weight=rate.weight, activation=rate.activation)
            assert execution(asked, find_device(name)).rate.accumulator in ("f32", "int32", "f64")
