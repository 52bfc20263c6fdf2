"""Two pictures, or two sets of them: PSNR, SSIM, Fréchet distance. Videos have an axis of frames first."""

from __future__ import annotations

import torch
from torch import Tensor

from analysis import judge


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """float32 [N]: peak signal-to-noise ratio in dB of every image, for a peak of 1; inf where equal.

    Of a video, the squared error is that of all its frames.
    """
    return -10 * (images.float() - reference.float()).square().mean(tuple(range(1, images.ndim))).log10()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """float32 [N]: structural similarity (Wang et al. 2004, Gaussian window 11, sigma 1.5) of every image.

    Of a video, the mean over its frames.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if images.ndim == 5:
        return ssim(images.flatten(0, 1), reference.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
    values = structural_similarity_index_measure(images.float(), reference.float(), data_range=1.0, reduction="none")
    if not isinstance(values, Tensor):
        raise TypeError("torchmetrics returned the SSIM map although it was not asked for")
    return values.reshape(len(images))


def features(images: Tensor, batch: int = 256) -> Tensor:
    """float64 [N, 64]: the judge's features."""
    model = judge.load(str(images.device))
    with torch.no_grad():
        parts = [model.features(part.float()) for part in images.split(batch)]
    return torch.cat(parts).double()


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two feature sets, [N, D] and [M, D]:

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the trace of the root taken from the eigenvalues of the symmetric
    C1^(1/2) C2 C1^(1/2) (Heusel et al. 2017, equation 6). Raises ValueError for fewer than two images in a set.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a covariance needs at least two images, not {min(len(first), len(second))}")
    mean = (first.mean(0) - second.mean(0)).square().sum()
    c1, c2 = torch.cov(first.T), torch.cov(second.T)
    values, vectors = torch.linalg.eigh(c1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    return float(mean + c1.trace() + c2.trace() - 2 * cross)
