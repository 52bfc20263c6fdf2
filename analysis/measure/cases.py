"""What is measured: operations in formats, as lists that never change order.

Two suites.  `diffusion`: the shapes of full-size models as traced (`diffusion.csv`, written by
`write_traced`).  `ragged`: shapes nobody tuned for, from a fixed seed: any number of rows, features
that are multiples of 8, 16 or 64, one row above a tile, few rows.  Each is spread over the kinds, so that a run which
a time budget cuts short has measured some of everything.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from hwmodels.ops import Attention, Conv2d, ConvNd, Elementwise, Gemm, Move, Norm, Op, Quantize, Reduction
from hwmodels.shape import from_words, to_words

SUITES = ("diffusion", "ragged")
TRACED = Path(__file__).parent / "diffusion.csv"

#: (model, part, rows): what `diffusion.csv` is traced from
SOURCES = (
    *((name, "denoiser", rows) for name in ("sd15", "sdxl-base", "dit-xl-2-256") for rows in (2, 16)),
    *((name, "denoiser", 2) for name in ("pixart-sigma", "sd3-medium", "cogvideox-2b")),
    *((name, "denoiser", 1) for name in ("flux1-dev", "wan21-1.3b")),
    *((name, "vae-decode", 1) for name in ("sd15", "sdxl-base")),
    *((name, "text-encoder", 1) for name in ("sdxl-base", "flux1-dev")),
)
LARGEST_MACS = 8e12  #: above it one call takes tens of milliseconds and says nothing new


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel to time: an operation in a format; `variant` names a way of running it, "" the ordinary one."""

    suite: str
    op: Op
    format: str = "bf16"
    variant: str = ""

    @property
    def kind(self) -> str:
        return self.op.kind

    @property
    def identity(self) -> dict[str, str]:
        """The cells that tell it from other cases."""
        return {"kind": self.kind, "shape": to_words(self.op), "format": self.format, "variant": self.variant}


@lru_cache(maxsize=1)
def traced() -> tuple[Op, ...]:
    """The distinct operations of `diffusion.csv`."""
    with TRACED.open(encoding="utf-8", newline="") as file:
        return tuple(from_words(row["kind"], row["shape"]) for row in csv.DictReader(file))


def _gemms(suite: str) -> Iterator[Case]:
    shapes: list[tuple[int, int, int]] = []
    if suite == "diffusion":
        shapes = [(op.m, op.n, op.k) for op in traced() if isinstance(op, Gemm) and op.batch == 1 and op.parameter]
    else:
        pick = random.Random(1)
        features = (256, 320, 640, 768, 1000, 1152, 1280, 1536, 2048, 2240, 3072, 3584, 4096, 5120, 8192, 11008, 13824)
        for rows in (1, 2, 4, 8, 16, 32, 64, 77, 128, 129, 154, 256, 257, 300, 512, 513, 1024, 1025, 2048, 3000, 4096):
            shapes += [(rows, pick.choice(features), pick.choice(features)) for _ in range(5)]
        for _ in range(95):
            rows = round(2 ** pick.uniform(0, 15))
            grain = pick.choice((8, 16, 64))
            n, k = (max(round(2 ** pick.uniform(6.5, 14) / grain), 4) * grain for _ in range(2))
            shapes.append((rows, n, k))
    for m, n, k in dict.fromkeys(shapes):
        case = Case(suite=suite, op=Gemm(m=m, n=n, k=k))
        yield case
        if n % 16 == 0 and k % 16 == 0:
            yield replace(case, format="fp8")
            if m % 3 == 0:
                yield replace(case, format="fp8", variant="rowwise")
        if m > 16 and n % 8 == 0 and k % 8 == 0 and (m + n + k) // 8 % 2:
            yield replace(case, format="int8")
        if (m + n + k) // 8 % 3 == 0:
            yield replace(case, format="fp16")


