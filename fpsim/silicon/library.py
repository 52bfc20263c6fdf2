"""Whole GEMMs of torch on a Hopper GPU against the library engines, and how many ways a library split K.

cuBLAS picks a kernel per shape and may cut K into ranges; `matching_splits` finds into how many. A result that no
number explains is reported with its kernel's name, never passed over.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fpsim._names import unknown
from fpsim.codec import random_words
from fpsim.engines import engine
from fpsim.gemm import matmul
from fpsim.silicon import nvidia
from fpsim.silicon.inputs import PARTS, Stream, Tiles, draw
from fpsim.silicon.results import Verification
from fpsim.silicon.splits import matching_splits, words
from fpsim.spec import MatmulSpec

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

ENGINES = ("hopper/scaled_mm", "hopper/scaled_mm-fast", "hopper/torch-mm")

#: (m, n, k): small, one row, ragged, square, tall, few tiles with a long K. _scaled_mm wants n and k in sixteens.
SHAPES = (
    (16, 16, 32),
    (1, 32, 64),
    (1, 256, 1024),
    (3, 16, 4096),
    (17, 48, 80),
    (33, 64, 272),
    (64, 64, 128),
    (100, 272, 528),
    (128, 256, 512),
    (200, 144, 1024),
    (250, 1040, 336),
    (256, 512, 2048),
    (512, 512, 512),
    (1000, 64, 640),
    (16, 32, 4096),
    (64, 128, 4096),
    (64, 128, 8192),
    (64, 128, 16384),
    (128, 128, 16384),
    (512, 512, 4096),
    (1024, 1280, 1280),
)


QUICK = SHAPES[::3]  #: some of every sort
OUTPUTS = ("f32", "bf16", "f16")
SPECIALS = 128  #: longest K for random bits: beyond it every sum has met a NaN


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """One product asked of the library."""

    engine: str
    a: str
    b: str
    out: str
    m: int
    n: int
    k: int
    scales: str = "none"  #: "none", "tensor" or "row"
    bias: bool = False
    kind: str = "ordinary"  #: class of the operands, see `fpsim.silicon.inputs`

    @property
    def name(self) -> str:
        extras = [f"{self.scales} scales"] * (self.scales != "none") + ["bias"] * self.bias
        extras += [self.kind] * (self.kind != "ordinary")
        return " ".join([f"{self.a} x {self.b} -> {self.out} {self.m}x{self.n}x{self.k}", *extras])


def grid(name: str, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> Iterator[Gemm]:
    """Every product of an engine: operand types, results, scales, bias and shapes. Raises ValueError for another."""
    if name not in ENGINES:
        raise unknown("library engine", name, ENGINES)
    if name == "hopper/torch-mm":
        types = [(a, a, out) for a in ("bf16", "f16") for out in ("f32", a)]
        epilogues = [("none", False)]
    else:
        types = list(product(("e4m3",), ("e4m3", "e5m2"), OUTPUTS)) + list(product(("e5m2",), ("e4m3",), OUTPUTS))
        epilogues = list(product(("tensor", "row"), (False, True)))
    for (a, b, out), (scales, bias), (m, n, k) in product(types, epilogues, shapes):
        plain = Gemm(engine=name, a=a, b=b, out=out, m=m, n=n, k=k, scales=scales, bias=bias)
        yield plain
        if (scales, bias) == epilogues[0]:
            yield replace(plain, kind="wide")
            if k <= SPECIALS:
                yield replace(plain, kind="bits")


def operands(gemm: Gemm, seed: int = 0) -> dict[str, Array]:
    """Host arrays of a product: codes a (m, k) and b (k, n), float32 scales, float32 bias that every format holds.

    They depend on the seed, the class and the shape alone, and are the same on every machine.
    """
    stream = Stream(seed=seed, kind=gemm.kind, batch=((gemm.m * 1009 + gemm.n) * 1009 + gemm.k) % (1 << 20))
    a, b = _matrices(engine(gemm.engine, gemm.a, gemm.b), gemm.m, gemm.n, gemm.k, stream)
    found = {"a": a, "b": b}
    if gemm.scales != "none":
        drawn = random_words(stream.key(PARTS.index("a_scale")), gemm.m + gemm.n)
        scales = np.float32(0.5) + (drawn >> 8).astype(np.float32) * np.float32(2.0**-24)
        rows = gemm.scales == "row"
        found["a_scale"] = scales[: gemm.m, None] if rows else scales[0]
        found["b_scale"] = scales[None, gemm.m :] if rows else scales[gemm.m]
    if gemm.bias:
        drawn = random_words(stream.key(PARTS.index("b_scale")), gemm.n)
        found["bias"] = ((drawn >> 23).astype(np.float32) - 256) / 16
    return found


@lru_cache(maxsize=3 * len(SHAPES))  # the grid comes back to a shape with other scales
def _matrices(spec: MatmulSpec, m: int, n: int, k: int, stream: Stream) -> tuple[Array, Array]:
    drawn = draw(spec, Tiles(count=1, rows=m, k=k, columns=n), stream)
    return drawn["a"][0], drawn["b"][0].T


def missing() -> str | None:
    """Why the library engines cannot be compared here; None if they can."""
    here = nvidia.capability()
    if here is None:
        return "no NVIDIA GPU, or no cupy (pip install 'fpsim[cuda]')"
    if here != (9, 0):
        return f"this GPU has compute capability {here[0]}.{here[1]}, hopper is 9.0"
    import torch

    return None if torch.cuda.is_available() else "this torch was built without CUDA"


def verify(
    name: str, seed: int, progress: Callable[[str], None], shapes: Sequence[tuple[int, int, int]] = SHAPES
) -> list[Verification]:
    """Compare every product of `grid(name, shapes)`; one result per operand types and output format."""
    listed: dict[tuple[str, str, str], list[Gemm]] = {}
    for gemm in grid(name, shapes):
        listed.setdefault((gemm.a, gemm.b, gemm.out), []).append(gemm)
    reason = missing()
    results = []
    for (a, b, out), gemms in listed.items():
        title = f"{name} {a} x {b} -> {out}"
        blank = Verification(name=title, engine=name, a=a, b=b, out=out, shape=_listed(shapes))
        results.append(replace(blank, skipped=reason) if reason else _verify(blank, gemms, seed, progress))
    return results


def _listed(shapes: Sequence[tuple[int, int, int]]) -> str:
    return f"{len(shapes)} shapes" if len(shapes) > 3 else ", ".join("x".join(map(str, shape)) for shape in shapes)


def _verify(blank: Verification, gemms: Sequence[Gemm], seed: int, progress: Callable[[str], None]) -> Verification:
    started = time.monotonic()
    compared, unmatched, refused = 0, [], Counter[str]()
    splits: dict[str, set[int]] = {}
    for gemm in gemms:
        host = operands(gemm, seed)
        device = {part: _tensor(part, x, gemm) for part, x in host.items()}
        try:
            result = run(gemm, device)
        except (RuntimeError, ValueError, TypeError) as error:
            refused[f"{gemm.scales} scales{', bias' * gemm.bias}: {str(error).splitlines()[0]}"] += 1
            continue
        found = _splits(gemm, host, result)
        compared += gemm.m * gemm.n
        if found is None:
            kernel = kernels(gemm, device)
            unmatched.append(f"{gemm.name} ({kernel})")
            progress(f"unmatched: {gemm.name} ({kernel})")
        elif found > 1:
            splits.setdefault(f"{gemm.m}x{gemm.n}x{gemm.k}", set()).add(found)
    notes = [f"split K: {shape} in {' or '.join(map(str, sorted(s)))}" for shape, s in splits.items()]
    notes += [f"torch refuses {count} of {len(gemms)}: {reason}" for reason, count in refused.items()]
    if not compared:
        return replace(blank, skipped="; ".join(notes))
    return replace(
        blank,
        compared=compared,
        unmatched=tuple(unmatched),
        note="; ".join(notes),
        seconds=round(time.monotonic() - started, 2),
    )


def _splits(gemm: Gemm, host: dict[str, Array], result: Any) -> int | None:
    """Matched on the GPU where the CUDA backend takes the engine, else on the host."""
    on_gpu = _cuda_takes(gemm.engine)
    arrays: dict[str, Any] = {part: _codes(x) for part, x in host.items()} if on_gpu else dict(host)
    return matching_splits(
        result,
        arrays["a"],
        arrays["b"],
        name=gemm.engine,
        formats=(gemm.a, gemm.b),
        out=gemm.out,
        backend="cuda" if on_gpu else "cpu",
        **{part: x for part, x in arrays.items() if part not in "ab"},
    )


@cache
def _cuda_takes(name: str) -> bool:
    """Whether the CUDA backend runs an engine with tensors, an epilogue and split K."""
    gemm = next(grid(name, ((16, 16, 256),)))
    device: dict[str, Any] = {part: _codes(x) for part, x in operands(gemm).items()}
    epilogue = {part: x for part, x in device.items() if part not in "ab"}
    try:
        for splits in (1, 2):
            spec = engine(name, gemm.a, gemm.b, gemm.out, split_k=splits)
            matmul(device["a"], device["b"], spec, backend="cuda", **epilogue)
    except (ValueError, TypeError):
        return False
    return True


def _codes(values: Array) -> Any:
    """A host array on the GPU as it is: codes as unsigned integers, scales and bias as float32."""
    import torch

    return torch.from_numpy(np.atleast_1d(values)).cuda()


_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}


def _tensor(part: str, values: Array, gemm: Gemm) -> "torch.Tensor":
    """A host array as torch wants it: b column-major, the bias in the result's type."""
    import torch

    if part == "bias":
        kind = torch.float32 if gemm.out == "f32" else getattr(torch, _DTYPES[gemm.out])
        return torch.from_numpy(values).cuda().to(kind)
    if part.endswith("scale"):
        return torch.from_numpy(np.atleast_1d(values)).cuda()
    kind = getattr(torch, _DTYPES[gemm.a if part == "a" else gemm.b])
    signed = values.view(f"i{values.itemsize}")
    if part == "b":
        return torch.from_numpy(np.ascontiguousarray(signed.T)).cuda().view(kind).t()
    return torch.from_numpy(signed).cuda().view(kind)


