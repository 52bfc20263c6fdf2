"""What torchao's layouts share: `from_pretrained` of any model class, with torchao 0.16 or later installed.

A tensor subclass is stored as its plain tensors, `x.weight` as `x._weight_qdata`, `x._weight_scale`, ..., and the
header has for every parameter, by name, a JSON text that says what to build of them, and the list of all names
(torchao 0.18, prototype/safetensors). config.json names a config of torchao, which only matters to new layers.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

FILE = "diffusion_pytorch_model.safetensors"


def check(denoiser: "Module") -> None:
    """Every model of diffusers has `from_pretrained`."""


def header(notes: Mapping[str, Mapping[str, Any]], names: list[str]) -> dict[str, str]:
    """One JSON text per parameter and the list of them."""
    plain = {"_type": "Tensor"}
    return {**{name: json.dumps(notes.get(name, plain)) for name in names}, "tensor_names": json.dumps(names)}


def note(kind: str, data: Mapping[str, Any], tensors: list[str]) -> dict[str, Any]:
    """What the header says of one quantized weight."""
    return {"_type": kind, "_data": dict(data), "_tensor_data_names": tensors}


def typed(kind: str, data: Any, version: int | None = None) -> dict[str, Any]:
    """A value of a type that torchao knows by name."""
    return {"_type": kind, **({} if version is None else {"_version": version}), "_data": data}


def dtype(name: str) -> dict[str, Any]:
    """A torch dtype."""
    return typed("torch.dtype", name)


def quantization(kind: str, data: Mapping[str, Any], version: int) -> dict[str, Any]:
    """The key "quantization_config" of config.json."""
    made = typed(kind, dict(data), version)
    return {"quant_method": "torchao", "quant_type": {"default": made}, "modules_to_not_convert": None}


def loading(folder: str, component: str, denoiser: str) -> str:
    return f"""\
import torch
from diffusers import DiffusionPipeline  # torchao >= 0.16 has to be installed

pipe = DiffusionPipeline.from_pretrained("{folder}", dtype=torch.bfloat16)
"""
