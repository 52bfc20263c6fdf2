"""What libraries launch for everything that is no product: passes over memory, and the work that can be slower.

A pointwise kernel whose operands lie alike runs at the speed of memory.  Others do not, and three reasons suffice for
what was measured (an H200 under torch 2.11, see docs/gpu-model.md):

* an index computed per element (operands broadcast, strided or of another type) or arithmetic per element (an
  exponential, a normalisation) caps the elements an SM finishes per clock: `scalar_rate`, `math_rate`;
* rows that one block of threads works through alone cost a chain of dependent memory accesses, `latency` cycles each:
  group normalisation streams a whole group through one block of 512 threads, one element per thread and access;
* some operations are several kernels: group normalisation three; a convolution of channels-first operands copies
  images and filters to channels-last and its result back; a convolution's bias is an addition of its own.

`PACE` is a catalogue of kernels, like the table of tiles in `gpu.py`: how much faster or slower than `scalar_rate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .lower import Kernel
from .ops import Conv, Elementwise, Move, Norm, Op, Reduction, Softmax

#: kernels that move elements one at a time, relative to `scalar_rate`
PACE: Mapping[str, float] = MappingProxyType({"strided": 1.0, "transposed": 0.42, "image": 1.55, "filter": 0.53})

#: pointwise functions with more arithmetic than memory traffic hides
MATH = frozenset(("silu", "gelu", "sigmoid", "tanh", "exp", "sin", "cos", "erf", "pow", "softplus", "mish", "log"))

GROUP_THREADS = 512  #: of the block that reduces one group
GROUP_BLOCKS = 4  #: such blocks an SM holds
ROW_BLOCKS = 16  #: blocks of 128 threads an SM holds; each reduces a row of a layer norm
#: dependent accesses of a row's block: load, reduce across the warps and reload; a mean and a variance need more
ROW_STEPS: Mapping[str, int] = MappingProxyType({"layer": 9, "rms": 4, "softmax": 9})


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Work of one kernel (or of the few an operation is): launches; elements at the scalar and at the math pace.

    rows, steps, row_blocks: blocks that reduce a row, dependent accesses of each, how many an SM holds.
    more: bytes beyond those of the operation itself, each operand once.
    maximum: a max-abs over a whole tensor.
    """

    launches: int = 1
    scalar: float = 0.0
    math: float = 0.0
    rows: float = 0.0
    steps: float = 0.0
    row_blocks: int = 1
    more: float = 0.0
    maximum: bool = False


def _elementwise(op: Elementwise) -> Passes:
    narrow = op.function == "cast" and (op.dtype, op.out_dtype) == ("f32", "bf16")
    if op.layout:
        return Passes(scalar=op.elements / PACE[op.layout])
    if op.dtype != op.out_dtype and op.out_dtype and not narrow:
        return Passes(scalar=op.elements)
    return Passes(math=op.elements if op.function in MATH else 0.0)


def _move(op: Move) -> Passes:
    launches = 2 if op.function == "constant_pad_nd" else 1
    return Passes(launches=launches, scalar=op.writes / PACE[op.layout] if op.layout else 0.0)


def _norm(op: Norm) -> Passes:
    elements = float(op.rows * op.columns)
    if op.variant == "group":
        steps = op.columns / GROUP_THREADS
        return Passes(launches=3, scalar=elements, rows=op.rows, steps=steps, row_blocks=GROUP_BLOCKS)
    if op.variant == "batch":
        return Passes(scalar=elements)
    return Passes(math=elements, rows=op.rows, steps=ROW_STEPS[op.variant], row_blocks=ROW_BLOCKS)


def _softmax(op: Softmax) -> Passes:
    return Passes(math=op.rows * op.columns, rows=op.rows, steps=ROW_STEPS["softmax"], row_blocks=ROW_BLOCKS)


def _reduction(op: Reduction) -> Passes:
    return Passes(maximum=op.function == "amax" and op.outputs == 1)


_PASSES: Mapping[type[Op], Callable[..., Passes]] = MappingProxyType(
    {Elementwise: _elementwise, Move: _move, Norm: _norm, Softmax: _softmax, Reduction: _reduction}
)


def passes(kernel: Kernel, compiled: bool = False) -> Passes:
    """The passes of a kernel that is no product.  A compiler's kernels, merged or not, are one launch each."""
    make = _PASSES.get(type(kernel.op))
    found = make(kernel.op) if make else Passes()
    if not compiled or found.maximum or (isinstance(kernel.op, Move) and kernel.members == 1):
        return found
    # it indexes at full width and reduces a group with many blocks: one kernel for its moments, one that reads it again
    if isinstance(kernel.op, Norm) and kernel.op.variant == "group":
        return Passes(launches=2, math=found.math, more=2.0 * kernel.op.rows * kernel.op.columns)
    row = found.row_blocks == ROW_BLOCKS and found.steps > 0
    return Passes(
        math=found.math, rows=found.rows if row else 0.0, steps=found.steps if row else 0.0, row_blocks=ROW_BLOCKS
    )


def around(op: Conv, compiled: bool) -> Passes | None:
    """What is launched around a convolution: copies to and from channels-last, and its bias; None where nothing is.

    A filter of one element is a product whatever the layout.  A compiler keeps images channels-last and adds the bias
    in the next pointwise kernel; filters, which are inputs to it, are copied on every call.
    """
    t = op.traffic
    if compiled:
        copied = op.layout == "channels_first" and max(op.kernels) > 1
        return Passes(more=4.0 * t.weights) if copied else None
    launches, scalar, more = 0, 0.0, 0.0
    if op.layout == "channels_first" and max(op.kernels) > 1:
        launches += 3
        scalar += (t.reads + t.writes) / PACE["image"] + t.weights / PACE["filter"]
        more += 4 * (t.reads + t.writes + t.weights)
    if op.bias:
        launches += 1
        scalar += t.writes
        more += 4 * t.writes
    return Passes(launches=launches, scalar=scalar, more=more) if launches else None
