"""E4M3 weights with a float32 scale per row, as in Black Forest Labs' FP8 files (diffusers: `from_single_file`).

weight float8_e4m3fn (N, K), weight_scale float32 (N,), beside the tensors of the model; a Linear is quantized if it has
a weight_scale. Value: weight * weight_scale[:, None]. The loader keeps inputs as they are on CPUs and older GPUs, and
quantizes them per token on GPUs with FP8. Source: diffusers 0.42.1, quantizers/bfl and `BFLQuantizationConfig`.
"""

from typing import TYPE_CHECKING

from analysis.exports import Packed, _bfl
from analysis.exports._bfl import check as check
from analysis.exports._bfl import config as config
from analysis.exports._bfl import header as header
from analysis.exports._weights import check_activation, e4m3

if TYPE_CHECKING:
    from fpsim.nn.layer import QuantizedLayer

FILE = "bfl-fp8r.safetensors"


def pack(layer: "QuantizedLayer", span: "tuple[float, float] | None") -> Packed:
    check_activation(layer, "e4m3", ("token",))
    codes, scale = e4m3(layer)
    return Packed(tensors={"weight": codes, "weight_scale": scale.expand(len(codes))})


def loading(folder: str, component: str, denoiser: str) -> str:
    return _bfl.loading(folder, component, denoiser, FILE)
