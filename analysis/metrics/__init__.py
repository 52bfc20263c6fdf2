"""Image quality on scenes with known ground truth, without a downloaded network.

Three questions, three families, never mixed:
- *is it what was asked?*  `correct`: every attribute of the caption, read by the closed-form decoder;
- *is it a valid picture?*  `residual`: mean squared distance to the nearest legal scene, which sees noise, banding and
  washed-out texture while all attributes are still right; `frechet`: distance between feature distributions;
- *is it the same picture?*  `psnr` and `ssim` against the full-precision image of the same seed. They measure fidelity,
  not quality, and saturate where trajectories part: a full-precision image of another seed is the floor to print.

Every mean comes with a bootstrap interval over prompts. Compare configurations on the same prompts and seeds, and
bootstrap the per-prompt differences: the spread between prompts is larger than that between configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from analysis import decoder
from analysis.metrics.intervals import Interval as Interval
from analysis.metrics.intervals import bootstrap as bootstrap
from analysis.metrics.intervals import bootstrap_ratio as bootstrap_ratio
from analysis.metrics.pictures import features as features
from analysis.metrics.pictures import frechet_distance as frechet_distance
from analysis.metrics.pictures import psnr as psnr
from analysis.metrics.pictures import ssim as ssim
from analysis.metrics.video import flicker, temporal_psnr
from analysis.scenes import Scenes

SCENE_SIDE = 64  # pixels of the pictures that scenes are drawn in


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Per-prompt measurements of N images or videos; arrays are float32 or bool [N] on the CPU.

    correct, residual    : None without scenes
    psnr, ssim           : None without a reference.  PSNR in dB for a peak of 1; equal images give inf.
    flicker              : of videos; temporal_psnr: of videos with a reference
    frechet              : None without clean images; biased upwards by order 1/N, so compare equal N only.
    attributes           : share right per attribute name, of scenes
    """

    correct: Tensor | None = None
    residual: Tensor | None = None
    psnr: Tensor | None = None
    ssim: Tensor | None = None
    flicker: Tensor | None = None
    temporal_psnr: Tensor | None = None
    frechet: float | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)


def evaluate(
    images: Tensor, scenes: Scenes | None = None, reference: Tensor | None = None, clean: Tensor | None = None
) -> Quality:
    """Everything there is to measure about `images`, float [N, 3, H, W] or videos [N, F, 3, H, W], in [0, 1].

    scenes    : what was asked for, N of them; images of them are 64 x 64
    reference : the full-precision images of the same prompts and seeds, same shape
    clean     : renders to compare the feature distribution with, [M, 3, 64, 64]
    Raises ValueError when the numbers of images, scenes and references differ.
    """
    if scenes is not None and len(images) != len(scenes):
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes; every image needs the scene it was asked for")
    if reference is not None and reference.shape != images.shape:
        raise ValueError(f"images {list(images.shape)} and reference {list(reference.shape)} differ in shape")
    moving = images.ndim == 5 and images.shape[1] > 1
    found: dict[str, Any] = {}
    if scenes is not None:
        read = decoder.decode(images)
        found["correct"] = decoder.all_correct(read, scenes).cpu()
        found["residual"] = (images.float() - read.nearest_legal()).square().mean((1, 2, 3)).cpu()
        found["attributes"] = decoder.attribute_accuracy(read, scenes)
    if reference is not None:
        found |= {"psnr": psnr(images, reference).cpu(), "ssim": ssim(images, reference).cpu()}
    if moving:
        found["flicker"] = flicker(images).cpu()
        found["temporal_psnr"] = None if reference is None else temporal_psnr(images, reference).cpu()
    if clean is not None:
        found["frechet"] = frechet_distance(features(images), features(clean.to(images.device)))
    return Quality(**found)