def _convs(suite: str) -> Iterator[Case]:
    ops: list[Conv2d | ConvNd] = []
    if suite == "diffusion":
        ops = [op for op in traced() if isinstance(op, Conv2d | ConvNd)]
    else:
        pick = random.Random(2)
        for _ in range(30):
            size, kernel = pick.choice((8, 14, 20, 28, 40, 48, 72, 96, 112)), pick.choice((1, 3, 3, 3, 5))
            channels = [pick.choice((32, 64, 96, 128, 192, 256, 384, 448, 512, 768, 1024)) for _ in range(2)]
            ops.append(
                Conv2d(
                    batch=pick.choice((1, 2, 3, 8)),
                    in_channels=channels[0],
                    out_channels=channels[1],
                    height=size,
                    width=size,
                    kernel=kernel,
                    stride=pick.choice((1, 1, 2)),
                    padding=kernel // 2,
                )
            )
    for op in ops:
        bare = replace(op, bias=False, dtype="", out_dtype="")
        last = replace(bare, layout="channels_last")
        yield Case(suite=suite, op=last)
        yield Case(suite=suite, op=replace(bare, layout="channels_first"))
        if op.bias:
            yield Case(suite=suite, op=replace(bare, layout="channels_first", bias=True))


def _attentions(suite: str) -> Iterator[Case]:
    ops: list[Attention] = []
    if suite == "diffusion":
        ops = [op for op in traced() if isinstance(op, Attention)]
    else:
        pick = random.Random(3)
        for head_dim in (40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128):
            for tokens in (pick.choice((256, 333, 1024)), pick.choice((1500, 2048, 4096)), pick.choice((6000, 9216))):
                heads = pick.choice((8, 16, 20, 24))
                ops.append(
                    Attention(batch=pick.choice((1, 2)), heads=heads, queries=tokens, keys=tokens, head_dim=head_dim)
                )
            keys, tokens = pick.choice((77, 300, 512)), pick.choice((1024, 4096, 8192))
            ops.append(Attention(batch=2, heads=16, queries=tokens, keys=keys, head_dim=head_dim))
            if head_dim in (64, 72, 128):
                ops.append(Attention(batch=2, heads=16, queries=tokens, keys=keys, head_dim=head_dim, mask=True))
    for op in ops:
        case = Case(suite=suite, op=replace(op, dtype="", out_dtype=""))
        yield case
        if not op.mask:
            yield replace(case, variant="cudnn")


def _norms(suite: str) -> Iterator[Case]:
    if suite == "diffusion":
        for op in traced():
            if isinstance(op, Norm):
                yield Case(suite=suite, op=op)
                if op.variant == "group" and not op.dtype:
                    yield Case(suite=suite, op=op, variant="channels_last")
        return
    pick = random.Random(4)
    for variant in ("layer", "rms"):
        for columns in (64, 128, 320, 640, 1152, 1280, 1536, 2048, 3072, 5120):
            affine = columns * (1 if variant == "rms" else pick.choice((0, 2)))
            yield Case(
                suite=suite,
                op=Norm(rows=round(2 ** pick.uniform(8, 15)), columns=columns, variant=variant, affine=affine),
            )


_SIZES = (12, 14, 16, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27)


