"""Weights of quantized layers in the parts that files of others are made of; ValueError says what does not fit.

Codes of E4M3 and E2M1 are the same bits everywhere (OCP). Two E2M1 codes share a byte, the first in the low half, here
as in BFL's, ModelOpt's and torchao's files.
"""

from typing import TYPE_CHECKING, Any

from fpsim.formats import BlockFormat
from fpsim.formats import format as format_row

if TYPE_CHECKING:
    from torch import Tensor

    from fpsim.nn.layer import QuantizedLayer

BLOCK = 16  # elements per NVFP4 block scale


def check_plain(layer: Any) -> None:
    """Raise ValueError unless `layer` is a quantized Linear whose output is just input times weight plus bias."""
    from fpsim.nn import QuantizedLayer, QuantizedLinear

    check_values(layer)
    if not isinstance(layer, QuantizedLayer):
        raise ValueError("its input channels are cut in two, with separate scales (concat)")
    if not isinstance(layer, QuantizedLinear):
        raise ValueError("it holds Linear layers, and this is a convolution")


def check_values(layer: Any) -> None:
    """Raise ValueError unless values of the weight alone make the layer: no transform, no side branch."""
    for part in getattr(layer, "halves", [layer]):
        if part.transform is not None:
            raise ValueError("its inputs are transformed before they are quantized")
        if part.branch is not None:
            raise ValueError("it has a side branch in full precision")


def check_activation(layer: "QuantizedLayer", wanted: str, granularities: tuple[str, ...]) -> None:
    """Raise ValueError unless inputs stay as they are, or are quantized at run time in `wanted`, as the loader does."""
    given = layer.activation_quantizer
    if given is None:
        return
    where = " or ".join(f"per {one}" for one in granularities)
    if given.format != wanted or given.granularity not in granularities:
        raise ValueError(f"its activations are {given}; the layout takes {wanted} {where}, or none (weight-only)")
    if given.row != format_row(wanted):
        raise ValueError(
            f"its activations are {given}; what loads the layout knows no rule for scales but {wanted}'s own"
        )
    if given.is_static:
        raise ValueError(
            f"its activations are {given} with a stored scale; the layout takes {wanted} {where} with scales at run "
            "time ('+dynamic'), or none (weight-only)"
        )


def e4m3(layer: "QuantizedLayer") -> "tuple[Tensor, Tensor]":
    """(float8_e4m3fn (N, K), float32 (N,) scales per row or () for the tensor)."""
    import torch

    quantizer = layer.weight_quantizer
    step = layer.weight_step
    if quantizer.format not in ("e4m3", "e4m3-finite") or quantizer.granularity == "block" or step is None:
        raise ValueError(f"its weight is {quantizer}; the layout takes e4m3 per output channel or per tensor")
    codes = layer.weight_codes
    beyond = int(((codes & 0x7F) == 0x7F).sum())
    if beyond:  # only the search's split has them: it numbers every code
        raise ValueError(
            f"{beyond} of its weights have the code of 480, which others read as NaN (E4M3 ends at 448): "
            "use format e4m3 without a search over splits"
        )
    return codes.view(torch.float8_e4m3fn), step.reshape(-1) if step.numel() > 1 else step.reshape(())


def _parts(row: Any) -> tuple[Any, ...]:
    """What a reader has to know; how scales were chosen (amax, four over six, in squares) is none of its business."""
    return row.element, row.scale, row.block, row.tensor_scale


def nvfp4(layer: "QuantizedLayer") -> "tuple[Tensor, Tensor, Tensor]":
    """(uint8 (N, K / 2) packed codes, float8_e4m3fn (N, K / 16) block scales, float32 () tensor scale)."""
    import torch

    from fpsim.nn import packing

    row = layer.weight_quantizer.row
    standard = format_row("nvfp4")
    scales, tensor = layer.weight_scale_codes, layer.weight_tensor_scale
    if not isinstance(row, BlockFormat) or _parts(row) != _parts(standard):
        raise ValueError(f"its weight is {layer.weight_quantizer}; the layout takes nvfp4")
    rows, columns = layer.shape
    if columns % BLOCK:
        raise ValueError(f"its {columns} input channels are no multiple of {BLOCK}")
    if scales is None or tensor is None or scales.shape != (rows, columns // BLOCK):
        raise ValueError("its scales are not one per 16 input channels and one per tensor")
    packed = packing.pack(layer.weight_codes, 4).view(rows, columns // 2)
    return packed, scales.view(torch.float8_e4m3fn), tensor.reshape(())
