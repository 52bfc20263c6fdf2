"""PNG files out and in: the round trip, what a run writes and goes on writing, folders judged against each other."""

import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import cli
from analysis.experiment import Experiment
from analysis.folders import Asked, score
from analysis.metrics import bootstrap, evaluate, psnr
from analysis.pictures import Export, Folder, from_png, to_png
from analysis.plan import Plan
from analysis.scenes import held_out, render
from analysis.scoring import EQUAL_DB

TEXT = """
name = "small"
[quality]
prompts = 5
batch = 2
[[configuration]]
scheme = ["fp8-w8a8", "int8-w8a8"]
"""


def noisy(count: int, seed: int, shape: tuple[int, ...] = (3, 64, 64)) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *shape), dtype=np.float32)


def write(folder: Path, pictures: np.ndarray, names: list[str] | None = None) -> Path:
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        name = f"{index:06d}" if names is None else names[index]
        (folder / f"{name}.png").write_bytes(to_png(picture))
    return folder


def test_eight_bits_come_back_exactly(tmp_path: Path) -> None:
    """All 256 values, and what lies between them goes to the nearest."""
    values = np.arange(256, dtype=np.float32).reshape(1, 16, 16) / np.float32(255)
    picture = np.concatenate([values, values[:, ::-1], values[:, :, ::-1]])
    (tmp_path / "a.png").write_bytes(to_png(picture))
    again = from_png(tmp_path / "a.png")
    assert np.array_equal(again, picture)
    assert to_png(again) == to_png(picture)
    between = np.full((3, 4, 4), 100.4 / 255, dtype=np.float32)
    (tmp_path / "b.png").write_bytes(to_png(between))
    assert (from_png(tmp_path / "b.png") == np.float32(100) / np.float32(255)).all()


def test_a_run_writes_every_picture_once_and_says_what_it_shows(tmp_path: Path) -> None:
    plan = Plan(Experiment.from_dict(tomllib.loads(TEXT)), {"device": "cpu"})
    images = {row.label: noisy(row.prompts, seed) for seed, row in enumerate(plan.rows)}
    for batch in plan.batches[::2]:  # stopped half way
        Export(plan, tmp_path)(batch, images[plan.rows[batch.row].label][batch.start : batch.stop])
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    for batch in plan.batches:
        Export(plan, tmp_path)(batch, images[plan.rows[batch.row].label][batch.start : batch.stop])
    assert {path.name for path in tmp_path.iterdir()} == {"fp32", "fp32-another-seed", "fp8-w8a8", "int8-w8a8"}
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    assert 0 < len(written) < 20 == len(list(tmp_path.rglob("*.png")))
    file = tmp_path / "int8-w8a8" / "000004.png"
    with Image.open(file) as image:
        assert image.text == {"prompt": plan.captions[4], "seed": "4", "configuration": "int8-w8a8"}
    assert np.abs(from_png(file) - images["int8-w8a8"][4]).max() <= 0.5 / 255 + 1e-6  # half a step of 8 bits


def test_videos_are_frames(tmp_path: Path) -> None:
    plan = Plan(Experiment.from_dict(tomllib.loads(TEXT)), {"device": "cpu"})
    batch = next(batch for batch in plan.batches if batch.row == 0 and batch.start == 2)
    videos = noisy(2, 0, (3, 3, 8, 10))
    Export(plan, tmp_path)(batch, videos)
    found = Folder.open(tmp_path / "fp32")
    assert [path.name for path in found.files["000002"]] == ["000002-000.png", "000002-001.png", "000002-002.png"]
    read = found.read(["000003", "000002"])
    assert read.shape == (2, 3, 3, 8, 10)
    assert np.abs(read - videos[::-1]).max() <= 0.5 / 255 + 1e-6  # half a step of 8 bits


