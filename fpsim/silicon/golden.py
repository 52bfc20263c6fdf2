"""Golden vectors: what instructions of a machine returned, kept so that machines without it can check the emulators.

A file is a compressed .npz without pickles: for every probe and class of inputs the arrays `PROBE|CLASS|a`, `|b`, `|c`
(codes and the accumulator's start, as the emulator takes them) and `|d`, the bits that silicon returned; and `about`, a
JSON text that says which machine, when, and with which command.
"""

import datetime
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.engines import engine
from fpsim.silicon import cpu, nvidia
from fpsim.silicon.verify import inputs
from fpsim.spec import MatmulSpec

Array = npt.NDArray[Any]

#: rows of one recorded product: 512 outputs per class are enough to tell every model apart, and small in a repository
ROWS, COLUMNS, CPU_DEPTH = 64, 8, 24


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recorded product: `engine` and `operand` name its spec; `kind` is the class of inputs."""

    engine: str
    operand: str
    kind: str
    a: Array
    b: Array
    c: Array
    silicon: Array


def capture(path: Path, engines: Sequence[str] | None = None, seed: int = 0, command: str = "") -> list[str]:
    """Record every probe that runs on this machine into `path`; gives their names.

    Raises ValueError when none does, and for a path that is not an .npz file.
    """
    if path.suffix != ".npz":
        raise ValueError(f"golden vectors are an .npz file, not {path.name!r}")
    arrays: dict[str, Array] = {}
    done: list[str] = []
    for name in [*cpu.PROBES, *nvidia.PROBES]:
        if engines is not None and name not in engines and name.partition(" ")[0] not in engines:
            continue
        if (cpu if name in cpu.PROBES else nvidia).missing(name):
            continue
        done.append(name)
        for kind, a, b, c, d in _record(name, np.random.default_rng(seed)):
            arrays |= {f"{name}|{kind}|{part}": _plain(x) for part, x in zip("abcd", (a, b, c, d), strict=True)}
    if not done:
        raise ValueError("nothing to capture: no probe of the engines asked for runs on this machine")
    about = {
        "machine": _machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": command,
        "seed": seed,
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for flags
    return done


def cases(path: Path) -> Iterator[Case]:
    """Every recorded product of a file. Raises ValueError for a file that is not one of golden vectors."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a file of golden vectors: {error}") from None
    for key in sorted(arrays):
        if key.endswith("|a"):
            name, kind, _ = key.split("|")
            title, _, operand = name.partition(" ")
            a, b, c, d = (arrays[f"{name}|{kind}|{part}"] for part in "abcd")
            yield Case(engine=title, operand=operand, kind=kind, a=a, b=b, c=c, silicon=d)


def spec_of(case: Case) -> MatmulSpec:
    """The emulator's spec for a case."""
    if case.engine in cpu.PROBES:
        probe = cpu.PROBES[case.engine]
        return engine(case.engine, probe.a, probe.b)
    return engine(case.engine, case.operand, out="f32")


def _record(name: str, rng: np.random.Generator) -> Iterator[tuple[str, Array, Array, Array, Array]]:
    if name in cpu.PROBES:
        probe = cpu.PROBES[name]
        spec = engine(name, probe.a, probe.b)
        for kind, a, b, c in inputs(spec, rng, (ROWS, CPU_DEPTH, COLUMNS)):
            yield kind, a, b, c, cpu.run(name, a, b, c)
        return
    on_gpu = nvidia.PROBES[name]
    tiles = ROWS // on_gpu.rows
    spec = engine(on_gpu.engine, on_gpu.operand, out="f32")
    for kind, a, b, c in inputs(spec, rng, (ROWS, on_gpu.k, COLUMNS)):
        shared = np.broadcast_to(b, (tiles, *b.shape))
        d = nvidia.run(name, a.reshape(tiles, on_gpu.rows, -1), shared, c.reshape(tiles, on_gpu.rows, -1))
        yield kind, a, b, c, d.reshape(c.shape)


def _plain(values: Array) -> Array:
    """The codes of an array whose type numpy cannot store (bfloat16 and its like)."""
    return values.view(f"u{values.itemsize}") if values.dtype.kind == "V" else values


def _machine() -> str:
    if nvidia.capability() is None:
        return f"{platform.machine()} CPU with {', '.join(sorted(cpu.cpu_flags() & {'avx512_bf16', 'avx512_vnni'}))}"
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    runtime, driver = cupy.cuda.runtime.runtimeGetVersion(), cupy.cuda.runtime.driverGetVersion()
    return f"{name}, CUDA runtime {runtime}, driver {driver}"
