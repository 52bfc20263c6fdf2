"""What a video has that its frames one by one have not: how it goes on from frame to frame.

Nothing here warps by optical flow or asks a network, so nothing has to be downloaded and nothing can be fooled by a
network's own errors; what is lost is the meaning: a thing that turns into another thing smoothly is not noticed.

- `flicker` looks at one video alone: the temporal flickering of VBench (Huang et al., CVPR 2024, arXiv:2311.17982,
  section 3.1), 1 minus the mean absolute difference of consecutive frames, 1 for a still. VBench asks it of prompts
  whose scene does not move. Of others a higher score may only mean less motion, so here it is read as a change against
  full precision's video of the same prompt and seed, never as a rank.
- `temporal_psnr` compares with full precision's video: the PSNR of differences of consecutive frames. A wrong colour
  that stays wrong does not count, noise that is new in every frame counts twice (its difference has twice its power):
  beside PSNR, which sees both, it says how much of an error moves.

Evaluations of quantized video models (ViDiT-Q, arXiv:2406.02540) report VBench's other dimensions too; those need
networks (DINO, CLIP, RAFT).
"""

from __future__ import annotations

from torch import Tensor

from analysis.metrics.pictures import psnr


def steps(videos: Tensor) -> Tensor:
    """float32 [N, F - 1, 3, H, W]: each frame minus the one before. ValueError for fewer than two frames."""
    if videos.ndim != 5 or videos.shape[1] < 2:
        raise ValueError(f"videos are [N, frames, 3, H, W] of at least two frames, not {list(videos.shape)}")
    return videos[:, 1:].float() - videos[:, :-1].float()


def flicker(videos: Tensor) -> Tensor:
    """float32 [N] in [0, 1]: 1 - mean |difference of consecutive frames| of videos [N, F, 3, H, W] in [0, 1]."""
    return 1 - steps(videos).abs().mean((1, 2, 3, 4))


def temporal_psnr(videos: Tensor, reference: Tensor) -> Tensor:
    """float32 [N], dB for a peak of 1: how near the frame-to-frame differences are to those of `reference`."""
    return psnr(steps(videos), steps(reference))
