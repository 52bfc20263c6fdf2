"""E4M3 weights per row or per tensor as torchao's Float8Tensor (diffusers: `from_pretrained` with torchao >= 0.16).

qdata float8_e4m3fn (N, K), scale float32 (N, 1) or (1, 1); value qdata * scale. Inputs as they are, or E4M3 with
scales at run time: amax / 448 per token, or per tensor, where torchao takes one scale for a whole batch and `fpsim` one
per sample. Weights per tensor under inputs per token get their scale once per row: torchao wants the two to agree.
"""

from typing import TYPE_CHECKING, Any

from analysis.exports import Packed, _torchao
from analysis.exports._torchao import FILE as FILE
from analysis.exports._torchao import check as check
from analysis.exports._torchao import header as header
from analysis.exports._torchao import loading as loading
from analysis.exports._torchao import typed
from analysis.exports._weights import check_activation, e4m3

if TYPE_CHECKING:
    from fpsim.nn.layer import QuantizedLayer

_PER_ROW = typed("PerRow", {"dim": -1})
_PER_TENSOR = typed("PerTensor", {})
_KERNEL = typed("KernelPreference", "AUTO")
_E4M3 = _torchao.dtype("float8_e4m3fn")
_PRODUCTS = {"emulate": False, "use_fast_accum": True, "pad_inner_dim": False}  # torchao's default


def pack(layer: "QuantizedLayer", span: "tuple[float, float] | None") -> Packed:
    check_activation(layer, "e4m3", ("token", "tensor"))
    codes, scale = e4m3(layer)
    inputs = layer.activation_quantizer
    by_row = scale.ndim > 0
    if by_row and inputs is not None and inputs.granularity == "tensor":
        raise ValueError("torchao pairs inputs per tensor with weights per tensor; use inputs per token ('+dynamic')")
    by_row = by_row or (inputs is not None and inputs.granularity == "token")
    rows, columns = codes.shape
    dynamic = None
    if inputs is not None:
        kwargs = {"float8_dtype": _E4M3, "granularity": _PER_ROW if by_row else _PER_TENSOR, "mm_config": None}
        kwargs |= {"hp_value_lb": None, "hp_value_ub": None, "kernel_preference": _KERNEL}
        dynamic = typed("QuantizeTensorToFloat8Kwargs", kwargs)
    data = {
        "block_size": [1, columns] if by_row else [rows, columns],
        "mm_config": None if dynamic is None else typed("Float8MMConfig", _PRODUCTS),
        "act_quant_kwargs": dynamic,
        "kernel_preference": _KERNEL,
        "dtype": _torchao.dtype(str(layer.weight.dtype).removeprefix("torch.")),
    }
    return Packed(
        tensors={
            "_weight_qdata": codes,
            "_weight_scale": scale.reshape(-1, 1).expand(rows if by_row else 1, 1),
        },
        note=_torchao.note("Float8Tensor", data, ["qdata", "scale"]),
    )


def config(layers: "list[QuantizedLayer]") -> dict[str, Any]:
    inputs = layers[0].activation_quantizer
    by_row = typed("PerRow", {"dim": -1}, 1)
    if inputs is None:
        data: dict[str, Any] = {"weight_dtype": _E4M3, "set_inductor_config": True, "granularity": by_row}
        return _torchao.quantization("Float8WeightOnlyConfig", data, 2)
    grain = by_row if inputs.granularity == "token" else typed("PerTensor", {}, 1)
    data = {"activation_dtype": _E4M3, "weight_dtype": _E4M3, "granularity": [grain, grain]}
    return _torchao.quantization("Float8DynamicActivationFloat8WeightConfig", data, 2)
