"""How many ranges a library cut K into, found by matching its result bit for bit.

With few output tiles and a long K, cuBLAS cuts K into ranges that are summed apart (`fpsim.accumulators.SplitK`); how
many is a heuristic that it does not document.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.engines import engine
from fpsim.gemm import matmul

Array = npt.NDArray[Any]

SPLITS = range(1, 33)


def matching_splits(
    result: Any,
    a: Any,
    b: Any,
    *,
    name: str,
    formats: tuple[str, str],
    out: str = "f32",
    candidates: Sequence[int] = SPLITS,
    backend: str = "cpu",
    **epilogue: Any,
) -> int | None:
    """The number of ranges the library cut K into: the smallest candidate that gives `result` bit for bit.

    result : what the library returned, (m, n), a torch tensor or an array of the output's type.
    a, b : codes of `formats`, (m, k) and (k, n); name, out : the library engine and its result format.
    epilogue : a_scale, b_scale, bias, as `fpsim.matmul` takes them.

    Returns None if no candidate does: another algorithm, or an engine that is not this one. A narrow output of few
    values may be the same for two numbers; ask for float32 where the number itself matters.
    """
    wanted = words(result)
    few = min(len(wanted), 8)  # enough to tell; the whole is compared for the candidate that passes
    for splits in candidates:
        spec = engine(name, *formats, out=out, split_k=splits)
        some = {key: value[:few] if key == "a_scale" and value.ndim == 2 else value for key, value in epilogue.items()}
        if not np.array_equal(words(matmul(a[:few], b, spec, backend=backend, **some)), wanted[:few]):
            continue
        if np.array_equal(words(matmul(a, b, spec, backend=backend, **epilogue)), wanted):
            return splits
    return None


def words(values: Any) -> Array:
    """Bit patterns of a tensor or array, on the host."""
    if hasattr(values, "detach"):
        import torch

        kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
        values = values.detach().view(kinds[values.element_size()]).cpu().numpy()
    elif hasattr(values, "copy_to_host"):
        values = values.copy_to_host()
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
