"""Arrays on the device: what callers hand in, seen as flat words with strides; what they get back.

Anything with `__cuda_array_interface__` is taken (CuPy, Numba, torch). Results for a torch tensor are torch tensors on
its device; for everything else they are Numba device arrays, which CuPy and others view without a copy.
"""

import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numba import cuda

from fpsim._kernels import cuda_arrays
from fpsim.formats import Format

THREADS = 256

#: torch types that are codes -> (integer type of the same width that Numba knows, format)
_TORCH_CODES = {
    "torch.float8_e4m3fn": ("uint8", "e4m3"),
    "torch.float8_e5m2": ("uint8", "e5m2"),
    "torch.float8_e4m3fnuz": ("uint8", "e4m3fnuz"),
    "torch.float8_e5m2fnuz": ("uint8", "e5m2fnuz"),
    "torch.float8_e8m0fnu": ("uint8", "e8m0"),
    "torch.bfloat16": ("int16", "bf16"),
    "torch.float16": ("int16", "f16"),
    "torch.float32": ("int32", "f32"),
    "torch.float64": ("int64", "f64"),
}


def is_on_device(x: Any) -> bool:
    """Whether x is an array on a CUDA device."""
    if is_tensor(x):
        return bool(x.is_cuda)
    return hasattr(x, "__cuda_array_interface__")


def is_tensor(x: Any) -> bool:
    """Whether x is a torch tensor; torch is not imported to find out."""
    return type(x).__module__.partition(".")[0] == "torch" and hasattr(x, "is_cuda")


def _torch() -> Any:
    """The torch module, which is loaded wherever a tensor is."""
    return sys.modules["torch"]


