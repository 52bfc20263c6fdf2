"""Pipelines of other people, from a directory or the hub: images and videos, measured, written as PNG, and priced.

Workers run in this process here; that they run elsewhere is tested with the embedded pipelines.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pandas as pd
import pytest
import torch
import whole_pipelines

import analysis
from analysis import cli
from analysis.experiment import Experiment
from analysis.launch import equal_shares
from analysis.metrics import evaluate, psnr
from analysis.metrics.video import flicker, steps, temporal_psnr
from analysis.pictures import Folder
from analysis.plan import NOISE_FLOOR, REFERENCE
from analysis.runner import calibrate, load, quantize, report_of, sample
from analysis.runner.load import located
from analysis.runner.sample import sized
from analysis.sampler import Tasks
from analysis.store import file_digest

PROMPTS = 'caption,noise\na cat,3\n"a dog, asleep",5\na house,7\n'
RUN = """
name = "own"
[quality]
pipeline = "{pipeline}"
prompts = {{ file = "own.csv", column = "caption", seeds = "noise", first = 2 }}
calibration = 1
steps = 1
batch = 2
{size}
[[configuration]]
scheme = ["fp8-w8a8", "int4-w4a8"]
[cost]
devices = ["h200-sxm"]
models = ["{pipeline}"]
"""


class Here:
    """In place of worker processes: the same tasks, in this one."""

    def __init__(self, module: str, arguments: Sequence[str], *_: object) -> None:
        self.tasks = Tasks(Path(arguments[0]))

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, tasks: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, task in enumerate(tasks):
            self.tasks.perform(task)
            yield index, {"done": True}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.workers.Workers", Here)


def saved(name: str, folder: Path) -> Path:
    getattr(whole_pipelines, name)().save_pretrained(folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("sd3", []),
        pytest.param("sdxl", [], marks=pytest.mark.slow),
        pytest.param("flux", ["--height", "16", "--width", "16"], marks=pytest.mark.slow),
    ],
    ids=["sd3", "sdxl", "flux"],
)
@pytest.mark.usefixtures("here")
def test_whatif_on_a_pipelines_directory(
    name: str, side: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    folder = saved(name, tmp_path)
    words = [str(folder), "--prompts", str(tmp_path / "p.txt"), "--steps", "1", "--images", str(tmp_path / "png")]
    assert cli.main(["whatif", *words, *side, "--runs", str(tmp_path / "runs"), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = pd.DataFrame(found["results"])
    plain = [row.label for row in Experiment.load("default").configuration if row.engine is None]
    measured = rows[rows.metric == "psnr"].set_index("configuration")["value"]
    assert set(measured.index) == {*plain, NOISE_FLOOR} - {REFERENCE}
    assert measured["fp8-w8a8"] > measured[NOISE_FLOOR]
    assert not set(rows.metric) & {"correct", "residual", "frechet", "recovery"}
    times = rows[(rows.metric == "time_per_image") & (rows.model == str(folder))]
    assert (times.value.dropna() > 0).all()
    assert set(times.configuration) >= set(plain) - {"fp32"}
    [run] = (tmp_path / "png").iterdir()
    assert sorted(path.name for path in (run / "fp8-w8a8").iterdir()) == ["000000.png", "000001.png"]
    assert Folder.open(run / "fp32").read(["000000", "000001"]).shape == (2, 3, 16, 16)
    page = Path(found["page"]).read_text()
    assert "these prompts have no ground truth here" in page
    assert "calibration saw 2 of the measured prompts" in page
    assert "Nothing measured here says which pictures are worse" in page


@pytest.mark.usefixtures("here")
def test_a_video_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved("cogvideox", tmp_path)
    (tmp_path / "own.csv").write_text(PROMPTS)
    (tmp_path / "own.toml").write_text(RUN.format(pipeline=folder, size="frames = 9"))
    words = [str(tmp_path / "own.toml"), "--runs", str(tmp_path), "--images", str(tmp_path / "png"), "--quiet"]
    assert cli.main(["run", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["configuration"], row["metric"]): row for row in found["results"]}
    folders = {path.name: Folder.open(path) for path in (tmp_path / "png" / Path(found["run"]).name).iterdir()}
    full, ours = (torch.from_numpy(folders[name].read(["000000", "000001"])) for name in ("fp32", "int4-w4a8"))
    assert full.shape == (2, 9, 3, 32, 32)
    # what was measured, seen again in the 8-bit files: rounding moves a mean difference by at most 2 * 0.5 / 255
    assert rows["fp32", "flicker"]["value"] == pytest.approx(float(flicker(full).mean()), abs=1 / 255)
    near = rows["int4-w4a8", "temporal_psnr"]
    assert near["low"] <= near["value"] <= near["high"]
    assert near["value"] > rows["fp32, another seed", "temporal_psnr"]["value"]
    assert not torch.equal(full, ours)
    assert rows["int4-w4a8", "flicker_change"]["against"] == "fp32"
    assert rows["fp8-w8a8", "time_per_image"]["value"] > 0
    tidy = pd.read_parquet(Path(found["run"]) / "results.parquet")
    assert len(tidy) == len(found["results"])
    assert tidy.set_index(["configuration", "metric"]).value["int4-w4a8", "psnr"] == rows["int4-w4a8", "psnr"]["value"]
    page = Path(found["page"]).read_text()
    assert "PSNR of motion, dB" in page
    price = ["estimate", "--model", str(folder), "--frames", "9", "--device", "h200-sxm", "--batch", "2", "--json"]
    assert cli.main([*price, "--spec", "fp8-w8a8"]) == 0
    projected = json.loads(capsys.readouterr().out)
    assert rows["fp8-w8a8", "time_per_image"]["value"] == projected["time_s"]


def test_a_pipeline_is_priced_at_the_size_it_makes(tmp_path: Path) -> None:
    """From its directory, from itself, and told another size; a video DiT has no convolution but the patches'."""
    for name, size in (("wan", {"height": 32, "width": 48, "frames": 5}), ("cogvideox", {"frames": 9})):
        pipe, folder = getattr(whole_pipelines, name)(), saved(name, tmp_path)
        work = analysis.trace(folder, batch=2, **size)
        assert work.macs == analysis.trace(sized(pipe, **size), batch=2).macs
        assert not any(note.startswith("WARNING") for note in work.notes)
        larger = analysis.trace(folder, batch=2)
        assert larger.macs > work.macs if name == "wan" else larger.macs == work.macs
    by_hand = 5 // 4 + 1, 32 // 8 // 2 * (48 // 8 // 2)  # latent frames, patches of one
    pipe = sized(whole_pipelines.wan(), height=32, width=48, frames=5)
    assert sample(pipe, ["a cat"], [0], steps=1).shape == (1, 5, 3, 32, 48)
    queries = [op for op in analysis.trace(pipe, batch=2).ops if op.path.endswith("blocks.0.attn1.to_q")]
    assert [op.m for op in queries] == [2 * by_hand[0] * by_hand[1]]


