"""Costs: each cell is what `hwmodels` says, fallbacks are named, nothing is empty."""

import pytest

import hwmodels
from analysis import cards, trace
from analysis.experiment import Experiment
from analysis.plan import Plan
from analysis.pricing import FALLBACK, NATIVE, NOT_SUPPORTED, CostRow, price, rows_per_call
from analysis.scheme import scheme


def plan(models: list[str], guidance: float = 3.0) -> Plan:
    return Plan(
        Experiment.from_dict(
            {
                "name": "priced",
                "quality": {"prompts": 4, "steps": 10, "guidance": guidance},
                "configuration": [
                    {"scheme": ["fp32", "fp8-w8a8", "int4-w4a8"]},
                    {"scheme": "fp8-w8a8", "engine": "hopper/wgmma"},
                    {"scheme": "mxfp8"},
                ],
                "cost": {"devices": ["h200-sxm", "intel-npu4"], "models": models},
            }
        ),
        {},
    )


@pytest.fixture(scope="module")
def costs() -> tuple[CostRow, ...]:
    return price(plan(["sd15"]))


def cell(costs: tuple[CostRow, ...], configuration: str, device: str) -> CostRow:
    (found,) = [row for row in costs if (row.configuration, row.device) == (configuration, device)]
    return found


def test_one_row_per_scheme_and_device_the_engine_does_not_price(costs: tuple[CostRow, ...]) -> None:
    names = ["bf16", "fp32", "fp8-w8a8", "int4-w4a8", "mxfp8"]
    assert [row.configuration for row in costs] == names * 2
    assert {row.device for row in costs} == {"h200-sxm", "intel-npu4"}


def test_a_cell_is_the_estimate_times_the_steps(costs: tuple[CostRow, ...]) -> None:
    cost = plan([]).experiment.cost
    expected = hwmodels.estimate(
        trace("sd15", batch=2), scheme("fp8-w8a8"), device="h200-sxm", mode="graph", model=cost.estimator
    )
    found = cell(costs, "fp8-w8a8", "h200-sxm")
    assert found.time_per_call == expected.time_s
    assert found.time_per_image == 10 * expected.time_s
    assert found.weights == expected.footprint.weights
    baseline = cell(costs, "bf16", "h200-sxm").time_per_call
    assert baseline is not None
    assert found.speedup == baseline / expected.time_s
    assert found.kind == f"projected ({expected.model})"
    assert found.basis.startswith(f"{expected.model}:")


def test_support_is_named_never_empty(costs: tuple[CostRow, ...]) -> None:
    assert cell(costs, "fp8-w8a8", "h200-sxm").support == NATIVE
    fallback = cell(costs, "int4-w4a8", "h200-sxm")
    assert fallback.support == FALLBACK
    assert "int4" in fallback.note
    assert "int8" in fallback.note
    missing = cell(costs, "fp32", "intel-npu4")
    assert (missing.support, missing.time_per_image, missing.speedup) == (NOT_SUPPORTED, None, None)
    assert "no rate for f32" in missing.note


def test_guidance_doubles_the_rows_unless_it_is_distilled_in() -> None:
    experiment = plan([]).experiment
    assert rows_per_call(experiment, "sd15") == 2
    assert rows_per_call(experiment, "flux1-dev") == 1
    assert rows_per_call(plan([], guidance=1.0).experiment, "sd15") == 1


@pytest.mark.parametrize("name", sorted(hwmodels.DEVICES))
def test_device_cards_carry_a_source_for_every_figure(name: str) -> None:
    card = cards.device_card(name)
    keys = {row["key"] for row in card["sources"]}
    assert card["rates"]
    for row in card["figures"] + card["rates"]:
        assert row["source"] in keys
        assert row["text"]
