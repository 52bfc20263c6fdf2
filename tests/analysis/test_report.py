"""The page: whole in one file, true to the numbers it was given, alive in a browser."""

import base64
import html
import io
import json
import math
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis import report
from analysis.artifacts import Run, comma_separated, write_results
from analysis.experiment import Experiment
from analysis.layer_times import LONGEST, layer_times
from analysis.plan import NOISE_FLOOR, REFERENCE, Plan
from analysis.pricing import price
from analysis.scoring import QualityRow, unseen, verdicts
from analysis.store import RunDirectory

EXPERIMENT = {
    "name": "page",
    "description": "quality <b>beside</b> cost",
    "quality": {"prompts": 3},
    "configuration": [
        {"scheme": ["fp32", "fp8-w8a8", "int4-w4a8"]},
        {"scheme": "fp8-w8a8", "engine": "hopper/wgmma", "prompts": 2},
    ],
    "cost": {"devices": ["h200-sxm", "intel-npu4"], "models": ["shapes-sd", "dit-xl-2-256"]},
}

#: twelve layers of the pipeline: two more than a page shows
PATHS = [f"down_blocks.0.attentions.0.transformer_blocks.0.attn{i}.to_{which}" for i in (1, 2) for which in "qkv"]
PATHS += [f"up_blocks.{i}.resnets.{j}.conv1" for i in (0, 1) for j in (0, 1)] + ["conv_in", "mid_block.resnets.0.conv2"]
LAYERS = [
    {
        "path": path,
        "kind": "Conv2d" if "conv" in path else "Linear",
        "weight": "int4 per output channel",
        "activation": None if path == "conv_in" else "int8 per tensor",
        "engine": None,
        "weights": 1000 * (index + 1),
        "zeros_before": 0.0,
        "zeros_after": index / 64,
        "smoothing": None,
    }
    for index, path in enumerate(PATHS)
]

#: configuration -> (change of prompts obeyed, change of residual, PSNR), each (value, low, high)
COMPARED = {
    NOISE_FLOOR: ((0.0, -0.02, 0.02), (0.0, -1e-4, 1e-4), (31.5, 30.5, 32.5)),
    "fp8-w8a8": ((-0.0156, -0.0469, 0.0), (1e-5, -1e-5, 3e-5), (48.25, 47.0, 49.5)),
    "int4-w4a8": ((-0.25, -0.36, -0.14), (0.004, 0.003, 0.005), (30.0, 29.0, 31.0)),
    "fp8-w8a8 exact on hopper/wgmma": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (47.5, 46.0, 49.0)),
}


def quality(plan: Plan) -> tuple[QualityRow, ...]:
    found = []
    for row in plan.rows:
        metrics = {"correct": (0.9, 0.8, 1.0), "residual": (0.002, 0.001, 0.003)}
        if row.label in COMPARED:
            names = ("correct_change", "residual_change", "psnr")
            metrics |= dict(zip(names, COMPARED[row.label], strict=True)) | {"ssim": (0.99, 0.98, 1.0)}
        for metric, (value, low, high) in metrics.items():
            found.append(
                QualityRow(
                    configuration=row.label,
                    role=row.role,
                    scheme=row.configuration.scheme,
                    method="rtn",
                    engine=row.configuration.engine or "",
                    metric=metric,
                    unit="",
                    against="" if metric in ("correct", "residual") else REFERENCE,
                    value=value,
                    low=low,
                    high=high,
                    prompts=row.prompts,
                )
            )
    last = found[-1]
    return (*found, replace(last, metric="psnr_to_shortcut", against="fp8-w8a8", value=61.25, low=60.0, high=62.5))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    plan = Plan(Experiment.from_dict(EXPERIMENT), {"fpsim": "0", "checkpoint": "c0ffee"})
    root = tmp_path_factory.mktemp("runs")
    directory = RunDirectory.open(root, name="page", key=plan.key, manifest={"experiment": plan.experiment.to_dict()})
    random = np.random.default_rng(0)
    images = {row.label: random.random((row.prompts, 3, 64, 64), dtype=np.float32) for row in plan.rows}
    made = Run(
        path=directory.path,
        experiment=plan.experiment,
        key=plan.key,
        quality=quality(plan),
        prompts=(),
        costs=price(plan),
        layers={"int4-w4a8": LAYERS},
        unused_rules={"fp8-w8a8": ["*.nowhere"]},
        seconds={"measuring": 61.0},
    )
    write_results(made, plan, images, "fpsim whatif page.toml")
    report.write_page(made.path)
    return made


