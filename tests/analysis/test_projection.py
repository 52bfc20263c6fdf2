"""Sweeps of projections: every row what one estimate says, a page that stays light, mistakes in one line."""

import html
import json
import random
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

import hwmodels
from analysis import cli
from analysis.projection import Projection
from analysis.projection.page import (
    AXES,
    FASTEST,
    MOST_ROWS,
    is_bound,
    on_front,
    on_some_front,
    render,
    table,
    usable,
    worth_showing,
)
from analysis.projection.rows import ProjectedRow, project
from analysis.registry import workload
from analysis.scheme import scheme

TEXT = """
models = ["shapes-sd", "dit-xl-2-256"]
schemes = ["bf16", "fp8", "int8-w8a8+dynamic", "fp32"]
devices = ["rtx-5*", "tpu-v5p", "intel-npu4"]
batch = [1, 2]
mode = ["graph", "compiled"]
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "cards.toml"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def rows(asked: Path) -> tuple[ProjectedRow, ...]:
    return project(Projection.load(asked), workers=1)


def test_every_combination_is_there_once_in_the_order_of_the_lists(rows: tuple[ProjectedRow, ...]) -> None:
    keys = [(row.model, row.batch, row.mode, row.scheme, row.device) for row in rows]
    devices = ("rtx-5090", "tpu-v5p", "intel-npu4")
    assert keys == [
        (model, batch, mode, one, device)
        for model in ("shapes-sd", "dit-xl-2-256")
        for batch in (1, 2)
        for mode in ("graph", "compiled")
        for one in ("bf16", "fp8", "int8-w8a8+dynamic", "fp32")
        for device in devices
    ]


def test_a_row_is_what_one_estimate_says(rows: tuple[ProjectedRow, ...]) -> None:
    found = {(row.model, row.batch, row.mode, row.scheme, row.device): row for row in rows}
    for model, steps in (("shapes-sd", 20), ("dit-xl-2-256", 50)):
        work = workload(model, 4)  # two images, guided
        for name, meant in (("fp8", "fp8"), ("int8-w8a8+dynamic", scheme("int8-w8a8+dynamic"))):
            row = found[model, 2, "compiled", name, "rtx-5090"]
            one = hwmodels.estimate(work, meant, device="rtx-5090", mode="compiled")
            base = hwmodels.estimate(work, "bf16", device="rtx-5090", mode="compiled")
            assert (row.time_per_call, row.weights, row.memory) == (
                one.time_s,
                one.footprint.weights,
                one.footprint.total,
            )
            assert row.latency == one.time_s * steps
            assert row.time_per_image == row.latency / 2
            assert row.speedup == base.time_s / one.time_s
            assert row.energy_per_image == one.energy_j * steps / 2  # type: ignore[operator]
            assert (row.fits, row.bound, row.basis, row.support) == (True, one.bound, "gpu", "native")
    none = found["shapes-sd", 1, "graph", "fp32", "intel-npu4"]
    assert (none.support, none.time_per_image, none.fits) == ("not supported", None, None)
    assert "rtx-5090" in {row.device for row in rows if row.scheme == "fp32" and row.support == "native"}


def test_several_workers_give_the_same_rows(asked: Path, rows: tuple[ProjectedRow, ...], tmp_path: Path) -> None:
    few = ["--models", "shapes-sd", "--batch", "1", "2", "--workers", "2", "--out", str(tmp_path), "--quiet"]
    assert cli.main(["sweep", str(asked), *few]) == 0
    frame = pd.read_csv(tmp_path / "projections.csv", keep_default_na=False, na_values=[""])
    expected = table([row for row in rows if row.model == "shapes-sd"])
    assert list(frame.columns) == list(expected.columns)
    for column in ("device", "scheme", "batch", "support", "time_per_image", "speedup", "memory"):
        pd.testing.assert_series_equal(frame[column], expected[column], check_dtype=False, check_exact=True)


def test_the_command_prints_the_fastest_and_json_has_all(
    asked: Path, rows: tuple[ProjectedRow, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", str(asked), "--models", "shapes-sd", "--batch", "1", "--out", str(tmp_path), "--workers", "1"]
    assert cli.main([*words, "--top", "3", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-2])) <= 80
    ours = [row for row in rows if (row.model, row.batch) == ("shapes-sd", 1)]
    fastest = min(usable(ours), key=lambda row: row.time_per_image or 0)
    assert f"shapes-sd {fastest.scheme} {fastest.device} {fastest.mode}" in out
    assert out.count(" shapes-sd ") == 3
    assert f"{len(ours)} configurations" in out
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == [asdict(row) for row in ours]


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many() -> list[ProjectedRow]:
    """Ten thousand rows of ten models, made up, a third of them lower bounds, some unsupported or too large."""
    draw = random.Random(0)
    made = []
    for index in range(10_000):
        time, memory = draw.lognormvariate(0, 1), draw.lognormvariate(2, 1) * 2**30
        fixed = {"model": f"model-{index % 10}", "scheme": f"scheme-{index % 7}", "device": f"device-{index % 19}"}
        fixed |= {"batch": 1 + index % 2, "mode": "graph", "steps": 20}
        if index % 41 == 0:
            made.append(ProjectedRow(**fixed, support="not supported"))
            continue
        priced = {"time_per_call": time / 20, "time_per_image": time, "latency": time * fixed["batch"]}
        priced |= {"images_per_second": 1 / time, "speedup": 1.5, "weights": memory / 2, "memory": memory}
        priced |= {"fits": memory < 2**36, "energy_per_image": draw.lognormvariate(0, 1) if index % 3 else None}
        made.append(ProjectedRow(**fixed, **priced, support="native", basis="gpu" if index % 3 else "roofline"))
    return made


def test_what_is_shown_holds_every_front_whole(many: list[ProjectedRow]) -> None:
    shown = worth_showing(many)
    assert len(shown) <= MOST_ROWS
    ids = {id(row) for row in shown}
    for model in dict.fromkeys(row.model for row in many):
        for bounds in (False, True):
            ours = [row for row in usable(many) if row.model == model and is_bound(row) == bounds]
            for axis in AXES:
                known = [row for row in ours if getattr(row, axis) is not None]
                for index in on_front(ours, axis):
                    point = ours[index]
                    assert id(point) in ids
                    assert not any(  # nobody beats it, by the definition and not by the function
                        other.time_per_image < point.time_per_image and getattr(other, axis) <= getattr(point, axis)
                        for other in known
                    )
            best = sorted(ours, key=lambda row: row.time_per_image)[:FASTEST]
            assert {id(row) for row in best} <= ids
    assert all(row.support != "not supported" and row.fits for row in shown)
    assert len(worth_showing(many, 50)) <= 50


def question(many: list[ProjectedRow]) -> Projection:
    lists = {name: tuple(dict.fromkeys(getattr(row, name[:-1]) for row in many)) for name in ("models", "schemes")}
    return Projection(**lists, devices=("device-0",), name="cards", description="which <card>?")


def test_ten_thousand_rows_make_a_light_page_without_anything_from_outside(many: list[ProjectedRow]) -> None:
    text = render(question(many), many, "fpsim sweep cards.toml")
    assert len(text) < 900_000
    assert text.count("<tr>") < MOST_ROWS + 100
    assert "which &lt;card&gt;?" in text
    assert "10,000 configurations" in text
    assert not re.findall(r'(?:src|href)="|@import|url\(|fetch\(', text)
    unsupported = sum(row.support == "not supported" for row in many)
    assert f"{unsupported:,} are not" in text


PROBE = """<script>{
const out = { marks: document.querySelectorAll(".mark").length };
out.answer = document.querySelector(".answer h3").textContent;
const heads = [...document.querySelectorAll("#rows thead button")];
heads.find((b) => b.textContent.startsWith("memory")).click();
out.memory = [...document.querySelectorAll("#rows tbody tr")].map((row) => +row.cells[9].dataset.value);
const axis = document.querySelector("select[name=axis]");
axis.value = "energy_per_image"; axis.dispatchEvent(new Event("change", { bubbles: true }));
out.energy = document.querySelectorAll(".mark").length;
out.hollow = document.querySelectorAll('.mark circle[fill="white"]').length;
out.line = document.querySelector(".front").getAttribute("points").split(" ").length;
const device = document.querySelector("select[name=device]");
device.value = "device-4"; device.dispatchEvent(new Event("change", { bubbles: true }));
out.one = document.querySelector(".front").getAttribute("points").split(" ").length;
out.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
out.ms = performance.now();
const pre = document.createElement("pre");
pre.id = "probe"; pre.textContent = JSON.stringify(out); document.body.append(pre);
}</script></body>"""


@pytest.mark.parametrize("width", [1400, 400])
def test_in_a_real_browser(many: list[ProjectedRow], tmp_path: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here: install it to test the page's script")
    copy = tmp_path / "page.html"
    copy.write_text(render(question(many), many, "").replace("</body>", PROBE))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", f"--window-size={width},2000"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([browser, *flags, copy.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    out = json.loads(html.unescape(done.stdout.partition('<pre id="probe">')[2].partition("</pre>")[0]))
    shown = [row for row in on_some_front(many) if row.model == "model-0"]
    known = [row for row in shown if row.energy_per_image is not None]
    estimates = [row for row in usable(many) if row.model == "model-0" and not is_bound(row)]
    assert (out["marks"], out["energy"]) == (len(shown), len(known))
    assert out["hollow"] == sum(map(is_bound, known))
    assert out["line"] == len(on_front(estimates, "energy_per_image"))
    here = [row for row in estimates if row.device == "device-4"]
    assert out["one"] == len(on_front(here, "energy_per_image"))
    assert out["memory"] == sorted(out["memory"], reverse=True)
    assert out["answer"].startswith("scheme-")
    assert out["overflow"] <= 0


# --- mistakes ---------------------------------------------------------------------------------------------------------

LISTS = {"models": ["shapes-sd"], "schemes": ["fp8"], "devices": ["l4"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": ["sdxl"]}, "unknown model 'sdxl'; did you mean 'sdxl-base'"),
        ({"models": ["x*"]}, "no model matches 'x*'"),
        ({"schemes": ["fp88"]}, "unknown scheme 'fp88'; did you mean 'fp8'"),
        ({"schemes": ["int8-w8a8+dynamics"]}, "did you mean 'dynamic'"),
        ({"schemes": ["nowhere.toml"]}, "No such file or directory: nowhere.toml"),
        ({"devices": ["l5"]}, "unknown device 'l5'"),
        ({"devices": []}, "devices must list at least one"),
        ({"devices": "l4"}, "devices must be a list, not 'l4'"),
        ({"batch": [0]}, "batch must be at least 1, not 0"),
        ({"batch": [1, 2, 3], "models": ["*"]}, "configurations are more than"),
        ({"mode": ["fast"]}, "unknown mode 'fast'"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"estimator": "rooflin"}, "unknown estimator 'rooflin'; did you mean 'roofline'"),
        ({"baseline": "bf61"}, "unknown scheme 'bf61'; did you mean 'bf16'"),
        ({"device": ["l4"]}, "unknown key 'device'; did you mean 'devices'"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_sweep_is_one_line(
    change: dict[str, object],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("analysis.projection.LARGEST", 40)
    path = tmp_path / "wrong.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in (LISTS | change).items()))
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_lists_that_are_missing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "--models", "shapes-sd", "--devices", "l4"]) == 2
    assert "give --schemes, or a .toml file" in capsys.readouterr().err
    assert cli.main(["sweep", str(tmp_path / "none.toml")]) == 2
    assert "no sweep file" in capsys.readouterr().err
    (tmp_path / "junk.toml").write_text("x = " + "[" * 20_000)
    assert cli.main(["sweep", str(tmp_path / "junk.toml")]) == 2
    assert "is not TOML" in capsys.readouterr().err


def test_parquet_without_its_package_is_said_before_anything_is_priced(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    monkeypatch.setattr("analysis.projection.rows.project", None)  # calling it would be a TypeError
    assert cli.main(["sweep", str(asked), "--parquet", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "fpsim: Parquet files need the package 'pyarrow', which is missing; pip install 'fpsim[parquet]'\n"
    )


def test_parquet_has_the_rows_of_the_csv(rows: tuple[ProjectedRow, ...], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="no pyarrow here: pip install 'fpsim[parquet]'")
    from analysis.projection.page import parquet_bytes

    (tmp_path / "rows.parquet").write_bytes(parquet_bytes(table(rows)))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "rows.parquet"), table(rows), check_dtype=False)
