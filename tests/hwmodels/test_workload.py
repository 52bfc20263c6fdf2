"""Workloads: sums, and JSON that comes back as it went."""

import pytest

from hwmodels import Attention, Gemm, Norm, Workload

WORK = Workload(
    name="toy",
    ops=(
        Gemm(path="a", m=2, n=3, k=4, count=5),
        Gemm(path="b", m=2, n=3, k=4),
        Attention(path="c", heads=2, queries=3, keys=3, head_dim=4),
        Norm(path="d", rows=2, columns=3, affine=6),
    ),
    parameters=100,
    live_elements=7,
    notes=("a note",),
)


def test_json_round_trip_gives_an_equal_workload(tmp_path):
    assert Workload.from_json(WORK.to_json()) == WORK
    WORK.save(tmp_path / "w.json")
    assert Workload.load(tmp_path / "w.json") == WORK


def test_totals_multiply_by_count():
    totals = WORK.totals()
    assert totals["gemm"].operations == 6
    assert totals["gemm"].macs == 6 * 24
    assert totals["gemm"].parameters == 2 * 12
    assert WORK.macs == 6 * 24 + 2 * 2 * 3 * 3 * 4
    assert sum(t.macs for t in totals.values()) == WORK.macs
    assert WORK.times(3).macs == 3 * WORK.macs
    assert WORK.times(3).parameters == WORK.parameters


def test_rows_carry_path_and_shape():
    row = WORK.rows()[0]
    assert (row["path"], row["kind"], row["shape"], row["count"], row["macs"]) == ("a", "gemm", "2 x 3 x 4", 5, 24)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a workload: .* line 1"),
        ("[]", "schema 'list'"),
        ('{"schema": "other/1"}', "schema 'other/1'; allowed: 'fpsim-workload/1'"),
        ('{"schema": "fpsim-workload/1", "name": "x"}', "ops missing"),
        ('{"schema": "fpsim-workload/1", "name": "x", "ops": [3]}', "op 0: expected an object"),
        (
            '{"schema": "fpsim-workload/1", "name": "x", "ops": [{"op": "Gemm", "m": 0, "n": 1, "k": 1}]}',
            "op 0: Gemm: m=0",
        ),
    ],
)
def test_malformed_json_says_what_is_wrong(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Workload.from_json(text)
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json"):
        Workload.load(path)