def run(gemm: Gemm, device: dict[str, Any]) -> "torch.Tensor":
    """The library's result. Raises what torch raises for combinations it does not offer."""
    import torch

    kind = getattr(torch, _DTYPES[gemm.out])
    if gemm.engine == "hopper/torch-mm":
        flags = torch.backends.cuda.matmul
        before = flags.allow_bf16_reduced_precision_reduction, flags.allow_fp16_reduced_precision_reduction
        # By default cuBLAS may add the ranges of a split K in the operands' type.
        flags.allow_bf16_reduced_precision_reduction = flags.allow_fp16_reduced_precision_reduction = False
        try:
            if gemm.out == gemm.a:
                return torch.mm(device["a"], device["b"])
            return torch.mm(device["a"], device["b"], out_dtype=kind)
        finally:
            flags.allow_bf16_reduced_precision_reduction, flags.allow_fp16_reduced_precision_reduction = before
    fast = gemm.engine.endswith("-fast")
    result: torch.Tensor = torch._scaled_mm(
        device["a"],
        device["b"],
        device["a_scale"],
        device["b_scale"],
        bias=device.get("bias"),
        out_dtype=kind,
        use_fast_accum=fast,
    )
    return result


def capture(gemm: Gemm, seed: int = 0) -> tuple[Array, int]:
    """What the library returns for a product, as bits, and the number of splits that explains it.

    Raises ValueError when none does.
    """
    host = operands(gemm, seed)
    device = {part: _tensor(part, x, gemm) for part, x in host.items()}
    result = run(gemm, device)
    splits = _splits(gemm, host, result)
    if splits is None:
        raise ValueError(f"no number of splits explains {gemm.engine} {gemm.name} ({kernels(gemm, device)})")
    return words(result), splits


def kernels(gemm: Gemm, device: dict[str, Any]) -> str:
    """Names of the kernels the library ran, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run(gemm, device)
    return ", ".join(dict.fromkeys(event.key for event in recorded.key_averages())) or "no kernel seen"