def _pointwise(suite: str) -> Iterator[Case]:
    if suite == "diffusion":
        for power in _SIZES:
            n = 2**power
            yield Case(suite=suite, op=Elementwise(elements=n, function="silu"))
            yield Case(suite=suite, op=Elementwise(elements=n, function="add", reads=2 * n))
            yield Case(suite=suite, op=Elementwise(elements=n, function="mul", reads=n), variant="broadcast")
            yield Case(suite=suite, op=Move(writes=n, reads=n, function="transpose"))
        return
    pick = random.Random(5)
    for _ in range(14):
        n = max(round(2 ** pick.uniform(14, 26) / 1024), 1) * 1024
        yield Case(suite=suite, op=Elementwise(elements=n, function="gelu"))
        yield Case(suite=suite, op=Elementwise(elements=n, function="gelu"), variant="strided")
        yield Case(suite=suite, op=Elementwise(elements=n, function="cast", dtype="f32", out_dtype="bf16"))
        yield Case(suite=suite, op=Elementwise(elements=n, function="cast", dtype="bf16", out_dtype="f32"))
        yield Case(suite=suite, op=Elementwise(elements=n, function="mul", reads=2 * n, dtype="f32", out_dtype="f32"))
        yield Case(suite=suite, op=Move(writes=n, reads=n, function="cat"))
        yield Case(suite=suite, op=Move(writes=n, reads=n // 4, function="upsample"))


def _quantizers(suite: str) -> Iterator[Case]:
    pick = random.Random(6)
    for power in _SIZES[1:] if suite == "diffusion" else range(8):
        if suite == "diffusion":
            k, elements = 1024, 2**power
        else:
            k = pick.choice((320, 640, 1152, 1280, 1536, 3072, 5120))
            elements = round(2 ** pick.uniform(6, 14)) * k
        cast = Quantize(elements=elements, format="e4m3")
        yield Case(suite=suite, op=cast)
        yield Case(suite=suite, op=cast, variant="eager")
        yield Case(suite=suite, op=Reduction(elements=elements, function="amax"))
        yield Case(suite=suite, op=replace(cast, group=k), variant="token")


#: kind of measurement -> its cases of a suite
_MAKERS: Mapping[str, Callable[[str], Iterator[Case]]] = {
    "gemm": _gemms,
    "conv": _convs,
    "attention": _attentions,
    "norm": _norms,
    "elementwise": _pointwise,
    "quantize": _quantizers,
}
KINDS = tuple(_MAKERS)


def cases(kinds: Iterable[str] = KINDS, suites: Iterable[str] = SUITES, formats: Iterable[str] = ()) -> list[Case]:
    """The cases of some kinds and suites, spread evenly; formats: only these (none: all).

    Raises ValueError for an unknown kind or suite.
    """
    for given, known in ((kinds := tuple(kinds), KINDS), (suites := tuple(suites), SUITES)):
        for name in given:
            if name not in known:
                raise ValueError(
                    f"unknown {'kind' if known is KINDS else 'suite'} {name!r} (known: {', '.join(known)})"
                )
    wanted = set(formats)
    found: list[tuple[float, Case]] = []
    for kind in kinds:
        for suite in suites:
            unique = dict.fromkeys(case for case in _MAKERS[kind](suite) if not wanted or case.format in wanted)
            rows = [case for case in unique if case.op.macs <= LARGEST_MACS]
            # a fixed shuffle first: whatever part gets measured is a sample of the whole
            random.Random(7).shuffle(rows)
            found += [((i + 0.5) / len(rows), case) for i, case in enumerate(rows)]
    unknown = wanted - {case.format for _, case in found}
    if unknown:
        raise ValueError(f"no case in the format {', '.join(sorted(unknown))}; known: bf16, fp16, fp8, int8")
    return [case for _, case in sorted(found, key=lambda item: item[0])]


def write_traced(path: Path = TRACED) -> None:
    """Trace `SOURCES` and write their distinct products, convolutions, attentions and norms."""
    import analysis

    rows: dict[tuple[str, str], list[str]] = {}
    for name, part, batch in SOURCES:
        for traced_op in analysis.trace(name, batch=batch, part=part).shapes[0]:
            op = replace(traced_op, library="") if isinstance(traced_op, Attention) else traced_op
            if isinstance(op, Gemm | Conv2d | ConvNd | Attention | Norm) and _runs(op):
                rows.setdefault((op.kind, to_words(op)), []).append(f"{name}:{part}:{batch}")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", "shape", "of"))
        writer.writerows((kind, shape, " ".join(sorted(set(of)))) for (kind, shape), of in sorted(rows.items()))


def _runs(op: Op) -> bool:
    """Whether the operation's fields say all that is needed to run it."""
    if isinstance(op, ConvNd):
        return all(o in (s, s - k + 1) for s, k, o in zip(op.size, op.kernel, op.output, strict=True))
    if isinstance(op, Norm) and op.variant == "group":
        return op.affine > 0 and op.rows % 32 == 0
    return not (isinstance(op, Gemm) and math.prod((op.m, op.n, op.k)) < 2)
