"""Metrics of other packages by entry point, and pretrained ones: what they give, and how each failure reads."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis import cli
from analysis.experiment import Experiment
from analysis.metrics import frechet_distance
from analysis.plan import NOISE_FLOOR, REFERENCE, Plan
from analysis.scoring import score, verdicts
from analysis.scoring.extra import find, values
from analysis.scoring.pretrained import PRETRAINED, clip_score, fid, kid, precision_recall, to_bytes, weights

MODULE = '''
"""What a package may bring."""

def brightness(images, reference, prompts):
    """Mean brightness."""
    return images.mean((1, 2, 3))

brightness.better = 1

def nearness(images, reference, prompts):
    """Largest difference to full precision."""
    return None if reference is None else (images - reference).abs().amax((1, 2, 3))

nearness.unit, nearness.better = "of 1", -1

def words(images, reference, prompts):
    return [len(prompt.split()) for prompt in prompts]

def short(images, reference, prompts):
    return [1.0]

def nothing(images, reference, prompts):
    return images.mean((1, 2, 3)) * float("nan")

def breaks(images, reference, prompts):
    raise KeyError("weights")

def silent(images, reference, prompts):
    return None

number = 7
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a distribution with these entry points, for as long as the test runs."""

    def install(name: str = "nice-metrics", **entries: str) -> None:
        folder = tmp_path / name
        info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        rows = "\n".join(f"{key} = {value}" for key, value in entries.items())
        (info / "entry_points.txt").write_text(f"[fpsim.metrics]\n{rows}\n")
        (folder / "nice.py").write_text(MODULE)
        (folder / "broken.py").write_text("import a_package_that_is_not_there\n")
        (folder / "typo.py").write_text("def f(:\n")
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        for module in ("nice", "broken", "typo"):
            monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def plan(*metrics: str, captions: list[str] | None = None) -> Plan:
    quality: dict[str, object] = {"prompts": 4, "batch": 2, "metrics": list(metrics)}
    if captions:
        quality["captions"] = captions
    tree = {"name": "a", "quality": quality, "configuration": [{"scheme": "fp8-w8a8"}]}
    return Plan(Experiment.from_dict(tree), {"device": "cpu"})


def pictures(asked: Plan, side: int = 64) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    full = random.random((4, 3, side, side), dtype=np.float32)
    darker = full * np.float32(0.9)
    return {REFERENCE: full, NOISE_FLOOR: random.random(full.shape, dtype=np.float32), "fp8-w8a8": darker}


def test_a_metric_of_a_package_stands_in_the_table_with_its_interval(package: Callable[..., None]) -> None:
    package(brightness="nice:brightness", nearness="nice:nearness", words="nice:words")
    asked = plan("brightness", "nearness", "words")
    images = pictures(asked)
    found = score(asked, images)
    rows = {(row.configuration, row.metric): row for row in found.rows}
    light = images["fp8-w8a8"].mean((1, 2, 3), dtype=np.float64)
    row = rows["fp8-w8a8", "brightness"]
    assert row.value == pytest.approx(light.mean(), rel=1e-6)  # float32 means of 12,288 values
    assert row.low is not None
    assert row.high is not None
    assert row.low <= row.value <= row.high
    change = rows["fp8-w8a8", "brightness_change"]
    assert change.value == pytest.approx(light.mean() - images[REFERENCE].mean(dtype=np.float64), rel=1e-5)
    assert (change.against, rows["fp8-w8a8", "nearness"].against) == (REFERENCE, REFERENCE)
    assert rows["fp8-w8a8", "nearness"].unit == "of 1"
    assert (REFERENCE, "nearness") not in rows
    assert "nearness_change" not in {metric for _, metric in rows}
    assert rows[REFERENCE, "words"].value == np.mean([len(caption.split()) for caption in asked.captions])
    assert {one.name: (one.title, one.package, one.better, one.paired) for one in found.extra} == {
        "brightness": ("Mean brightness", "nice-metrics", 1, False),
        "nearness": ("Largest difference to full precision", "nice-metrics", -1, True),
        "words": ("words", "nice-metrics", 0, False),
    }
    prompt = next(entry for entry in found.prompts if entry.configuration == "fp8-w8a8" and entry.prompt == 2)
    assert prompt.flat()["brightness"] == pytest.approx(light[2], rel=1e-6)


def test_the_example_of_the_docs_works(package: Callable[..., None], tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "adding.md").read_text().partition("## A metric")[2]
    package(sharpness="nice:sharpness")
    (tmp_path / "nice-metrics" / "nice.py").write_text(text.partition("```python")[2].partition("```")[0])
    metric = find("sharpness")
    assert (metric.title, metric.better) == ("Mean gradient", 1)
    ramp = torch.linspace(0, 1, 8).expand(2, 3, 8, 8)
    found = values(metric, ramp, None, ["", ""])
    assert found is not None
    assert found.tolist() == pytest.approx([1 / 14] * 2, rel=1e-6)  # 1/7 along one axis, 0 along the other


