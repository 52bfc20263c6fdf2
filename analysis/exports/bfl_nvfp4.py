"""NVFP4 weights and calibrated input scales, as in Black Forest Labs' and ModelOpt's files (`from_single_file`).

weight uint8 (N, K / 2), two E2M1 codes per byte, the even one low; weight_scale float8_e4m3fn (N, K / 16);
weight_scale_2 float32 (); input_scale float32 (). Value: code * (weight_scale * weight_scale_2). input_scale is the
largest magnitude of the calibrated inputs / (6 * 448); GPUs from Blackwell on, with FlashInfer, quantize inputs with
it, others keep them as they are. Source: diffusers 0.42.1, quantizers/bfl and `BFLQuantizationConfig`.
"""

from typing import TYPE_CHECKING

from analysis.exports import Packed, _bfl
from analysis.exports._bfl import check as check
from analysis.exports._bfl import config as config
from analysis.exports._bfl import header as header
from analysis.exports._weights import check_activation, nvfp4

if TYPE_CHECKING:
    from fpsim.nn.layer import QuantizedLayer

FILE = "bfl-nvfp4.safetensors"
_TOP = 6.0 * 448.0  # the largest E2M1 times the largest E4M3


def pack(layer: "QuantizedLayer", span: "tuple[float, float] | None") -> Packed:
    import torch

    check_activation(layer, "nvfp4", ("block",))
    codes, scale, tensor = nvfp4(layer)
    if span is None:
        raise ValueError("the layout stores a calibrated scale of the inputs: pass calibration=")
    largest = torch.tensor(max(-span[0], span[1]), dtype=torch.float32)
    return Packed(
        tensors={"weight": codes, "weight_scale": scale, "weight_scale_2": tensor, "input_scale": largest / _TOP}
    )


def loading(folder: str, component: str, denoiser: str) -> str:
    return _bfl.loading(folder, component, denoiser, FILE)
