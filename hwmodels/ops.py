"""The operations: products, convolutions, attention, norms, pointwise work, movement, and quantization.

Conventions (one execution, elements counted once, `out[m, n] = sum_k a[m, k] * b[n, k]`) are those of `op.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ._names import choose
from .op import Op as Op
from .op import Traffic, check_size


@dataclass(frozen=True, kw_only=True)
class Gemm(Op):
    """`batch` products of (m, k) with (n, k) transposed: a Linear layer, or a batched product of activations.

    parameter: b is a stored weight (a Linear) and quantized as one; otherwise it is another activation (bmm).
    """

    m: int
    n: int
    k: int
    batch: int = 1
    bias: bool = False
    parameter: bool = True
    MATMUL: ClassVar[bool] = True

    @property
    def macs(self) -> int:
        return self.batch * self.m * self.n * self.k

    @property
    def flops(self) -> int:
        return self.batch * self.m * self.n if self.bias else 0

    @property
    def traffic(self) -> Traffic:
        b = self.batch * self.n * self.k
        return Traffic(
            weights=b if self.parameter else 0,
            reads=self.batch * self.m * self.k + (0 if self.parameter else b),
            writes=self.batch * self.m * self.n,
            wide=self.n if self.bias else 0,
        )

    def describe(self) -> str:
        return (f"{self.batch} x " if self.batch > 1 else "") + f"{self.m} x {self.n} x {self.k}"


@dataclass(frozen=True, kw_only=True)
class Conv(Op):
    """Convolution over any number of axes; `Conv2d` and `ConvNd` give it its sizes."""

    batch: int = 1
    in_channels: int
    out_channels: int
    groups: int = 1
    bias: bool = False
    layout: str = "channels_last"
    MATMUL: ClassVar[bool] = True

    def _check(self) -> None:
        if self.layout not in ("channels_last", "channels_first"):
            raise ValueError(f"Conv: layout={self.layout!r}; allowed: 'channels_last', 'channels_first'")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(f"Conv: groups={self.groups} must divide {name}={getattr(self, name)}")
        if any(size < 1 for size in self.outputs):
            raise ValueError(f"Conv: kernel {self.kernels} does not fit into the padded input {self.inputs}")

    @property
    def inputs(self) -> tuple[int, ...]:
        """Input size along each axis."""
        raise NotImplementedError

    @property
    def kernels(self) -> tuple[int, ...]:
        """Kernel size along each axis."""
        raise NotImplementedError

    @property
    def outputs(self) -> tuple[int, ...]:
        """Output size along each axis."""
        raise NotImplementedError

    def gemm(self) -> Gemm:
        """The product an implicit-GEMM kernel computes: rows are output pixels, k runs over channel and kernel."""
        return Gemm(
            path=self.path,
            count=self.count,
            m=self.batch * math.prod(self.outputs),
            n=self.out_channels // self.groups,
            k=self.in_channels // self.groups * math.prod(self.kernels),
            batch=self.groups,
            bias=self.bias,
        )

    def padded_gemm(self, channels: int, columns: int) -> Gemm:
        """`gemm()` as a kernel runs it: input channels padded to `channels` where the kernel has more than one element,
        output channels to at least `columns`."""
        gemm, elements = self.gemm(), math.prod(self.kernels)
        if elements == 1:
            return gemm
        inner = -(-self.in_channels // self.groups // channels) * channels
        return replace(gemm, k=inner * elements, n=max(gemm.n, columns))

    @property
    def macs(self) -> int:
        return self.gemm().macs

    @property
    def flops(self) -> int:
        return self.gemm().flops

    @property
    def traffic(self) -> Traffic:
        return Traffic(
            weights=self.out_channels * self.in_channels // self.groups * math.prod(self.kernels),
            reads=self.batch * self.in_channels * math.prod(self.inputs),
            writes=self.batch * self.out_channels * math.prod(self.outputs),
            wide=self.out_channels if self.bias else 0,
        )

    def describe(self) -> str:
        sizes = "x".join(map(str, self.inputs))
        groups = f" groups {self.groups}" if self.groups > 1 else ""
        kernels = "x".join(map(str, self.kernels))
        return f"{self.batch} x {self.in_channels} x {sizes} -> {self.out_channels}, {kernels}{groups}"


def conv_output(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Output length of a convolution along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True, kw_only=True)
class Conv2d(Conv):
    """2-D convolution given by its INPUT size; padding=None keeps the size of an odd kernel (kernel // 2).

    kernel_width, padding_width: only where they differ from `kernel`, `padding`.
    """

    height: int
    width: int
    kernel: int
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    kernel_width: int | None = None
    padding_width: int | None = None

    def _check(self) -> None:
        for name in ("padding", "padding_width"):
            if getattr(self, name) is not None:
                check_size("Conv2d", name, getattr(self, name), 0)
        if self.kernel_width is not None:
            check_size("Conv2d", "kernel_width", self.kernel_width)
        super()._check()

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.height, self.width

    @property
    def kernels(self) -> tuple[int, ...]:
        return self.kernel, self.kernel if self.kernel_width is None else self.kernel_width

    @property
    def outputs(self) -> tuple[int, ...]:
        rows = self.kernel // 2 if self.padding is None else self.padding
        columns = self.padding_width
        if columns is None:
            columns = self.kernels[1] // 2 if self.padding is None else self.padding
        return (
            conv_output(self.height, self.kernel, self.stride, rows, self.dilation),
            conv_output(self.width, self.kernels[1], self.stride, columns, self.dilation),
        )


@dataclass(frozen=True, kw_only=True)
class ConvNd(Conv):
    """Convolution over one or three axes (video), input and output sizes given as traced."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]

    def _check(self) -> None:
        for name in ("size", "kernel", "output"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != len(self.size) or not value:
                raise ValueError(f"ConvNd: {name}={value}; allowed: one integer per axis, as in size={self.size}")
            for item in value:
                check_size("ConvNd", name, item)
        super()._check()

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.size

    @property
    def kernels(self) -> tuple[int, ...]:
        return self.kernel

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.output


#: whose attention kernel
LIBRARIES = ("", "torch")

#: how operands lie in memory: alike and dense; with gaps or repeated (an index is computed per element); or so that
#: neighbours in the result are far apart in an operand
LAYOUTS = ("", "strided", "transposed")


@dataclass(frozen=True, kw_only=True)
class Attention(Op):
    """softmax(Q K^T) V per head: (queries, head_dim) x (keys, head_dim) x (keys, value_dim).

    kv_heads: heads of K and V when fewer (grouped queries); causal: query i sees keys up to i (aligned at the end);
    mask: an additive mask of queries x keys is read once per batch row; library: whose kernel it is ("torch": the one
    its scaled_dot_product_attention picks, which tracing records; "": the best there is).
    """

    batch: int = 1
    heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int | None = None
    kv_heads: int | None = None
    causal: bool = False
    mask: bool = False
    library: str = ""
    MATMUL: ClassVar[bool] = True

    def _check(self) -> None:
        choose("library", self.library, LIBRARIES)
        for name in ("value_dim", "kv_heads"):
            if getattr(self, name) is not None:
                check_size("Attention", name, getattr(self, name))
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"Attention: kv_heads={self.kv_heads} must divide heads={self.heads}")

    @property
    def pairs(self) -> int:
        """(query, key) pairs scored per head: all, or those at or before the diagonal."""
        if not self.causal:
            return self.queries * self.keys
        rows = min(self.queries, self.keys)
        return rows * self.keys - rows * (rows - 1) // 2

    @property
    def macs(self) -> int:
        return self.batch * self.heads * self.pairs * (self.head_dim + (self.value_dim or self.head_dim))

    @property
    def flops(self) -> int:
        return 5 * self.batch * self.heads * self.pairs  # scale, subtract the maximum, exponential, sum, divide

    @property
    def traffic(self) -> Traffic:
        value = self.value_dim or self.head_dim
        kv = self.kv_heads or self.heads
        mask = self.batch * self.queries * self.keys if self.mask else 0
        return Traffic(
            reads=self.batch * (self.heads * self.queries * self.head_dim + kv * self.keys * (self.head_dim + value))
            + mask,
            writes=self.batch * self.heads * self.queries * value,
        )

    def describe(self) -> str:
        return f"{self.batch} x {self.heads} heads, {self.queries} x {self.keys}, d {self.head_dim}"


@dataclass(frozen=True, kw_only=True)
class Norm(Op):
    """Normalisation of `rows` groups of `columns` elements: variant "layer", "group", "rms", "batch"."""

    rows: int
    columns: int
    variant: str = "layer"
    affine: int = 0
    FUSABLE: ClassVar[bool] = True

    @property
    def flops(self) -> int:
        return 8 * self.rows * self.columns  # mean, variance, subtract, scale, gain, offset

    @property
    def traffic(self) -> Traffic:
        elements = self.rows * self.columns
        return Traffic(reads=elements, writes=elements, wide=self.affine)


@dataclass(frozen=True, kw_only=True)
class Softmax(Op):
    """Softmax over the last axis of a (rows, columns) array, outside an attention kernel."""

    rows: int
    columns: int
    FUSABLE: ClassVar[bool] = True

    @property
    def flops(self) -> int:
        return 5 * self.rows * self.columns

    @property
    def traffic(self) -> Traffic:
        return Traffic(reads=self.rows * self.columns, writes=self.rows * self.columns)


@dataclass(frozen=True, kw_only=True)
class Elementwise(Op):
    """`elements` results of a pointwise function; `reads` elements in all, 0 meaning one operand of that size.

    layout: one of `LAYOUTS`.
    """

    elements: int
    function: str = "copy"
    reads: int = 0
    layout: str = ""
    FUSABLE: ClassVar[bool] = True

    def _check(self) -> None:
        choose("layout", self.layout, LAYOUTS)

    @property
    def flops(self) -> int:
        return self.elements

    @property
    def traffic(self) -> Traffic:
        return Traffic(reads=self.reads or self.elements, writes=self.elements)


@dataclass(frozen=True, kw_only=True)
class Reduction(Op):
    """`elements` reduced to `outputs` by "sum", "mean", "amax", ..."""

    elements: int
    outputs: int = 1
    function: str = "sum"
    FUSABLE: ClassVar[bool] = True

    @property
    def flops(self) -> int:
        return self.elements

    @property
    def traffic(self) -> Traffic:
        return Traffic(reads=self.elements, writes=self.outputs)


@dataclass(frozen=True, kw_only=True)
class Move(Op):
    """Elements moved without arithmetic: "cat", "pad", "resize", "embedding", "copy", "index", "roll", ...

    layout: one of `LAYOUTS`.
    """

    writes: int
    reads: int = 0
    function: str = "copy"
    layout: str = ""
    FUSABLE: ClassVar[bool] = True

    def _check(self) -> None:
        choose("layout", self.layout, LAYOUTS)

    @property
    def traffic(self) -> Traffic:
        return Traffic(reads=self.reads, writes=self.writes)


@dataclass(frozen=True, kw_only=True)
class Quantize(Op):
    """Scale and cast `elements` activations to `format`; the work a scheme adds in front of a product.

    group: elements per scale found in the same pass (0: the scale is given).
    """

    elements: int
    format: str
    group: int = 0
    FUSABLE: ClassVar[bool] = True

    @property
    def flops(self) -> int:
        return (3 if self.group else 2) * self.elements

    @property
    def traffic(self) -> Traffic:
        return Traffic(reads=self.elements, writes=self.elements)


OPS: Mapping[str, type[Op]] = {
    cls.__name__: cls
    for cls in (Gemm, Conv2d, ConvNd, Attention, Norm, Softmax, Elementwise, Reduction, Move, Quantize)
}


def op_from_dict(row: Mapping[str, Any]) -> Op:
    """The inverse of `Op.to_dict`; ValueError for an unknown operation, field or value."""
    data = dict(row)
    cls = OPS[choose("operation", data.pop("op", None), OPS)]
    known = {f.name for f in fields(cls)}
    for name in data:
        choose(f"field of {cls.__name__}", name, known)
    missing = [f.name for f in fields(cls) if f.name not in data and repr(f.default).startswith("<dataclasses")]
    if missing:
        raise ValueError(f"{cls.__name__}: {', '.join(missing)} missing; got {sorted(data)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return cls(**values)