def test_without_ground_truth_metrics_that_know_what_is_better_decide(package: Callable[..., None]) -> None:
    package(brightness="nice:brightness", words="nice:words")
    others = ["a cat", "a dog", "two cats", "a house"]
    asked = plan("brightness", "words", captions=others)
    found = score(asked, pictures(asked, side=16))
    assert not {"correct", "residual", "recovery", "frechet", "frechet_full"} & {row.metric for row in found.rows}
    assert all(entry.correct is None and entry.residual is None for entry in found.prompts)
    judged = verdicts(asked, found.rows, found.extra)["fp8-w8a8"]
    assert judged.asked == ("brightness_change",)
    assert judged.told_apart == ("brightness_change",)  # every picture is a tenth darker
    assert judged.resolution is None
    asked = plan(captions=others)
    found = score(asked, pictures(asked, side=16))
    judged = verdicts(asked, found.rows)["fp8-w8a8"]
    assert not judged.asked
    assert not judged.indistinguishable, "nothing was asked, so nothing was found"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("broken:f", "does not load: ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("typo:f", "does not load: SyntaxError: "),
        ("nice:missing", "does not load: AttributeError: "),
        ("nice:number", "is no function but int (nice:number)"),
        ("nice:short", "must give 4 numbers for 4 images, not shape [1]"),
        ("nice:nothing", "gave nan for image 0"),
        ("nice:breaks", "failed: KeyError: 'weights'"),
        ("nice:silent", "must give one number per image, not None, where there is a reference"),
    ],
)
def test_a_broken_metric_is_one_line_that_names_the_package(
    package: Callable[..., None], entry: str, says: str
) -> None:
    package(mine=entry)
    with pytest.raises(ValueError, match="package nice-metrics") as raised:
        values(find("mine"), torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8), ["a"] * 4)
    assert f"metric 'mine' of package nice-metrics {says}" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_names_are_found_or_explained(
    package: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package(brightness="nice:brightness")
    with pytest.raises(ValueError, match="unknown metric 'brightnes'; did you mean 'brightness'"):
        find("brightnes")
    assert cli.main(["list", "metrics"]) == 0
    printed = capsys.readouterr().out
    assert "brightness" in printed
    assert "nice-metrics" in printed
    assert "PSNR to full precision, same seed" in printed
    file = tmp_path / "e.toml"
    file.write_text('[quality]\nmetrics = ["psnr"]\n[[configuration]]\nscheme = "fp8-w8a8"\n')
    assert cli.main(["run", str(file), "--runs", str(tmp_path), "--quiet"]) == 2
    assert "metric 'psnr' is always measured where it can be" in capsys.readouterr().err


def test_two_packages_with_one_name_are_both_named(package: Callable[..., None]) -> None:
    package(brightness="nice:brightness")
    package("other-metrics", brightness="nice:words")
    with pytest.raises(ValueError, match=r"packages \S+ and \S+ both bring a metric 'brightness'") as raised:
        find("brightness")
    assert {"nice-metrics", "other-metrics"} <= set(str(raised.value).split())


def test_a_package_may_not_take_a_name_of_ours(package: Callable[..., None]) -> None:
    package(lpips="nice:brightness")
    with pytest.raises(ValueError, match="package nice-metrics brings a metric 'lpips', which is one of fpsim's own"):
        find("brightness")


# --- pretrained ------------------------------------------------------------------------------------------------------


class Means(torch.nn.Module):
    """A network's place: twelve means of parts of a picture. uint8 (N, 3, H, W) -> (N, 12)."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def test_fid_of_torchmetrics_is_our_frechet_distance_on_the_same_features() -> None:
    random = torch.Generator().manual_seed(0)
    one, two = (torch.rand(40, 3, 32, 32, generator=random) for _ in range(2))
    two = two**1.5
    features = [Means()(to_bytes(images)).double() for images in (two, one)]
    # torchmetrics takes the root's trace from complex eigenvalues, ours from symmetric ones: both to 1e-6 of a trace
    assert fid(Means())(two, one) == pytest.approx(frechet_distance(*features), rel=1e-4)
    assert fid(Means())(one, one) == pytest.approx(0, abs=1e-6)


def test_kid_gives_the_same_number_twice_and_leaves_the_generator_alone() -> None:
    one, two = torch.rand(40, 3, 16, 16), torch.rand(40, 3, 16, 16) ** 1.5
    before = torch.random.get_rng_state()
    found = kid(Means())(two, one)
    assert found == kid(Means())(two, one)
    assert found > kid(Means())(one, one)
    assert torch.equal(before, torch.random.get_rng_state())


def test_pictures_are_rounded_to_eight_bits() -> None:
    assert to_bytes(torch.tensor([[[[0.0, 1.0, 100.4 / 255, 100.6 / 255]]]])).tolist() == [[[[0, 255, 100, 101]]]]
    assert to_bytes(torch.rand(2, 5, 3, 4, 4)).shape == (10, 3, 4, 4)


def test_clip_score_is_the_cosine_of_picture_and_prompt() -> None:
    """A CLIP of random weights: torchmetrics' number against one computed from the embeddings here."""
    from tiny_pipelines import TOKENS, tokenizer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    torch.manual_seed(0)
    words = tokenizer()
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": TOKENS, "bos_token_id": 0, "eos_token_id": 1}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    sizes: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPProcessor(CLIPImageProcessor(**sizes), words)
    model = CLIPModel(config).eval()
    images, prompts = torch.rand(3, 3, 32, 32), ["a cat", "a dog", "two cats"]
    found = clip_score(model, processor)(images, None, prompts)
    given = processor(text=prompts, images=list(to_bytes(images)), return_tensors="pt", padding=True)
    with torch.no_grad():
        made = model(**given)
    cosine = torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds)
    assert found.tolist() == pytest.approx((100 * cosine).clamp(min=0).tolist(), abs=1e-3)  # float32, times 100
    videos = images[:, None].expand(3, 4, 3, 32, 32)
    assert clip_score(model, processor)(videos, None, prompts).tolist() == pytest.approx(found.tolist(), abs=1e-3)


