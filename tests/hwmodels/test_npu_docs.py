"""docs/npu.md says what the code says: its generated blocks are regenerated and compared."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _update():
    spec = importlib.util.spec_from_file_location("update_npu", ROOT / "docs" / "update_npu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quick_tables_are_up_to_date():
    update = _update()
    text = update.PAGE.read_text(encoding="utf-8")
    assert update.page(text, update.QUICK) == text, "run python docs/update_npu.py"
    with pytest.raises(ValueError, match=r"npu\.md has 0 blocks <!-- area -->"):
        update.page("", ["area"])


@pytest.mark.slow
def test_all_tables_are_up_to_date_and_the_text_agrees_with_the_sanity_point():
    update = _update()
    text = update.PAGE.read_text(encoding="utf-8")
    assert update.page(text) == text, "run python docs/update_npu.py"
    errors = [int(found) for found in re.findall(r"([+-]\d+)% \|$", update.sanity(), re.MULTILINE)]
    as_submitted, one_kernel = errors[:3], errors[3:]
    assert -15 <= as_submitted[0] < 0, "the page says that the defaults are within 15 %, on the slow side"
    assert all(error < -15 for error in as_submitted[1:]), "and that the other two are not"
    assert all(error > 15 for error in one_kernel), "and that one kernel would be too fast"


def test_the_recorded_benchmark_compares_whole_reports():
    import json

    rows = json.loads(_update().RECORD.read_text(encoding="utf-8"))["rows"]
    assert {row["dataflow"] for row in rows} == {"ws", "os", "is"}
    assert {row["mode"] for row in rows} == {"CALC", "USER"}
    assert all(row["same"] for row in rows)
    assert min(row["closed"] for row in rows) >= 10_000
    assert min(row["replay"] for row in rows) >= 300


def test_the_recorded_speed_of_the_own_model():
    import json

    found = json.loads(_update().OWN.read_text(encoding="utf-8"))
    assert {row["model"].partition("-")[0] for row in found["calls"]} == {"sdxl", "flux1"}
    assert max(row["first"] for row in found["calls"]) < 1
    assert min(found["layers"]["folds"], found["layers"]["folds and tiles"]) >= 100_000
