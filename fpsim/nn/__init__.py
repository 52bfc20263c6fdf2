"""The torch bridge: fake quantization that equals `fpsim.quantize` bit for bit, and layers that use it.

Everything here is looked up on first use, so that `fpsim.nn.quantizer`, which is plain data, can be read without torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Quantizer": "quantizer",
    "quantize": "functional",
    "encode": "functional",
    "decode": "functional",
    "QuantizedTensor": "tensor",
    "QuantizedLayer": "layer",
    "QuantizedLinear": "linear",
    "QuantizedConv2d": "conv",
    "Concatenated": "concat",
    "counted": "counting",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