@pytest.mark.parametrize("name", sorted(PRETRAINED))
def test_without_its_packages_a_metric_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = PRETRAINED[name].packages[-1]
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "analysis.scoring.pretrained.find_spec", lambda package: None if package == missing else real(package)
    )
    if any(real(package) is None for package in PRETRAINED[name].packages[:-1]):
        missing = next(package for package in PRETRAINED[name].packages if real(package) is None)
    says = rf"metric '{name}' needs the package {missing}: pip install 'fpsim\[metrics\]'"
    with pytest.raises(ValueError, match=says):
        find(name)


def test_missing_weights_say_where_they_must_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = "https://example.org/some/net-0123abcd.pth"
    file = tmp_path / "checkpoints" / "net-0123abcd.pth"
    with pytest.raises(ValueError, match="metric 'fid' needs weights in ") as raised:
        weights("fid", url)
    assert f"{file}: download {url} to there" in str(raised.value)
    file.parent.mkdir()
    torch.save({"layer.weight": torch.ones(2)}, file)
    assert weights("fid", url) == file
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="metric 'clip-score' needs openai/clip-vit-large-patch14 in the Hugging Face"):
        find("clip-score")


class Runs:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_a_file_of_weights_that_runs_code_is_refused_before_a_library_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "net.pth"
    for held in ({"layer.weight": torch.ones(2), "extra": Runs()}, {"epoch": 3}):
        torch.save(held, file)
        with pytest.raises(ValueError, match=r"net\.pth (is damaged or no file of weights|holds more than weights)"):
            weights("fid", "https://example.org/net.pth")
    file.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"net\.pth is damaged"):
        weights("fid", "https://example.org/net.pth")
    assert not Path("ran").exists()


def test_lpips_is_zero_for_the_same_picture_and_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way through torchmetrics and torchvision, with an AlexNet of random weights in the hub's folder."""
    models = pytest.importorskip("torchvision.models", reason="needs torchvision: pip install 'fpsim[metrics]'")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / models.AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
    torch.manual_seed(0)
    torch.save(models.alexnet().state_dict(), file)
    one = torch.rand(2, 3, 64, 64)
    near, far = (one + 0.02 * torch.randn(one.shape)).clamp(0, 1), torch.rand(one.shape)
    metric = find("lpips")
    assert values(metric, one, None, ["", ""]) is None
    assert values(metric, one, one, ["", ""]).tolist() == [0, 0]  # type: ignore[union-attr]
    small, large = (values(metric, other, one, ["", ""]) for other in (near, far))
    assert (small > 0).all()  # type: ignore[operator]
    assert (small < large).all()  # type: ignore[operator]


def test_precision_and_recall_of_torch_fidelity() -> None:
    fidelity = pytest.importorskip("torch_fidelity", reason="needs torch-fidelity: pip install 'fpsim[metrics]'")

    class Extractor(fidelity.FeatureExtractorBase):  # type: ignore[misc, name-defined]
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (Means()(images),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("12",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "12"

    fidelity.register_feature_extractor("twelve-means", Extractor)
    whole = torch.rand(24, 3, 16, 16)
    narrow = whole[:12].repeat(2, 1, 1, 1)  # all of it lies among the whole, half of the whole lies outside of it
    assert precision_recall("precision", "twelve-means")(narrow, whole) == 1
    assert precision_recall("recall", "twelve-means")(narrow, whole) < 1
