"""Other packages' quantizers, as callables on one array: each is None where the package is not installed."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

Run = Callable[[], object]


def installed(package: str) -> str:
    """The version of a package, "" if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def torchao_mxfp4(x: np.ndarray) -> Run | None:
    """torchao's MX quantize-dequantize, floor rule, blocks of 32."""
    if not installed("torchao"):
        return None
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    values = torch.from_numpy(x).reshape(-1, 4096)
    return lambda: MXTensor.to_mx(values, torch.float4_e2m1fn_x2, 32).dequantize(torch.float32)


def torchao_nvfp4(x: np.ndarray) -> Run | None:
    """torchao's NVFP4 quantize-dequantize with a tensor scale."""
    if not installed("torchao"):
        return None
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    values = torch.from_numpy(x).reshape(-1, 4096)

    def run() -> Any:
        scale = per_tensor_amax_to_scale(values.abs().max())
        return NVFP4Tensor.to_nvfp4(values, per_tensor_scale=scale).dequantize(torch.float32)

    return run


def gfloat_e4m3(x: np.ndarray) -> Run | None:
    """gfloat's vectorized rounding to E4M3 of the first 2**18 values."""
    if not installed("gfloat"):
        return None
    import gfloat
    from gfloat.formats import format_info_ocp_e4m3

    part = x[: 1 << 18].astype(np.float64)
    return lambda: gfloat.round_ndarray(format_info_ocp_e4m3, part, sat=True)


#: what -> (package, maker, share of the array that it works on)
BLOCK_PEERS: dict[str, tuple[str, Callable[[np.ndarray], Run | None]]] = {
    "mxfp4": ("torchao", torchao_mxfp4),
    "nvfp4": ("torchao", torchao_nvfp4),
}
