"""Tensor core instructions of the NVIDIA GPU this runs on: the probes, compiled at run time by NVRTC through cupy.

One launch runs many independent tiles; operands and results stay on the GPU. An architecture that is not here is not
pretended: `missing` says so. Each instruction is one step of a GEMM; long K is for `fpsim.silicon.library`.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from fpsim._names import unknown
from fpsim.silicon import source
from fpsim.silicon.inputs import PARTS, Stream, Tiles, finish, shapes, table
from fpsim.silicon.instructions import ARCHITECTURES, Instruction, instructions
from fpsim.spec import MatmulSpec

Device = Any  #: a cupy array


@cache
def capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None without cupy or a GPU."""
    if find_spec("cupy") is None:
        return None
    import cupy

    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return None
    except cupy.cuda.runtime.CUDARuntimeError:
        return None
    digits = cupy.cuda.Device(0).compute_capability
    return int(digits[:-1]), int(digits[-1])


def device_name() -> str:
    """What the driver calls the first GPU."""
    import cupy

    name: str = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return name


def missing(name: str) -> str | None:
    """Why the instruction called `name` cannot run here; None if it can. Raises ValueError for an unknown name."""
    row = instructions().get(name)
    if row is None:
        raise unknown("instruction", name, instructions())
    here = capability()
    if here is None:
        return "no NVIDIA GPU, or no cupy (pip install 'fpsim[cuda]')"
    wanted = ARCHITECTURES[row.architecture].capabilities
    if here not in wanted:
        listed = " or ".join(f"{major}.{minor}" for major, minor in wanted)
        return f"this GPU has compute capability {here[0]}.{here[1]}, {row.architecture} is {listed}"
    if row.cuda and _nvrtc_version() < row.cuda:
        return f"NVRTC {'.'.join(map(str, _nvrtc_version()))} does not know it, {'.'.join(map(str, row.cuda))} does"
    return None


def draw(spec: MatmulSpec, tiles: Tiles, stream: Stream) -> dict[str, Device]:
    """Part -> array on the GPU, the same values as `fpsim.silicon.inputs.draw`."""
    import cupy

    found = {}
    for part, shape in shapes(spec, tiles).items():
        entries, dtype = table(spec, part, stream)
        out = cupy.empty(shape, dtype)
        pool = np.uint64(0) if entries is None else _on_device(spec, part, stream.seed, stream.kind)
        key = np.uint64(stream.key(PARTS.index(part)))
        _generator().get_function(f"draw_{dtype.itemsize}")((1024,), (256,), (key, np.uint64(out.size), pool, out))
        found[part] = out
    return finish(spec, stream.kind, found)


def run(row: Instruction, arrays: dict[str, Device]) -> Device:
    """d = a b + c of a batch of tiles, on the GPU.

    arrays : as `draw` gives them: a (T, rows, k), b (T, columns, k), c (T, rows, columns), with a_scale and b_scale
        for block-scaled instructions.

    Raises RuntimeError where the instruction is missing, ValueError for other shapes.
    """
    reason = missing(row.name)
    if reason:
        raise RuntimeError(f"{row.name} cannot run: {reason}")
    return launch(_module(row.engine), row, arrays)


def launch(module: Any, row: Instruction, arrays: dict[str, Device]) -> Device:
    """`run` in a module of `compiled`, on whatever GPU this is: other architectures may take the instruction too."""
    import cupy

    count = len(arrays["a"])
    wanted = shapes(row.spec, Tiles(count=count, rows=row.rows, k=row.k, columns=row.columns))
    given = {part: tuple(x.shape) for part, x in arrays.items()}
    if given != wanted:
        raise ValueError(f"{row.name} takes {wanted}, got {given}")
    ready = {part: cupy.ascontiguousarray(x) for part, x in arrays.items()}
    out = cupy.empty_like(ready["c"])
    scales = (ready.get("a_scale", ready["a"]), ready.get("b_scale", ready["b"]))  # not read without scales
    blocks = -(-count // row.tiles_per_block)
    arguments = (ready["a"], ready["b"], ready["c"], out, *scales, np.uint64(count))
    module.get_function(row.symbol)((blocks,), (128,), arguments)
    return out


def compiled(text: str) -> Any:
    """A module for this GPU, with its architecture-specific instructions."""
    import cupy

    major, minor = capability() or (0, 0)
    suffix = "a" if major >= 9 else ""
    options = ("--std=c++17", f"--gpu-architecture=sm_{major}{minor}{suffix}")
    return cupy.RawModule(code=text, backend="nvrtc", options=options)


@cache
def _on_device(spec: MatmulSpec, part: str, seed: int, kind: str) -> Device:
    import cupy

    entries, _ = table(spec, part, Stream(seed=seed, kind=kind))
    return cupy.asarray(entries)


@cache
def _nvrtc_version() -> tuple[int, int]:
    import cupy

    major, minor = cupy.cuda.nvrtc.getVersion()
    return int(major), int(minor)


@cache
def _generator() -> Any:
    return compiled(source.template("common.cu") + source.template("draw.cu"))


@cache
def _module(engine: str) -> Any:
    """The probes of one engine."""
    rows = [row for row in instructions().values() if row.engine == engine and missing(row.name) is None]
    return compiled(source.source(rows))
