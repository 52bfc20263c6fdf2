"""Golden vectors: what instructions of a machine returned, kept so that machines without it can check the emulators.

A file is a compressed .npz without pickles that holds results alone: for every instruction and class of inputs an array
`NAME|CLASS`, the bits silicon returned, and for every library product `library|INDEX`. The inputs are functions of the
seed (`fpsim.silicon.inputs`) and are made again when the file is read; `about`, a JSON text, says which machine, when,
and with which command, lists the library products, and has a digest of every instruction's inputs, so that a change of
the generator is seen and not taken for one of the emulator.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.silicon import cpu, inputs, library, nvidia, record
from fpsim.silicon.inputs import KINDS, Stream, Tiles
from fpsim.silicon.instructions import instructions
from fpsim.silicon.library import Gemm
from fpsim.spec import MatmulSpec

Array = npt.NDArray[Any]

#: outputs per class: enough to tell every model apart, and small in a repository
OUTPUTS = 512

#: library products that are kept whole: small, ragged, and those that split K
GEMMS = (
    *(
        Gemm(engine=name, a=a, b=b, out=out, m=33, n=64, k=272, scales=scales, bias=bias)
        for name in ("hopper/scaled_mm", "hopper/scaled_mm-fast")
        for a, b, out, scales, bias in (
            ("e4m3", "e4m3", "f32", "tensor", False),
            ("e4m3", "e5m2", "f16", "tensor", True),
            ("e5m2", "e4m3", "bf16", "tensor", True),
            ("e4m3", "e4m3", "bf16", "row", True),
        )
    ),
    Gemm(engine="hopper/scaled_mm-fast", a="e4m3", b="e4m3", out="f32", m=64, n=128, k=16384, scales="tensor"),
    Gemm(engine="hopper/scaled_mm", a="e4m3", b="e4m3", out="bf16", m=64, n=128, k=8192, scales="tensor"),
    Gemm(engine="hopper/torch-mm", a="bf16", b="bf16", out="f32", m=33, n=64, k=272),
    Gemm(engine="hopper/torch-mm", a="f16", b="f16", out="f16", m=33, n=64, k=272),
    Gemm(engine="hopper/torch-mm", a="bf16", b="bf16", out="bf16", m=64, n=128, k=4096),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recorded batch of tiles: inputs as `fpsim.silicon.inputs.draw` gives them, and what silicon returned."""

    name: str
    kind: str
    spec: MatmulSpec
    arrays: dict[str, Array]
    silicon: Array


@dataclass(frozen=True, kw_only=True)
class LibraryCase:
    """One recorded product of a library, its operands, and the number of splits that was found for it."""

    gemm: Gemm
    splits: int
    operands: dict[str, Array]
    silicon: Array


def capture(path: Path, names: Sequence[str], seed: int = 0, command: str = "") -> list[str]:
    """Record every instruction of `names`, and the products of the library engines, that this machine can run.

    Returns the names of what was recorded. Raises ValueError when nothing was, and for a path that is not an .npz file.
    """
    if path.suffix != ".npz":
        raise ValueError(f"golden vectors are an .npz file, not {path.name!r}")
    arrays: dict[str, Array] = {}
    digests: dict[str, str] = {}
    for name in names:
        if name in library.ENGINES or _missing(name):
            continue
        given = {kind: _inputs(name, kind, seed) for kind in KINDS}
        digests[name] = digest(given.values())
        arrays |= {f"{name}|{kind}": _run(name, x) for kind, x in given.items()}
    products: list[dict[str, Any]] = []
    for gemm in GEMMS:
        if gemm.engine in names and not library.missing():
            result, splits = library.capture(gemm, seed)
            arrays[f"library|{len(products)}"] = result
            products.append(asdict(gemm) | {"splits": splits})
    if not arrays:
        raise ValueError("nothing to capture: no probe of the engines asked for runs on this machine")
    about = record.about(command, seed) | {"inputs": digests, "library": products}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for flags
    return [*digests, *(gemm.name for gemm in GEMMS[: len(products)])]


def about(path: Path) -> dict[str, Any]:
    """Where a file comes from. Raises ValueError for a file that is not one of golden vectors."""
    found: dict[str, Any] = json.loads(_load(path)["about"].tobytes())
    return found


def cases(path: Path, names: Sequence[str] | None = None) -> Iterator[Case]:
    """Every recorded batch of the instructions called `names` (by default of all).

    Raises ValueError for a file that is not one of golden vectors, or whose inputs can no longer be made.
    """
    arrays, told = _load(path), about(path)
    for name, kept in told["inputs"].items():
        if names is not None and name not in names:
            continue
        given = {kind: _inputs(name, kind, told["seed"]) for kind in KINDS}
        if digest(given.values()) != kept:
            raise ValueError(f"{path}: the inputs of {name} are not those it was recorded with; capture it again")
        for kind, x in given.items():
            yield Case(name=name, kind=kind, spec=_spec(name), arrays=x, silicon=arrays[f"{name}|{kind}"])


def library_cases(path: Path) -> Iterator[LibraryCase]:
    """Every recorded product of a library."""
    arrays, told = _load(path), about(path)
    for index, product in enumerate(told["library"]):
        splits = product.pop("splits")
        gemm = Gemm(**product)
        yield LibraryCase(
            gemm=gemm,
            splits=splits,
            operands=library.operands(gemm, told["seed"]),
            silicon=arrays[f"library|{index}"],
        )


def digest(drawn: Any) -> str:
    """Of the bytes of several draws, in their order."""
    total = hashlib.sha256()
    for arrays in drawn:
        for part in sorted(arrays):
            total.update(np.ascontiguousarray(arrays[part]).tobytes())
    return total.hexdigest()[:16]


def _load(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("about", *file.files)}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is not a file of golden vectors: {error}") from None


def _missing(name: str) -> str | None:
    if name in cpu.PROBES:
        return cpu.missing(name)
    return nvidia.missing(name) if name in instructions() else "no probe"


def _spec(name: str) -> MatmulSpec:
    return cpu.spec(name) if name in cpu.PROBES else instructions()[name].spec


def _inputs(name: str, kind: str, seed: int) -> dict[str, Array]:
    if name in cpu.PROBES:
        rows, k, columns = 64, cpu.DEPTH, 8
    else:
        row = instructions()[name]
        rows, k, columns = row.rows, row.k, row.columns
    tiles = Tiles(count=max(1, OUTPUTS // (rows * columns)), rows=rows, k=k, columns=columns)
    return inputs.draw(_spec(name), tiles, Stream(seed=seed, kind=kind))


def _run(name: str, given: dict[str, Array]) -> Array:
    if name in cpu.PROBES:
        return cpu.run(name, given["a"], given["b"].transpose(0, 2, 1), given["c"])
    import cupy

    result: Array = nvidia.run(instructions()[name], {part: cupy.asarray(x) for part, x in given.items()}).get()
    return result
