"""Arrays of other libraries as numpy arrays over the same memory, without importing those libraries."""

import sys
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

#: torch types that numpy has not, each with the ml_dtypes type of the same layout
_SAME_LAYOUT = {
    f"torch.{name}": np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
}


def host_array(x: npt.ArrayLike) -> npt.NDArray[Any]:
    """numpy.asarray, also for torch CPU tensors with a gradient or of a type numpy has not (float8, bfloat16).

    Raises ValueError for a tensor on another device, and for packed pairs of codes.
    """
    dtype = str(getattr(x, "dtype", ""))
    if not dtype.startswith("torch."):
        return np.asarray(x)
    tensor: Any = x
    if tensor.device.type != "cpu":
        raise ValueError(f"a tensor on {tensor.device} was given where host memory is needed; pass tensor.cpu()")
    if dtype.endswith("_x2"):
        raise ValueError(f"{dtype} packs two codes in a byte; view it as torch.uint8 and take it apart with unpack()")
    same = _SAME_LAYOUT.get(dtype)
    if same is None:
        return np.asarray(tensor.detach())
    words = tensor.detach().view(getattr(sys.modules["torch"], f"uint{8 * same.itemsize}"))
    viewed: npt.NDArray[Any] = words.numpy().view(same)
    return viewed


def on_device(x: Any) -> bool:
    """Whether x is an array or tensor in the memory of a CUDA device."""
    if type(x).__module__.partition(".")[0] == "torch":
        return bool(getattr(x, "is_cuda", False))
    return hasattr(x, "__cuda_array_interface__")
