"""Specs of layers as plain values: engines by name, others by their parts."""

import json

import pytest

import fpsim
from fpsim.nn.specs import from_dict, to_dict

SPECS = [
    fpsim.engine("hopper/wgmma", a="e4m3", b="e4m3", out="f32"),
    fpsim.MatmulSpec("int8", "int8", fpsim.IntegerAccumulator(16, "saturate"), engine="int16-saturate"),
    fpsim.MatmulSpec("uint8", "int4", fpsim.IntegerAccumulator(20)),
    fpsim.MatmulSpec("e4m3", "e2m1", fpsim.FusedDot(None, None, "rne")),
    fpsim.MatmulSpec("e4m3", "e4m3", fpsim.SequentialFma("f16", "rz", overflow="saturate"), out="f32"),
    fpsim.MatmulSpec(
        "int8", "int8", fpsim.Promoted(fpsim.IntegerAccumulator(16), every=64, outer=fpsim.IntegerAccumulator(22))
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_there_and_back_through_json(spec: fpsim.MatmulSpec) -> None:
    made = from_dict(json.loads(json.dumps(to_dict(spec))))
    assert made == spec
    assert made.engine == spec.engine


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"accumulator": {"kind": "IntegerAcumulator"}}, ValueError, "did you mean 'IntegerAccumulator'"),
        ({"accumulator": "os.system"}, ValueError, "unknown kind of accumulator 'os.system'"),
        ({"accumulator": {"kind": "IntegerAccumulator", "colour": 1}}, TypeError, "colour"),
        ({"accumulator": {"kind": "IntegerAccumulator", "bits": 99}}, ValueError, "2 to 63"),
        ({"colour": 1}, TypeError, "colour"),
    ],
)
def test_what_nobody_wrote_is_refused(change: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        from_dict({**to_dict(SPECS[1]), **change})


def test_an_epilogue_needs_a_name() -> None:
    free = fpsim.MatmulSpec("int8", "int8", fpsim.IntegerAccumulator(32), epilogue=fpsim.Epilogue())
    with pytest.raises(ValueError, match="epilogue"):
        to_dict(free)