def test_folders_are_judged_as_runs_are(tmp_path: Path) -> None:
    scenes = held_out(6, 2)
    clean = render(scenes)
    rough = (clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    full, ours = write(tmp_path / "full", clean.numpy()), write(tmp_path / "ours", rough[:4].numpy())
    asked = Asked(captions=scenes.captions(), scenes=scenes)
    rows = {(Path(row.configuration).name, row.metric): row for row in score([ours], full, asked)}
    pictures = [torch.from_numpy(Folder.open(one).read(list(Folder.open(one).files))) for one in (full, ours)]
    expected = evaluate(pictures[1], scenes[:4], reference=pictures[0][:4])
    for metric in ("correct", "residual", "psnr", "ssim"):
        values = getattr(expected, metric).double()
        assert rows["ours", metric].value == pytest.approx(float(values.mean()), rel=1e-6)  # float32 over pieces
        assert (rows["ours", metric].low, rows["ours", metric].high) == pytest.approx(
            (bootstrap(values).low, bootstrap(values).high), rel=1e-6
        )
    change = expected.residual.double() - evaluate(pictures[0][:4], scenes[:4]).residual.double()
    assert rows["ours", "residual_change"].value == pytest.approx(float(change.mean()), rel=1e-6)
    assert rows["full", "correct"].value == 1
    assert {metric for folder, metric in rows if folder == "full"} == {"correct", "residual"}
    again = score([full], full)
    # torchmetrics takes variances as differences of float32 means of squares: 2^-23 off, over its constant 0.03^2
    assert {row.metric: row.value for row in again} == {"psnr": EQUAL_DB, "ssim": pytest.approx(1, abs=2e-4)}


def test_the_command_prints_a_table_json_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write(tmp_path / "one", noisy(3, 0)), write(tmp_path / "two", noisy(3, 1))
    words = ["score", str(two), "--against", str(one), "--quiet", "--csv", str(tmp_path / "s.csv")]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert f"{two}: 3 pictures" in printed
    pictures = [torch.from_numpy(Folder.open(folder).read(["000000", "000001", "000002"])) for folder in (one, two)]
    value = float(psnr(pictures[1], pictures[0]).mean())
    assert f"PSNR, dB  {value:.1f} [" in printed
    assert cli.main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["metric"], row["against"]) for row in rows] == [("psnr", str(one)), ("ssim", str(one))]
    assert rows[0]["value"] == pytest.approx(value, rel=1e-6)
    assert (tmp_path / "s.csv").read_text().startswith("folder,role,metric,unit,against,value,low,high,pictures\n")


def test_what_folders_may_not_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one", noisy(3, 0))
    small = write(tmp_path / "small", noisy(3, 0, (3, 32, 48)))
    mixed = write(tmp_path / "mixed", noisy(2, 0))
    (mixed / "000001.png").write_bytes(to_png(noisy(1, 0, (3, 32, 32))[0]))
    others = write(tmp_path / "others", noisy(2, 0), ["000000", "b"])
    cut = write(tmp_path / "cut", noisy(2, 0))
    (cut / "000001.png").write_bytes((cut / "000000.png").read_bytes()[:3000])
    glass = write(tmp_path / "glass", noisy(1, 0))
    Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(glass / "000000.png")
    (tmp_path / "empty").mkdir()
    few = tmp_path / "few.txt"
    few.write_text("a cat\n")
    for words, says in (
        ([tmp_path / "nowhere", "--against", one], f"no folder {tmp_path / 'nowhere'}"),
        ([tmp_path / "empty", "--against", one], "no PNG file in "),
        ([tmp_path, "--against", one], f"no PNG file in {tmp_path}; its folders: cut, empty, glass, mixed, one"),
        ([small, "--against", one], "000000 is 48 x 32 in "),
        ([mixed, "--against", one], "000001 is 32 x 32, 000000 is 64 x 64; all pictures must have one size"),
        ([others, "--against", one], "has no counterpart of 1 of the 2 pictures"),
        ([cut, "--against", one], "000001.png is no whole picture: "),
        ([glass, "--against", one], "000000.png: it is transparent in places; allowed: opaque pictures"),
        ([one], "nothing to measure about "),
        ([one, "--against", one, "--prompts", few], "picture 000002 has no prompt: there are 1"),
        ([one, "--unpaired"], "--unpaired says how to compare with a folder: give it with --against"),
        ([one, "--against", one, "--metrics", "psnr"], "metric 'psnr' is always measured"),
        ([one, "--against", one, "--metrics", "clipscore"], "unknown metric 'clipscore'; did you mean 'clip-score'?"),
        ([one, "--against", one, "--confidence", "95"], "--confidence must be between 0.5 and 1, not 95.0"),
    ):  # fmt: skip
        assert cli.main(["score", *map(os.fspath, words), "--quiet"]) == 2, words
        printed = capsys.readouterr().err
        assert says in printed, (says, printed)
        assert len(printed.splitlines()) == 1


def test_prompts_come_from_experiments_and_files(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(TEXT)
    plan = Plan(Experiment.load(tmp_path / "e.toml"), {})
    found = Asked.of(str(tmp_path / "e.toml"))
    assert found.captions == plan.captions
    assert found.scenes is not None
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    assert Asked.of(str(tmp_path / "p.txt")) == Asked(captions=["a cat", "a dog"])
    assert len(Asked.of("default").captions) == Experiment.load("default").quality.prompts
