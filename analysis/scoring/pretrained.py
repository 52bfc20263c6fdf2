"""Metrics that need a trained network: those of torchmetrics (FID, KID, LPIPS, CLIP score) and of torch-fidelity.

They are asked for by name and need `pip install 'fpsim[metrics]'` and weights that somebody downloaded: nothing here
goes to the network. A file of weights is looked at before a library loads it, because those libraries load with
pickle: one that holds anything but tensors is refused. (Equal bytes, so what was found harmless is what is loaded.)

Sets of pictures compare with full precision's. All of them see 8-bit pictures, as the numbers of papers do, and the
frames of a video as pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.scoring.extra import CHUNK, Metric

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

CLIP = "openai/clip-vit-large-patch14"
KID_SUBSET = 1000  # of Bińkowski et al. 2018 (arXiv:1801.01401); fewer pictures: all of them
KID_SUBSETS = 100


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What a metric is called, the packages it needs, and how it is made once they are there."""

    name: str
    title: str
    better: int
    packages: tuple[str, ...]
    per_image: Callable[[], Any] | None = None
    whole: Callable[[], Any] | None = None

    def make(self) -> Metric:
        """The metric, its weights found. Raises ValueError, saying what to install or to download, otherwise."""
        for package in self.packages:
            if find_spec(package) is None:
                raise ValueError(f"metric {self.name!r} needs the package {package}: pip install 'fpsim[metrics]'")
        return Metric(
            name=self.name,
            title=self.title,
            package=self.packages[0],
            better=self.better,
            per_image=None if self.per_image is None else self.per_image(),
            whole=None if self.whole is None else self.whole(),
        )


