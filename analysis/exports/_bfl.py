"""What BFL's two layouts share: a file of its own, read by the `from_single_file` of the denoiser's class."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

    from fpsim.nn.layer import QuantizedLayer


def check(denoiser: "Module") -> None:
    """Raise ValueError unless diffusers loads this class from single files."""
    from diffusers.loaders import FromOriginalModelMixin

    if not isinstance(denoiser, FromOriginalModelMixin):
        raise ValueError(
            f"diffusers reads this layout with from_single_file, which {type(denoiser).__name__} does not have; "
            "use a torchao layout"
        )


def header(notes: Mapping[str, Mapping[str, Any]], names: list[str]) -> dict[str, str]:
    """Nothing: the tensors' names say it all."""
    return {}


def config(layers: "list[QuantizedLayer]") -> dict[str, Any] | None:
    """Nothing: diffusers takes this method's config as an argument, not from config.json."""
    return None


def loading(folder: str, component: str, denoiser: str, file: str) -> str:
    return f"""\
import torch
from diffusers import BFLQuantizationConfig, DiffusionPipeline, {denoiser}

denoiser = {denoiser}.from_single_file(
    "{folder}/{component}/{file}", config="{folder}", subfolder="{component}",
    quantization_config=BFLQuantizationConfig(compute_dtype=torch.bfloat16), dtype=torch.bfloat16,
)
pipe = DiffusionPipeline.from_pretrained("{folder}", {component}=denoiser, dtype=torch.bfloat16)
"""