def test_ltx_video_is_traced_from_its_configuration() -> None:
    """No weights, no pipeline: what its directory would say."""
    from analysis.models._components import from_components

    transformer = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "caption_channels": 32}
    transformer |= {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32}
    vae = {"patch_size": 4, "patch_size_t": 1, "spatio_temporal_scaling": [True, True, True, False]}
    parts = {
        "transformer": ("diffusers.LTXVideoTransformer3DModel", transformer),
        "vae": ("diffusers.AutoencoderKLLTXVideo", vae),
    }
    model = from_components("ltx", "here", parts, "LTXPipeline")
    assert (model.height, model.width, model.frames) == (512, 704, 161)  # of the pipeline's call
    assert (model.downscale, model.frame_ratio) == (32, 8)
    work = analysis.trace(model, batch=1, tokens=7, frames=17)
    queries = next(op for op in work.ops if op.path.endswith("transformer_blocks.0.attn1.to_q"))
    assert queries.m == 3 * (512 // 32) * (704 // 32)


def test_videos_by_hand() -> None:
    pipe = sized(whole_pipelines.cogvideox(), frames=9)
    full = sample(pipe, ["a cat", "a dog"], [0, 1], steps=1)
    quantized = quantize(pipe, "int8-w8a8", calibration=calibrate(pipe, ["a house"], steps=1))
    assert len(report_of(quantized).layers) == 22
    made = sample(quantized, ["a cat", "a dog"], [0, 1], steps=1)
    assert made.shape == full.shape == (2, 9, 3, 32, 32)
    found = evaluate(made, reference=full)
    assert found.correct is None
    assert found.psnr is not None
    assert found.temporal_psnr is not None
    # One by one, as frames: the error of all of them, and of the differences of neighbours.
    for index in range(2):
        error = (made[index] - full[index]).double()
        power = error.square().mean()
        assert float(found.psnr[index]) == pytest.approx(float(-10 * power.log10()), abs=1e-4)  # float32 sums
        moving = (error[1:] - error[:-1]).square().mean()
        assert float(found.temporal_psnr[index]) == pytest.approx(float(-10 * moving.log10()), abs=1e-4)


def test_what_temporal_metrics_see_and_what_they_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(1, 16, 3, 8, 8, generator=generator) * 0.5 + 0.25
    lighter = video + 0.1  # wrong, and steadily so
    assert torch.isclose(psnr(lighter, video), torch.tensor([20.0]), atol=1e-3)  # 0.1^2 is 20 dB
    assert temporal_psnr(lighter, video) > 100  # only float32's rounding of the sums
    noisy = video + 0.1 * (2 * torch.randint(0, 2, video.shape, generator=generator) - 1)  # anew in every frame
    assert torch.isclose(psnr(noisy, video), torch.tensor([20.0]), atol=1e-3)
    # Half of the differences of two signs are 0, half are 0.2: 0.02 is 17.0 dB; 2,880 of them: 3 sigma is 0.25 dB.
    assert torch.isclose(temporal_psnr(noisy, video), torch.tensor([16.99]), atol=0.25)
    still = video[:, :1].expand(1, 16, 3, 8, 8)
    assert flicker(still).tolist() == [1]
    assert flicker(noisy) < flicker(video) < 1
    for wrong in (video[0], video[:, :1]):
        with pytest.raises(ValueError, match="at least two frames"):
            steps(wrong)


def test_a_size_that_a_pipeline_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline takes no frames; leave frames = 9 out"):
        sized(whole_pipelines.sd3(), frames=9)


def test_a_hub_id_is_where_the_cache_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = saved("sd3", tmp_path), []

    def download(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert located("somebody/sd3-small") == folder
    assert asked == [("somebody/sd3-small", {"use_safetensors": True})]
    assert type(load("somebody/sd3-small")).__name__ == "StableDiffusion3Pipeline"
    work = analysis.registry.workload("somebody/sd3-small", 2)  # type: ignore[attr-defined]
    assert work.macs == analysis.trace(folder, batch=2).macs
    experiment = Experiment.from_dict(
        {"name": "a", "quality": {"pipeline": "somebody/sd3-small"}, "configuration": [{"scheme": "fp8-w8a8"}]}
    )
    from analysis.whatif import make_plan

    assert len(make_plan(experiment).surroundings["checkpoint"]) == 64

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no connection\nto the hub")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", refuse)
    with pytest.raises(ValueError, match="cannot load somebody/else: no connection to the hub"):
        load("somebody/else")


def test_shares_are_consecutive_and_of_equal_work() -> None:
    assert equal_shares("abcdef", [1, 1, 1, 1, 1, 1], 3) == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert equal_shares("abcd", [9, 1, 1, 1], 2) == [["a"], ["b", "c", "d"]]
    assert equal_shares("a", [1], 3) == [[], ["a"], []]
    shares = equal_shares(range(100), [i % 7 + 1 for i in range(100)], 8)
    assert [task for share in shares for task in share] == list(range(100))


TWO = """
name = "two"
[quality]
pipeline = "shapes-sd"
prompts = 4
steps = 1
batch = 1
calibration = 1
[[configuration]]
scheme = ["int8-w8a8", "fp8-w8a8"]
"""


def run_killed(folder: Path, words: Sequence[str], environment: dict[str, str]) -> Path:
    """Start `words` on the runs in `killed`, and kill all of it as soon as there are a few batches; the run."""
    runs = folder / "killed"
    started = subprocess.Popen([*words, "--runs", "killed"], cwd=folder, env=environment, start_new_session=True)
    while started.poll() is None and len(list(runs.glob("*/batches/*.safetensors"))) < 3:
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    [run] = runs.iterdir()
    return run


@pytest.mark.slow
def test_two_launched_processes_make_the_pictures_of_one(tmp_path: Path) -> None:
    """torchrun starts what `accelerate launch --multi_gpu` starts; without GPUs they talk over gloo."""
    (tmp_path / "two.toml").write_text(TWO)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(runs: str, *launcher: str) -> dict[str, str]:
        words = [
            sys.executable,
            "-m",
            *launcher,
            "analysis.cli",
            "run",
            "two.toml",
            "--runs",
            runs,
            "--quiet",
            "--json",
        ]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(json.loads(done.stdout)["runs"]) == 1, "only the first process speaks"
        return {path.name: file_digest(path) for path in (tmp_path / runs).glob("*/batches/*.safetensors")}

    two = ("torch.distributed.run", "--nproc_per_node", "2", "-m")
    assert run("launched", *two) == run("alone")
    killed = run_killed(
        tmp_path, [sys.executable, "-m", *two, "analysis.cli", "run", "two.toml", "--quiet"], environment
    )
    written = {path: path.stat().st_mtime_ns for path in killed.glob("batches/*.safetensors")}
    assert 0 < len(written) < 16
    assert run("killed") == run("alone")
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    (tmp_path / "wrong.toml").write_text(TWO.replace("int8-w8a8", "int9"))
    words = [sys.executable, "-m", *two, "analysis.cli", "run", "wrong.toml", "--quiet"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("fpsim: unknown scheme 'int9'") == 1
