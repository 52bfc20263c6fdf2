"""Compare emulators with the machine at hand, instruction by instruction, in the classes of `fpsim.silicon.inputs`.

On a GPU everything stays there: inputs are drawn, the instruction and the CUDA emulator run, and the words that differ
are counted on it; only the first differing output comes back. An engine whose accumulator the CUDA backend does not run
is compared on the host, on fewer outputs, and the result says so.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim._names import unknown
from fpsim.engines import ENGINES
from fpsim.gemm import matmul
from fpsim.silicon import cpu, inputs, library, nvidia
from fpsim.silicon.inputs import KINDS, Stream, Tiles
from fpsim.silicon.instructions import instructions
from fpsim.silicon.results import Difference, Verification
from fpsim.spec import MatmulSpec

Array = npt.NDArray[Any]

#: outputs of one class in one go: on a GPU bounded by its memory, on the host by patience
GPU_BATCH, HOST_BATCH = 1 << 24, 1 << 16
HOST_OUTPUTS = 1 << 20  #: per instruction, where a GPU's outputs have to be compared on the host

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An instruction that can be run here, and its emulator."""

    name: str
    blank: Verification  #: the result without counts
    spec: MatmulSpec
    rows: int
    k: int
    columns: int
    on_gpu: bool
    hands_payloads_through: bool  #: of NaN operands; the emulators return one NaN
    draw: Callable[[MatmulSpec, Tiles, Stream], dict[str, Any]]
    run: Callable[[dict[str, Any]], Any]

    def tiles(self, outputs: int) -> Tiles:
        return Tiles(
            count=max(1, -(-outputs // (self.rows * self.columns))), rows=self.rows, k=self.k, columns=self.columns
        )


def verify(
    engines: Sequence[str] | None = None,
    outputs: int = 200_000,
    seed: int = 0,
    progress: Progress = lambda text: None,
    shapes: Sequence[tuple[int, int, int]] = library.SHAPES,
) -> list[Verification]:
    """Compare each engine (by default all) that has hardware here, on at least `outputs` outputs per instruction.

    engines : names of engines, or of single instructions as `Verification.name` gives them.
    progress : is told about every result as it arrives.
    shapes : (m, n, k) of the products asked of libraries.

    Raises ValueError for a name that is neither.
    """
    results = []
    for name in names(engines):
        if name in library.ENGINES:
            found = library.verify(name, seed, progress, shapes)
        else:
            found = [verify_instruction(name, outputs, seed)]
        for result in found:
            if not result.skipped:
                progress(str(result))
        results += found
    return results


def names(engines: Sequence[str] | None = None) -> list[str]:
    """What `verify` goes through: instructions of the CPU and the GPU, libraries, and engines without a probe."""
    known = [*cpu.PROBES, *instructions(), *library.ENGINES]
    if engines is None:
        return known
    found: list[str] = []
    for wanted in engines:
        matching = [name for name in known if wanted in (name, name.partition(" ")[0])]
        if not matching and wanted not in ENGINES:
            raise unknown("engine", wanted, [*ENGINES, *known])
        found += matching or [wanted]
    return list(dict.fromkeys(found))


def verify_instruction(name: str, outputs: int, seed: int = 0) -> Verification:
    """Compare one instruction, by its name."""
    probe = find(name)
    if isinstance(probe, Verification):
        return probe
    started, backend, note = time.monotonic(), "cpu", ""
    if probe.on_gpu:
        backend, note = _backend(probe, seed)
        if backend == "cpu":
            outputs = min(outputs, HOST_OUTPUTS)
    compared, differences, first = 0, 0, None
    for kind, stream, tiles in batches(probe, outputs, seed, GPU_BATCH if backend == "cuda" else HOST_BATCH):
        arrays = probe.draw(probe.spec, tiles, stream)
        silicon = probe.run(arrays)
        emulated = emulate(probe.spec, arrays, backend)
        if probe.on_gpu and backend == "cpu":
            silicon = silicon.get()
        bad = _different(emulated, silicon, payloads=not probe.hands_payloads_through)
        wrong = int(bad.sum())
        compared, differences = compared + tiles.outputs, differences + wrong
        if wrong and first is None:
            first = _describe(f"{kind}, batch {stream.batch}", arrays, emulated, silicon, bad)
    if probe.hands_payloads_through:
        note = "; ".join([*([note] if note else []), "any NaN counts as equal: the instruction hands payloads through"])
    seconds = time.monotonic() - started
    return replace(
        probe.blank, compared=compared, differences=differences, first=first, note=note, seconds=round(seconds, 2)
    )


def find(name: str) -> Probe | Verification:
    """The probe called `name`; where it cannot run, the result that says why."""
    if name in cpu.PROBES:
        return _cpu_probe(name)
    row = instructions().get(name)
    if row is None:
        return Verification(name=name, engine=name, skipped="no probe for this engine")
    blank = Verification(
        name=name,
        engine=row.engine,
        a=row.a,
        b=row.b,
        out=row.out,
        scale=row.scale,
        block=row.block,
        k=row.spec_k,
        shape=f"m{row.rows}n{row.columns}k{row.k}",
    )
    reason = nvidia.missing(name)
    if reason:
        return replace(blank, skipped=reason)
    return Probe(
        name=name,
        blank=blank,
        spec=row.spec,
        rows=row.rows,
        k=row.k,
        columns=row.columns,
        on_gpu=True,
        hands_payloads_through=row.out == "f64",
        draw=nvidia.draw,
        run=lambda arrays: nvidia.run(row, arrays),
    )


def _cpu_probe(name: str) -> Probe | Verification:
    row, spec = cpu.PROBES[name], cpu.spec(name)
    blank = Verification(
        name=name, engine=name, a=row.a, b=row.b, out=spec.out, shape=f"chains of {cpu.DEPTH // row.step}"
    )
    reason = cpu.missing(name)
    if reason:
        return replace(blank, skipped=reason)
    return Probe(
        name=name,
        blank=blank,
        spec=spec,
        rows=64,
        k=cpu.DEPTH,
        columns=64,
        on_gpu=False,
        hands_payloads_through=spec.out == "f32",
        draw=inputs.draw,
        run=lambda arrays: cpu.run(name, arrays["a"], arrays["b"].transpose(0, 2, 1), arrays["c"]),
    )


def batches(probe: Probe, outputs: int, seed: int, most: int) -> Iterator[tuple[str, Stream, Tiles]]:
    """Every class in equal parts, at least `outputs` in all, at most about `most` at a time."""
    each = -(-outputs // len(KINDS))
    for kind in KINDS:
        for batch in range(-(-each // most)):
            tiles = probe.tiles(min(most, each - batch * most))
            yield kind, Stream(seed=seed, kind=kind, batch=batch), tiles


def emulate(spec: MatmulSpec, arrays: dict[str, Any], backend: str) -> Any:
    """The emulator's result for drawn arrays (cupy arrays for backend "cuda")."""
    if backend == "cpu":
        arrays = {part: x.get() if hasattr(x, "get") else x for part, x in arrays.items()}
    scales = {}
    if spec.block:
        scales = {"a_scale": arrays["a_scale"], "b_scale": arrays["b_scale"].transpose(0, 2, 1)}
    result = matmul(arrays["a"], arrays["b"].transpose(0, 2, 1), spec, arrays["c"], backend=backend, **scales)
    if backend == "cpu":
        return result
    import cupy

    return cupy.asarray(result)


def _backend(probe: Probe, seed: int) -> tuple[str, str]:
    """Which backend emulates a probe of the GPU, found out on one tile; and what to say of it."""
    try:
        emulate(probe.spec, probe.draw(probe.spec, probe.tiles(1), Stream(seed=seed, kind="ordinary")), "cuda")
    except ValueError as error:
        return "cpu", f"compared on the host: {error}"
    return "cuda", ""


def _different(x: Any, y: Any, payloads: bool) -> Any:
    """Where two results differ in any bit; without payloads, any NaN is as good as another."""
    different = x.view(f"u{x.itemsize}") != y.view(f"u{y.itemsize}")
    if not payloads:
        different &= ~((x != x) & (y != y))  # NaN, on the CPU and on the GPU
    return different


def _describe(inputs: str, arrays: dict[str, Any], emulated: Any, silicon: Any, bad: Any) -> Difference:
    """The first differing output, with its operands."""
    at = int(bad.reshape(-1).argmax())
    tile, i, j = (int(index) for index in np.unravel_index(at, bad.shape))
    c, mine, theirs = (_words(x[tile, i, j : j + 1])[0] for x in (arrays["c"], emulated, silicon))
    scales = [_hex(arrays[part][tile, at]) for part, at in (("a_scale", i), ("b_scale", j)) if part in arrays]
    return Difference(
        inputs=f"{inputs}, tile {tile}, row {i}, column {j}",
        a=_hex(arrays["a"][tile, i]),
        b=_hex(arrays["b"][tile, j]),
        a_scale=scales[0] if scales else (),
        b_scale=scales[1] if scales else (),
        c=hex(c),
        emulated=hex(mine),
        silicon=hex(theirs),
        ulps=abs(_order(mine, silicon.dtype) - _order(theirs, silicon.dtype)),
    )


def _order(word: int, dtype: Any) -> int:
    """Consecutive numbers for consecutive values, whatever the sign."""
    top = 1 << (8 * dtype.itemsize - 1)
    if dtype.kind == "i":
        return word - 2 * top if word >= top else word
    return word if word < top else top - word


def _words(values: Any) -> list[int]:
    here = values.get() if hasattr(values, "get") else values
    return [int(word) for word in np.ascontiguousarray(here).view(f"u{here.itemsize}")]


def _hex(values: Any) -> tuple[str, ...]:
    return tuple(map(hex, _words(values)))
