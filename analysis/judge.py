"""A small classifier of scenes whose features the Frechet distance is computed on.

Inception-v3 was trained on photographs and has to be downloaded; this one was trained on renders of `analysis.scenes`
(with noise and blur, so that its features move smoothly when images degrade) and ships with the package. It reads what
the analytic decoder reads, but softly: a feature moves before an attribute flips.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from analysis.scenes import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES

WEIGHTS = Path(__file__).parent / "models" / "embedded" / "judge.safetensors"
FEATURES = 64
#: Per cell: occupied or not, then one group of logits per attribute.
CELL_GROUPS = (2, len(SHAPES), len(COLOURS), len(SIZES), len(FILLS))


class Judge(nn.Module):
    """64 x 64 RGB to per-cell attribute logits; 0.18 M parameters."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU()]

        self.body = nn.Sequential(
            *block(3, 32, 1), *block(32, 48, 2), *block(48, 64, 2), *block(64, 96, 2), *block(96, FEATURES, 1)
        )
        self.cells = nn.Conv2d(FEATURES, sum(CELL_GROUPS), 1)
        self.background = nn.Linear(FEATURES, len(BACKGROUNDS))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float [N, 3, 64, 64] -> cell logits [N, 24, 9], background logits [N, 6]."""
        body = self.body(images * 2 - 1)
        # 8 x 8 positions to 3 x 3 cells: each cell's logits are averaged over the positions that cover it.
        cells = nn.functional.adaptive_avg_pool2d(self.cells(body), 3)
        return cells.flatten(2), self.background(body.mean((2, 3)))

    def features(self, images: Tensor) -> Tensor:
        """float [N, 3, 64, 64] -> [N, 64]: the body's channels averaged over the image."""
        pooled: Tensor = self.body(images * 2 - 1).mean((2, 3))
        return pooled


@lru_cache(maxsize=2)
def load(device: str = "cpu") -> Judge:
    """The shipped judge in evaluation mode. Raises ValueError when its weights are missing."""
    from safetensors.torch import load_file

    if not WEIGHTS.is_file():
        raise ValueError(f"the judge's weights are missing: {WEIGHTS}; reinstall the package or train them again")
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return judge.to(torch.device(device)).eval().requires_grad_(False)