def to_bytes(images: Tensor) -> Tensor:
    """uint8, 0 to 255, of images in [0, 1], rounded to nearest; frames of videos become images."""
    import torch

    flat = images.flatten(0, 1) if images.ndim == 5 else images
    return (flat.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _per_video(values: Tensor, images: Tensor) -> Tensor:
    """Values of frames as means of videos; those of images as they are."""
    return values.unflatten(0, images.shape[:2]).mean(1) if images.ndim == 5 else values


def weights(name: str, url: str) -> Path:
    """The file that torch's hub keeps of `url`. Raises ValueError if it is not there or holds more than tensors."""
    import pickle

    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise ValueError(
            f"metric {name!r} needs weights in {file}: download {url} to there (TORCH_HOME moves the folder)"
        )
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is damaged or no file of weights alone; download {url} again") from error
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise ValueError(f"{file} holds more than weights; download {url} again")
    return file


def inception(name: str) -> int:
    """Inception-v3's 2048 features, in torchmetrics' words, once its weights are there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    weights(name, URL_INCEPTION_V3)
    return 2048


def fid(feature: int | Module) -> Callable[[Tensor, Tensor], float]:
    """Fréchet inception distance (Heusel et al. 2017). feature: 2048, or a module from uint8 images to features."""

    def distance(images: Tensor, reference: Tensor) -> float:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return float(_fed(FrechetInceptionDistance(feature=feature), images, reference).compute())

    return distance


def kid(feature: int | Module) -> Callable[[Tensor, Tensor], float]:
    """Kernel inception distance (Bińkowski et al. 2018), the mean over subsets; the same subsets every time."""

    def distance(images: Tensor, reference: Tensor) -> float:
        import warnings

        import torch
        from torchmetrics.image.kid import KernelInceptionDistance

        size = min(KID_SUBSET, len(to_bytes(images)), len(to_bytes(reference)))
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")  # that it keeps all features: those of this many pictures fit
            torch.manual_seed(0)
            metric = KernelInceptionDistance(feature=feature, subsets=KID_SUBSETS, subset_size=size)
            return float(_fed(metric, images, reference).compute()[0])

    return distance


def _fed(metric: Any, images: Tensor, reference: Tensor) -> Any:
    """A metric of torchmetrics that has seen both sets."""
    metric = metric.to(images.device)
    for pictures, real in ((reference, True), (images, False)):
        for part in to_bytes(pictures).split(CHUNK):
            metric.update(part, real=real)
    return metric


def lpips() -> Callable[..., Tensor | None]:
    """Learned perceptual image patch similarity (Zhang et al. 2018), AlexNet, to full precision's picture."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import AlexNet_Weights

    weights("lpips", AlexNet_Weights.DEFAULT.url)
    network = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none", normalize=True).eval()

    def distance(images: Tensor, reference: Tensor | None, prompts: Sequence[str]) -> Tensor | None:
        import torch

        if reference is None:
            return None
        network.to(images.device)
        with torch.no_grad():
            pair = (to_bytes(one).float() / 255 for one in (images, reference))
            found: Tensor = network(*pair)
        return _per_video(found.reshape(-1), images)

    return distance


def clip_score(model: Any = None, processor: Any = None) -> Callable[..., Tensor]:
    """CLIP score (Hessel et al. 2021): 100 times the cosine of the embeddings of picture and prompt, at least 0.

    model, processor : of transformers; by default those of `CLIP`, from the hub's cache
    """
    from torchmetrics.multimodal.clip_score import CLIPScore

    if model is None:
        model, processor = _clip()
    scorer = CLIPScore(model_name_or_path=lambda: (_tensors(model), processor))

    def score(images: Tensor, reference: Tensor | None, prompts: Sequence[str]) -> Tensor:
        import torch

        frames = images.shape[1] if images.ndim == 5 else 1
        scorer.to(images.device)
        with torch.no_grad():
            pictures = to_bytes(images)
            # one at a time: the scorer gives means
            found = [scorer(picture, prompts[place // frames]) for place, picture in enumerate(pictures)]
        return _per_video(torch.stack(found), images)

    return score


def _tensors(model: Any) -> Any:
    """A CLIP model whose features are tensors, as torchmetrics expects; since transformers 5 they are outputs."""
    import torch

    class Tensors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = model, model.config

        def get_image_features(self, *given: Any) -> Any:
            made = self.inner.get_image_features(*given)
            return getattr(made, "pooler_output", made)

        def get_text_features(self, *given: Any) -> Any:
            made = self.inner.get_text_features(*given)
            return getattr(made, "pooler_output", made)

    return Tensors()


def _clip() -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(CLIP, local_files_only=True, use_safetensors=True)
        return model.eval(), CLIPProcessor.from_pretrained(CLIP, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"metric 'clip-score' needs {CLIP} in the Hugging Face cache: hf download {CLIP} (HF_HOME moves the cache)"
        ) from error


def precision_recall(which: str, extractor: str | None = None) -> Callable[[Tensor, Tensor], float]:
    """Improved precision or recall (Kynkäänniemi et al. 2019) by torch-fidelity, of pictures against full precision's.

    which     : "precision" (are these pictures among those?) or "recall" (are those among these?)
    extractor : the name of a feature extractor registered with torch-fidelity, None for its own (VGG-16)
    """

    def share(images: Tensor, reference: Tensor) -> float:
        from torch_fidelity import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, calculate_metrics

        chosen = {} if extractor is None else {"feature_extractor": extractor}
        found = calculate_metrics(
            input1=dataset(images),
            input2=dataset(reference),
            prc=True,
            cuda=images.device.type == "cuda",
            verbose=False,
            cache=False,
            batch_size=CHUNK,
            **chosen,
        )
        # torch-fidelity calls the first input generated and the second one real
        return float(found[{"precision": KEY_METRIC_PRECISION, "recall": KEY_METRIC_RECALL}[which]])

    return share


def dataset(images: Tensor) -> Any:
    """What torch-fidelity takes for a set of pictures: a dataset of uint8 images."""
    from torch.utils.data import Dataset

    pictures = to_bytes(images).cpu()

    class Pictures(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> Tensor:
            return pictures[index]

    return Pictures()


def _vgg(which: str) -> Callable[[Tensor, Tensor], float]:
    from torchvision.models import VGG16_Weights

    weights(which, VGG16_Weights.DEFAULT.url)
    return precision_recall(which)


_IMAGE = ("torchmetrics", "torch_fidelity")
PRETRAINED: Mapping[str, Pretrained] = {
    row.name: row
    for row in (
        Pretrained(
            name="fid",
            title="FID to full precision's pictures",
            better=-1,
            packages=_IMAGE,
            whole=lambda: fid(inception("fid")),
        ),
        Pretrained(
            name="kid",
            title="KID to full precision's pictures",
            better=-1,
            packages=_IMAGE,
            whole=lambda: kid(inception("kid")),
        ),
        Pretrained(
            name="lpips",
            title="LPIPS (AlexNet) to full precision, same seed",
            better=-1,
            packages=("torchmetrics", "torchvision"),
            per_image=lpips,
        ),
        Pretrained(
            name="clip-score",
            title="CLIP score (ViT-L/14)",
            better=1,
            packages=("torchmetrics", "transformers"),
            per_image=clip_score,
        ),
        Pretrained(
            name="precision",
            title="precision (VGG-16) among full precision's pictures",
            better=1,
            packages=("torch_fidelity", "torchvision"),
            whole=lambda: _vgg("precision"),
        ),
        Pretrained(
            name="recall",
            title="recall (VGG-16) of full precision's pictures",
            better=1,
            packages=("torch_fidelity", "torchvision"),
            whole=lambda: _vgg("recall"),
        ),
    )
}