def launch(kernel: Any, count: int, *args: Any) -> None:
    """One thread for each of `count` elements."""
    if count:
        kernel[-(-count // THREADS), THREADS](*args)


def new(shape: tuple[int, ...], dtype: Any) -> Any:
    """Uninitialised device memory for one product: from torch's pool where torch is at work, else from the driver.

    The driver's allocation and release stop the device, which a network of small layers would feel.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return cuda.device_array(shape, dtype)
    held = torch.empty(math.prod(shape) * np.dtype(dtype).itemsize, dtype=torch.uint8, device="cuda")
    return cuda.as_cuda_array(held).view(dtype).reshape(shape) if held.numel() else cuda.device_array(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """`new`, filled with zeros."""
    made = new(shape, dtype)
    launch(cuda_arrays.clear, made.size, made.reshape(made.size))
    return made


@dataclass(frozen=True)
class Codes:
    """Codes on the device as (T, rows, K), whatever their strides; T is 1 where one matrix serves all products."""

    words: Any  #: one-dimensional device array over the memory they lie in
    strides: tuple[int, int, int]  #: in elements
    shape: tuple[int, int, int]

    def transposed(self) -> "Codes":
        (t, i, k), (a, b, c) = self.strides, self.shape
        return Codes(self.words, (t, k, i), (a, c, b))


def native(x: Any) -> Any:
    """A device array of plain numbers as Numba's; torch's narrow floats as integers of their width."""
    if is_tensor(x):
        x = x.detach()
        if str(x.dtype) in ("torch.uint16", "torch.uint32", "torch.uint64"):  # some torch versions do not export these
            return _retyped(cuda.as_cuda_array(x.view(getattr(_torch(), f"int{8 * x.element_size()}"))))
        named = _TORCH_CODES.get(str(x.dtype))
        if named is not None and str(x.dtype) not in ("torch.float32", "torch.float64", "torch.float16"):
            x = x.view(getattr(_torch(), named[0]))
    elif not hasattr(x, "__cuda_array_interface__"):
        x = cuda.to_device(np.ascontiguousarray(x))
    return cuda.as_cuda_array(x)


def codes(x: Any, row: Format, name: str) -> Codes:
    """Codes of `row` that a caller handed in, of two or more axes, checked like `fpsim.codec.as_codes`.

    Raises ValueError for a dtype that cannot hold codes of the format, and for codes it does not have.
    """
    known = _TORCH_CODES.get(str(x.dtype)) if is_tensor(x) else None
    array = native(x)
    dtype = array.dtype
    own = known[1] if known else {"float16": "f16", "float32": "f32", "float64": "f64"}.get(dtype.name)
    wanted = np.dtype(row.code_dtype)
    if own is not None:
        if own != row.name and not (own == "f32" and row.kind == "float" and row.shift and wanted == np.uint32):
            raise ValueError(f"{name} has dtype {getattr(x, 'dtype', dtype)}, but codes of {row.name!r} are {wanted}")
        if dtype.kind == "f" or dtype.kind == "i":
            array = array.view(f"u{dtype.itemsize}") if array.is_c_contiguous() else _retyped(array)
    elif dtype.kind not in "iu" or dtype.itemsize > 8:
        raise ValueError(f"{name} has dtype {dtype}, but codes of {row.name!r} are {wanted}")
    made = _flat(array, name)
    if own is None:
        _check(made, row, name, array.dtype)
    return made


def _retyped(array: Any) -> Any:
    """An array of any strides as unsigned integers of the same width."""
    dtype = np.dtype(f"u{array.dtype.itemsize}")
    return _view(array, array.shape, array.strides, dtype)


def _view(array: Any, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Any:
    from numba.cuda.cudadrv.devicearray import DeviceNDArray

    return DeviceNDArray(shape=shape, strides=strides, dtype=dtype, stream=array.stream, gpu_data=array.gpu_data)


def _flat(array: Any, name: str) -> Codes:
    """(..., rows, K) as (T, rows, K): leading axes of length 1 or dense ones become one."""
    size = array.dtype.itemsize
    shape, strides = tuple(array.shape), tuple(s // size for s in array.strides)
    leading = [(n, s) for n, s in zip(shape[:-2], strides[:-2], strict=True) if n != 1]
    for (_, outer), (n, inner) in pairwise(leading):
        if outer != n * inner:
            raise ValueError(f"the leading axes of {name} {shape} do not lie one after the other; make it contiguous")
    count = math.prod(n for n, _ in leading)
    step = leading[-1][1] if leading else 0
    if min((step, *strides[-2:]), default=0) < 0:
        raise ValueError(f"{name} has negative strides; make it contiguous")
    whole = (count, *shape[-2:])
    extent = 1 + sum((n - 1) * s for n, s in zip(whole, (step, *strides[-2:]), strict=True)) if math.prod(whole) else 0
    words = _view(array, (extent,), (size,), array.dtype)
    return Codes(words, (step, *strides[-2:]), whole)


def _check(given: Codes, row: Format, name: str, dtype: Any) -> None:
    """ValueError if any code is not one of `row`; costs a pass only where the dtype holds more than the format."""
    low, high = (
        (int(row.min * 2**row.bias), row.max_code) if row.kind == "int" else (0, (1 << row.bits + row.shift) - 1)
    )
    info = np.iinfo(dtype)
    if low <= info.min and info.max <= high:
        return
    found = cuda.to_device(np.zeros(1, np.int32))
    launch(cuda_arrays.outside, math.prod(given.shape), given.words, given.strides, given.shape, low, high, found)
    if found.copy_to_host()[0]:
        raise ValueError(f"{name} has codes outside {row.name!r} (allowed: {low} to {high})")


def empty(like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """(what the caller gets, the same memory for kernels): torch for torch, Numba's own otherwise.

    Types Numba does not know (bfloat16, FP8) are integers of their width in kernels, and outside torch.
    """
    if is_tensor(like):
        torch = _torch()
        name = {"float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2"}.get(dtype.name, dtype.name)
        made = torch.empty(shape, dtype=getattr(torch, name), device=like.device)
        return made, native(made)
    plain = dtype if dtype.kind in "fiu" else np.dtype(f"u{dtype.itemsize}")
    made = new(shape, plain)
    return made, made