class Page(HTMLParser):
    """Addresses, tables as rows of cell texts, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" not in self._open and "style" not in self._open:
            self.text += data
            if "td" in self._open or "th" in self._open:
                self.tables[-1][-1][-1] += data.strip() + " "


@pytest.fixture(scope="module")
def page(run: Run) -> Page:
    return Page(run.page.read_text())


def table(page: Page, head: str) -> dict[str, list[str]]:
    """Rows of the table whose head has a cell `head`, by their first words."""
    found = next(rows for rows in page.tables if any(cell.strip().startswith(head) for cell in rows[0]))
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in found[1:]}


def test_nothing_comes_from_outside(run: Run, page: Page) -> None:
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    text = run.page.read_text()
    assert "@import" not in text
    assert "url(" not in text
    assert "fetch(" not in text


def test_names_are_escaped(run: Run) -> None:
    assert "quality &lt;b&gt;beside&lt;/b&gt; cost" in run.page.read_text()


def test_every_number_stands_with_its_interval(page: Page) -> None:
    rows = table(page, "PSNR")
    fp8 = next(cells for name, cells in rows.items() if name.startswith("fp8-w8a8 all"))
    assert fp8[0] == "90.0 80.0 to 100.0"
    assert fp8[1] == "-1.6 -4.7 to +0.0"
    assert fp8[2] == "48.2 47.0 to 49.5"
    assert fp8[-2:] == ["3", "not told apart"]
    assert next(cells for name, cells in rows.items() if name.startswith("int4"))[-1] == "worse"
    assert next(cells for name, cells in rows.items() if name.startswith(NOISE_FLOOR))[2] == "31.5 30.5 to 32.5"


def test_headline_says_what_cannot_be_told_apart_and_how_sure_that_is(page: Page) -> None:
    words = " ".join(page.text.split())
    assert "3 prompts cannot tell fp8-w8a8 from full precision." in words
    assert "worse: prompts obeyed and residual" in words
    assert "int4-w4a8: told from full precision by the prompts obeyed." in words
    assert "+200.0 % (+150.0 to +250.0)" in words  # residual of int4: 0.004 (0.003 to 0.005) on top of 0.002
    assert "another seed has a PSNR of 31.5 [30.5, 32.5] dB" in words
    assert "against fp8-w8a8 on the same 2 prompts: PSNR 61.2 (60.0 to 62.5) dB" in words


def test_cost_cells_are_never_empty(page: Page) -> None:
    rows = table(page, "weights")
    assert [name.split()[0] for name in rows] == ["bf16", "fp32", "fp8-w8a8", "int4-w4a8"]
    assert all(cell for cells in rows.values() for cell in cells)
    assert rows["fp32"][2].startswith("not supported")
    assert "1.00×" in rows["bf16 what speed-ups refer to"][1]
    assert "intel-npu4: has no rate for f32" in page.text
    assert "int4 weights widened to int8" in page.text


def test_layers_that_take_longest_stand_with_what_became_of_them(run: Run, page: Page) -> None:
    import hwmodels
    from analysis.registry import workload
    from analysis.scheme import scheme

    entry = json.loads((run.path / "results.json").read_text())["layer_times"]
    assert [one["configuration"] for one in entry] == ["int4-w4a8"]  # of the others nobody knows the layers
    [found] = entry
    devices = EXPERIMENT["cost"]["devices"]  # type: ignore[index]
    works = workload("shapes-sd", 2)
    seconds, calls = [], []
    for device in devices:
        costs = hwmodels.estimate(works, scheme("int4-w4a8"), device=device, mode="graph").breakdown.rows()
        seconds.append({path: math.fsum(row.time_s for row in costs if row.path == path) for path in PATHS})
        calls.append(math.fsum(row.time_s for row in costs))
    share = {path: max(one[path] / call for one, call in zip(seconds, calls, strict=True)) for path in PATHS}
    assert min(share.values()) > 0
    kept = [layer["path"] for layer in found["shown"]]
    assert len(kept) == LONGEST < len(PATHS) == found["layers"]
    assert max(share[path] for path in PATHS if path not in kept) <= min(share[path] for path in kept)
    for layer in found["shown"]:
        assert layer["times"] == pytest.approx([one[layer["path"]] for one in seconds], rel=1e-12)  # order of a sum
    for index, call in enumerate(calls):
        assert math.fsum(row["times"][index] for row in found["kinds"]) == pytest.approx(call, rel=1e-12)
    paths = table(page, "zeros, %")  # which may break at dots and underscores
    rows = {name.replace(". ", ".").replace("_ ", "_"): cells for name, cells in paths.items()}
    assert len(rows) == LONGEST
    *_, weights, zeros, weight, activation = rows["mid_block.resnets.0.conv2 Conv2d"]
    assert (weights, zeros) == ("12.0 k", "17.2 0.0 before")
    assert (weight, activation) == ("int4 per output channel", "int8 per tensor")
    assert rows["conv_in Conv2d"][-1] == "not quantized"
    shares = [float(cells[1].split()[-2]) for cells in table(page, "kind of kernel").values()]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))  # each is rounded to a tenth


def test_layers_are_left_out_where_the_pipeline_is_not_priced(run: Run) -> None:
    cost = {"devices": ["h200-sxm"], "models": ["dit-xl-2-256"]}
    plan = Plan(Experiment.from_dict(EXPERIMENT | {"cost": cost}), {})
    assert layer_times(plan, run.layers) == []
    results = json.loads((run.path / "results.json").read_text())
    results["layer_times"] = []
    pictures = dict.fromkeys(results["figures"], "data:,")
    assert "Layer by layer" not in report.render(results, pictures)
    del results["layer_times"]  # as runs stored it before
    assert "Layer by layer" not in report.render(results, pictures)


def test_a_device_without_the_formats_says_so_for_every_layer(run: Run) -> None:
    plan = Plan(Experiment.from_dict(EXPERIMENT), {})
    [found] = layer_times(plan, {"fp32": LAYERS})
    assert [row["times"][1] for row in found["shown"]] == [None] * LONGEST
    assert all(row["times"][0] > 0 for row in found["shown"])
    results = json.loads((run.path / "results.json").read_text()) | {"layer_times": [found]}
    page = Page(report.render(results, dict.fromkeys(results["figures"], "data:,")))
    assert {cells[1] for cells in table(page, "zeros, %").values()} == {"not supported"}


def test_warnings_name_unused_rules_small_samples_and_fallbacks(page: Page) -> None:
    assert "pattern '*.nowhere' decides no layer" in page.text
    assert "3 prompts are few" in page.text
    assert "only 2 prompts" in page.text
    assert "intel-npu4: fp32 not supported" in page.text
    assert "int4-w4a8 partly or wholly by fallback" in page.text


def test_provenance_is_complete(run: Run, page: Page) -> None:
    assert all(row.basis in page.text for row in run.costs)
    for part in (run.key, "c0ffee", "fpsim whatif page.toml", "1 min 1 s", "H200"):
        assert part in page.text
    words = page.text
    assert "measured" in words
    assert "projected" in words
    assert "datasheet" in words


def test_the_pictures_are_in_it(run: Run, page: Page) -> None:
    pictures = 3 * 4 + 2  # three prompts of four rows, two of the emulated one
    fronts = 2
    assert len(page.addresses) == pictures + fronts
    assert "not measured" in page.text
    assert (run.path / "grid.png").stat().st_size > 10_000


def test_csv_files_are_tidy(run: Run) -> None:
    import pandas as pd

    measured, projected = pd.read_csv(run.path / "results.csv"), pd.read_csv(run.path / "costs.csv")
    assert len(measured) == len(run.quality)
    assert len(projected) == len(run.costs)
    assert not measured.duplicated(["configuration", "metric"]).any()
    assert not projected.duplicated(["configuration", "model", "device"]).any()
    assert set(measured["kind"]) == {"measured"}
    assert projected.loc[projected["support"] == "not supported", "time_per_image"].isna().all()
    frame = run.table()
    assert frame.attrs["run"] == str(run.path)
    assert set(frame["kind"].str.split().str[0]) == {"measured", "projected"}
    assert comma_separated([]) == b""


def test_the_page_is_written_again_from_what_is_stored(run: Run) -> None:
    before = run.page.read_bytes()
    run.page.unlink()
    assert report.write_page(run.path) == run.page
    assert run.page.read_bytes() == before


def test_a_damaged_or_unfinished_run_says_what_to_do(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "pareto-dit-xl-2-256-h200-sxm.png").unlink()
    with pytest.raises(ValueError, match=r"h200-sxm\.png is gone; run `fpsim whatif` again"):
        report.write_page(copy)
    results = copy / "results.json"
    results.write_text(results.read_text().replace("48.25", "58.25"))
    with pytest.raises(ValueError, match=r"does not match its hash; run `fpsim whatif` again .*or delete"):
        report.write_page(copy)
    results.unlink()
    with pytest.raises(ValueError, match="is not finished"):
        report.write_page(copy)


def test_a_sample_without_a_failure_is_not_certainty() -> None:
    assert unseen(64, 0.95) == pytest.approx(3 / 64, rel=0.05)  # the rule of three
    assert (1 - unseen(64, 0.95)) ** 64 == pytest.approx(0.05)


def test_verdicts_follow_the_intervals(run: Run) -> None:
    plan = Plan(run.experiment, {})
    found = verdicts(plan, run.quality)
    assert found["fp8-w8a8"].indistinguishable
    assert found["fp8-w8a8"].resolution == max(0.0469, unseen(3, 0.95))
    assert found["int4-w4a8"].told_apart == ("correct_change", "residual_change")
    assert found[NOISE_FLOOR].indistinguishable


PROBE = """<script>{
const out = {};
const name = (row) => row.cells[0].firstChild.textContent;
const rows = () => [...document.querySelectorAll("#quality tbody tr")].map(name);
out.marks = document.querySelectorAll(".explore .mark").length;
out.answer = document.querySelector(".answer h3").textContent;
const heads = [...document.querySelectorAll("#quality thead button")];
const head = heads.find((b) => b.textContent.startsWith("PSNR"));
head.click(); out.down = rows(); head.click(); out.up = rows();
const longest = document.querySelector("#layers details");
out.closed = !longest.open; longest.open = true;
const zeros = [...longest.querySelectorAll("button")].find((b) => b.textContent.startsWith("zeros"));
zeros.click();
out.zeros = [...longest.querySelector("tbody").rows].map((row) => +row.cells[4].dataset.value);
document.querySelector("select[name=device]").value = "intel-npu4";
document.querySelector(".explore").dispatchEvent(new Event("change"));
out.npu = document.querySelectorAll(".explore .mark").length;
document.querySelector(".explore .mark:last-child").dispatchEvent(new Event("focus"));
out.focused = document.querySelector(".answer h3").textContent;
const gain = document.getElementById("difference");
const image = document.querySelector("table.grid tbody tr:nth-child(3) img");
const before = image.src; gain.value = "4"; gain.dispatchEvent(new Event("change"));
setTimeout(() => { out.difference = [...pixels(image).image.data];
  gain.value = "0"; gain.dispatchEvent(new Event("change")); out.back = image.src === before;
  out.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const pre = document.createElement("pre");
  pre.id = "probe"; pre.textContent = JSON.stringify(out); document.body.append(pre);
}, 300);
}</script></body>"""


def difference(run: Run, *, row: int, gain: int) -> np.ndarray:
    """|picture - full precision| x gain of the first prompt, cut off at 255: (64, 64, 3), from the stored PNGs."""
    rows = json.loads((run.path / "results.json").read_text())["grid"]["rows"]
    ours, full = (np.asarray(Image.open(io.BytesIO(base64.b64decode(rows[i]["images"][0])))) for i in (row, 0))
    found: np.ndarray = np.minimum(np.abs(ours.astype(int) - full) * gain, 255)
    return found[..., :3]


@pytest.mark.parametrize("width", [1400, 400])
def test_in_a_real_browser(run: Run, tmp_path: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here: install it to test the page's script")
    copy = tmp_path / "page.html"
    copy.write_text(run.page.read_text().replace("</body>", PROBE))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--virtual-time-budget=5000",
    ]
    flags += [f"--window-size={width},2000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([browser, *flags, copy.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    _, found, rest = done.stdout.partition('<pre id="probe">')
    assert found, done.stderr[-2000:]
    out = json.loads(html.unescape(rest.partition("</pre>")[0]))
    configurations = ["fp8-w8a8", "fp8-w8a8 exact on hopper/wgmma", NOISE_FLOOR, "int4-w4a8"]
    assert out["down"] == [*configurations, REFERENCE]
    assert out["up"] == [*configurations[::-1], REFERENCE]
    assert (out["marks"], out["npu"]) == (2, 2)
    assert out["answer"] == "fp8-w8a8"
    assert out["focused"] == "int4-w4a8"
    assert out["closed"]
    assert out["zeros"] == sorted(out["zeros"], reverse=True)
    assert len(out["zeros"]) == LONGEST
    assert np.array_equal(np.reshape(out["difference"], (64, 64, 4))[..., :3], difference(run, row=2, gain=4))
    assert out["back"]
    assert out["overflow"] <= 0  # nothing pushes the page wider than the screen
