"""SCALE-Sim topologies and plain CSV: how a workload leaves for other tools, and how theirs come in.

SCALE-Sim describes a layer as a convolution without batch, padding, dilation or groups, or as a product M, N, K.  Going
out, padding is added to the input size, each group and each batch row becomes a row of its own (in the gemm form a
convolution's batch is part of M), as does every execution of a counted operation, and attention becomes its two
products per head.  What is no product is left out.  Coming in, a convolution has padding 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ._names import choose
from .ops import Attention, Conv, Conv2d, Gemm, Op
from .workload import Workload

CONV = (
    "Layer name",
    "IFMAP Height",
    "IFMAP Width",
    "Filter Height",
    "Filter Width",
    "Channels",
    "Num Filter",
    "Strides",
)
GEMM = ("Layer", "M", "N", "K")
FORMS = ("conv", "gemm")


def _products(op: Op) -> Iterator[Gemm]:
    """The products an operation is for SCALE-Sim, one per batch row and group."""
    if isinstance(op, Conv):
        op = op.gemm()
    if isinstance(op, Gemm):
        for _ in range(op.batch * op.count):
            yield replace(op, batch=1, count=1)
    if isinstance(op, Attention):
        value = op.value_dim or op.head_dim
        for _ in range(op.batch * op.heads * op.count):
            yield Gemm(path=f"{op.path}.scores", m=op.queries, n=op.keys, k=op.head_dim, parameter=False)
            yield Gemm(path=f"{op.path}.values", m=op.queries, n=value, k=op.keys, parameter=False)


def _conv_rows(op: Op, name: str) -> Iterator[tuple[object, ...]]:
    if not isinstance(op, Conv2d) or op.dilation != 1:
        for product in _products(op):
            yield (product.path or name, product.m, 1, 1, 1, product.k, product.n, 1)
        return
    rows, columns = op.kernels
    up = op.kernel // 2 if op.padding is None else op.padding
    aside = op.padding_width if op.padding_width is not None else (columns // 2 if op.padding is None else op.padding)
    for _ in range(op.batch * op.groups * op.count):
        sizes = (op.height + 2 * up, op.width + 2 * aside, rows, columns)
        yield (op.path or name, *sizes, op.in_channels // op.groups, op.out_channels // op.groups, op.stride)


def to_scalesim(workload: Workload, form: str = "conv") -> str:
    """A topology file of the matrix work: form "conv" (eight columns) or "gemm" (M, N, K)."""
    choose("topology form", form, FORMS)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=",\n")  # SCALE-Sim wants a comma at the end of each line
    writer.writerow(CONV if form == "conv" else GEMM)
    for number, op in enumerate(workload.ops):
        name = op.path or f"{op.kind}{number}"
        if form == "conv":
            writer.writerows(_conv_rows(op, name))
        else:
            writer.writerows((p.path or name, p.m, p.n, p.k) for p in _products(op))
    return out.getvalue()


def _numbers(cells: Sequence[str], names: Sequence[str], line: int) -> list[int]:
    out = []
    for cell, name in zip(cells, names, strict=True):
        try:
            out.append(int(cell))
        except ValueError as error:
            raise ValueError(f"topology, line {line}: {name} is {cell!r}; allowed: an integer") from error
    return out


def from_scalesim(text: str, name: str = "topology", form: str | None = None) -> Workload:
    """The workload of a topology file; the form is read off the number of columns unless given.

    Raises ValueError naming the line and what is allowed there.
    """
    if form is not None:
        choose("topology form", form, FORMS)
    ops: list[Op] = []
    for line, row in enumerate(csv.reader(io.StringIO(text)), start=1):
        cells = [cell.strip() for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if line == 1 or not cells:
            continue
        if len(cells) == len(GEMM) and form != "conv":
            m, n, k = _numbers(cells[1:], GEMM[1:], line)
            ops.append(_checked(line, partial(Gemm, path=cells[0], m=m, n=n, k=k)))
        elif len(cells) in (len(CONV), len(CONV) + 1) and form != "gemm":
            ops.append(_conv(cells, line))
        else:
            wanted = {"conv": len(CONV), "gemm": len(GEMM)}.get(form or "", f"{len(GEMM)} (gemm) or {len(CONV)} (conv)")
            raise ValueError(f"topology, line {line}: {len(cells)} columns; allowed: {wanted}")
    if not ops:
        raise ValueError(f"topology {name!r} has no layers; a header line and one line per layer are expected")
    return Workload(name=name, ops=tuple(ops))


def _conv(cells: list[str], line: int) -> Op:
    if len(cells) > len(CONV) and cells[-1] not in ("1:1",):
        raise ValueError(f"topology, line {line}: {cells[-1]!r} in column 9; allowed: nothing, or '1:1' (no sparsity)")
    height, width, rows, columns, channels, filters, stride = _numbers(cells[1 : len(CONV)], CONV[1:], line)
    return _checked(
        line,
        lambda: Conv2d(
            path=cells[0],
            in_channels=channels,
            out_channels=filters,
            height=height,
            width=width,
            kernel=rows,
            kernel_width=None if columns == rows else columns,
            stride=stride,
            padding=0,
        ),
    )


def _checked(line: int, make: Callable[[], Op]) -> Op:
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"topology, line {line}: {error}") from error


def load_scalesim(path: str | Path, form: str | None = None) -> Workload:
    """Read a topology file; ValueError names the file."""
    found = Path(path)
    try:
        return from_scalesim(found.read_text(encoding="utf-8"), found.stem, form)
    except ValueError as error:
        raise ValueError(f"{found}: {error}") from error


def to_csv(workload: Workload) -> str:
    """One line per operation with everything `Workload.rows` says."""
    rows = workload.rows()
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
