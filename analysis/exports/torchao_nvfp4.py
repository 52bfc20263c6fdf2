"""NVFP4 weights as torchao's NVFP4Tensor (diffusers: `from_pretrained` with torchao >= 0.16).

qdata uint8 (N, K / 2), two E2M1 codes per byte, the even one low; scale float8_e4m3fn (N, K / 16); per_tensor_scale
float32 (); value code * (per_tensor_scale * scale). Inputs as they are, or NVFP4 with both scales at run time (torchao
takes the tensor scale over a whole batch, `fpsim` per sample), which torchao does for N a multiple of 16.
"""

from typing import TYPE_CHECKING, Any

from analysis.exports import Packed, _torchao
from analysis.exports._torchao import FILE as FILE
from analysis.exports._torchao import check as check
from analysis.exports._torchao import header as header
from analysis.exports._torchao import loading as loading
from analysis.exports._torchao import typed
from analysis.exports._weights import BLOCK, check_activation, nvfp4

if TYPE_CHECKING:
    from fpsim.nn.layer import QuantizedLayer


def pack(layer: "QuantizedLayer", span: "tuple[float, float] | None") -> Packed:
    check_activation(layer, "nvfp4", ("block",))
    codes, scale, tensor = nvfp4(layer)
    dynamic = None
    if layer.activation_quantizer is not None:
        if len(codes) % BLOCK:
            raise ValueError(f"its {len(codes)} output channels are no multiple of {BLOCK}, as torchao's kernels want")
        kwargs = {"is_swizzled_scales": False, "use_triton_kernel": False, "use_dynamic_per_tensor_scale": True}
        dynamic = typed("QuantizeTensorToNVFP4Kwargs", {"block_size": BLOCK, **kwargs})
    data = {
        "is_swizzled_scales": False,
        "use_triton_kernel": False,
        "act_quant_kwargs": dynamic,
        "block_size": BLOCK,
        "orig_dtype": _torchao.dtype(str(layer.weight.dtype).removeprefix("torch.")),
    }
    return Packed(
        tensors={"_weight_qdata": codes, "_weight_scale": scale, "_weight_per_tensor_scale": tensor},
        note=_torchao.note("NVFP4Tensor", data, ["per_tensor_scale", "qdata", "scale"]),
    )


def config(layers: "list[QuantizedLayer]") -> dict[str, Any]:
    data: dict[str, Any] = {"use_dynamic_per_tensor_scale": True}
    if layers[0].activation_quantizer is None:
        return _torchao.quantization("NVFP4WeightOnlyConfig", data, 1)
    data = {"use_triton_kernel": False, **data, "step": None}
    return _torchao.quantization("NVFP4DynamicActivationNVFP4WeightConfig", data, 1)
