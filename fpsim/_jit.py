"""The only place that compiles: `kernel` turns a plain function into machine code, `parallel` spreads rows over cores.

Kernels are compiled without fastmath (it contracts a*b + c into a fused operation and changes bits) and without numba's
own threading: they release the interpreter lock and run on ordinary threads over disjoint ranges of rows, so results
do not depend on the number of threads, and several Python threads may call them at once.

Machine code is cached on disk, in a folder named by a hash of the sources kernels are made of (this file and _kernels,
which import nothing else of the package): numba by itself keeps serving old code after a function in another file
changed. Set FPSIM_CACHE=0 (or CI) to do without.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None if caching is off or the folder cannot be written."""
    if os.environ.get("FPSIM_CACHE", "1") == "0" or os.environ.get("CI"):
        return None
    digest = hashlib.sha256(numba.__version__.encode())
    package = Path(__file__).parent
    for source in [Path(__file__), *sorted(package.glob("_kernels/*.py"))]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "fpsim" / f"kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def kernel(function: F) -> F:
    """Compile on first call (lazily, per argument types); usable from other kernels, on the CPU and in CUDA code."""
    folder = cache_folder()
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder) if folder else before
    try:
        compiled: F = numba.njit(cache=folder is not None, nogil=True, fastmath=False)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


def threads() -> int:
    """Cores this process may use; FPSIM_THREADS overrides."""
    wanted = os.environ.get("FPSIM_THREADS")
    if wanted and not (wanted.isdecimal() and int(wanted)):
        raise ValueError(f"FPSIM_THREADS is {wanted!r}; allowed: a number of threads, 1 or more")
    return int(wanted) if wanted else len(os.sched_getaffinity(0))


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="fpsim")


def parallel(run: Callable[[int, int], object], count: int, grain: int = 1) -> None:
    """Call run(start, stop) over ranges that cover 0 .. count, at least `grain` long, on all cores."""
    workers = threads()
    if workers == 1 or count <= grain:
        run(0, count)
        return
    pieces = min(4 * workers, -(-count // grain))
    bounds = [count * i // pieces for i in range(pieces + 1)]
    for done in [_pool(workers).submit(run, a, b) for a, b in pairwise(bounds)]:
        done.result()
