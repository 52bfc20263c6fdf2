"""Small trained pipelines that ship with the package, so that every experiment runs anywhere and offline.

`shapes-sd` and `shapes-dit` are stock diffusers pipelines that draw the captioned scenes of `analysis.scenes`; each
directory beside this file loads with plain `DiffusionPipeline.from_pretrained`. The `-outlier` variants are the same
functions with outlier channels in their activations, see `outliers.py`. How they were trained: `train.py`,
`train.toml` and `train-log.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """One embedded pipeline: its checkpoint directory, what it is, and whether outliers are added on load."""

    directory: Path
    description: str
    outliers: bool = False


_KINDS = {
    "shapes-sd": "U-Net, cross-attention, CLIP text (StableDiffusionPipeline), 4.3 M parameters",
    "shapes-dit": "adaLN transformer, cross-attention, T5 text (PixArtSigmaPipeline), 4.4 M parameters",
}
#: name -> row; 64 x 64 RGB images, 20 steps, guidance 3
PIPELINES: Mapping[str, Embedded] = MappingProxyType(
    {name: Embedded(directory=HERE / name, description=text) for name, text in _KINDS.items()}
    | {
        f"{name}-outlier": Embedded(
            directory=HERE / name, description=f"{name} with activation outliers, same function", outliers=True
        )
        for name in _KINDS
    }
)
NAMES = tuple(PIPELINES)


def path(name: str) -> Path:
    """The checkpoint directory of the pipeline `name`; a variant made on load shares its original's."""
    return _row(name).directory


def _row(name: str) -> Embedded:
    if name not in PIPELINES:
        near = get_close_matches(name, PIPELINES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown embedded pipeline {name!r}{hint} (known: {', '.join(PIPELINES)})")
    return PIPELINES[name]


def load(name: str, device: torch.device | str = "cpu") -> Any:
    """The pipeline `name` in float32 on `device`, without progress bars of its own.

    Raises ValueError for an unknown name.
    """
    row = _row(name)
    with _quiet():
        import torch
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(row.directory, dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    if row.outliers:
        from analysis.models.embedded.outliers import add_outliers

        add_outliers(pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer)
    return pipeline.to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries announce imports and draw a bar per file; for a checkpoint of 9 MB that is noise."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    from diffusers.utils import logging as diffusers_logging

    bars = transformers.logging.is_progress_bar_enabled(), diffusers_logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars[0]:
            transformers.logging.enable_progress_bar()
        if bars[1]:
            diffusers_logging.enable_progress_bar()
