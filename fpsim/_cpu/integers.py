"""Integer accumulators on the CPU."""

import numpy as np

from fpsim import certificates
from fpsim._cpu.rows import Scales, rows
from fpsim._kernels import integers, products
from fpsim.accumulators import IntegerAccumulator
from fpsim.codec import Array
from fpsim.formats import Format
from fpsim.spec import MatmulSpec


def integer(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: IntegerAccumulator, scales: Scales | None) -> None:
    del scales
    check_integers(spec.a, spec.b, kind)
    if kind.overflow == "wrap" and kind.step_bits is None:  # wrapping is the same in any order
        _exact(a, b, c)
        wrap(c, kind)
        return
    if c.min() < kind.low or c.max() > kind.high:
        raise ValueError(f"c leaves the range of the {kind.bits}-bit accumulator ({kind.low} to {kind.high})")
    if kind.step_bits is None and certificates.holds(a, b, c, kind):  # no sum leaves the range: order does not matter
        _exact(a, b, c)
        return
    simple = kind == IntegerAccumulator(kind.bits, "saturate")
    if simple and largest_product(spec.a, spec.b) + kind.high < 2**31:
        rows(lambda i, j: products.integer_saturate(a, b, kind.low, kind.high, c, i, j), c, a.shape[1])
        return
    x, y, plan = a, b, integer_plan(kind)
    if kind.order == "pairwise":
        pad = -a.shape[1] % kind.step
        x, y = np.pad(a, ((0, 0), (0, pad))), np.pad(b, ((0, pad), (0, 0)))
    if kind.overflow != "error":
        run = integers.trees if kind.order == "pairwise" else integers.steps
        widest = max(largest_product(spec.a, spec.b) * kind.step, kind.high + 1)
        word = np.empty(0, np.int32 if kind.bits <= 31 and widest + kind.high < 2**31 else np.int64)
        narrow = plan._replace(step_low=max(plan.step_low, -widest), step_high=min(plan.step_high, widest))
        rows(lambda i, j: run(x, y, narrow, kind.overflow == "wrap", word, c, i, j), c, a.shape[1])
        return
    failed = np.full((c.shape[0], 3), -1, np.int64)
    slow = products.integer_tree if kind.order == "pairwise" else products.integer_wide
    rows(lambda i, j: slow(x, y, plan, c, failed, i, j), c, a.shape[1])
    if (failed[:, 0] >= 0).any():
        i = int(np.argmax(failed[:, 0] >= 0))
        j, k, total = (int(v) for v in failed[i])
        raise OverflowError(
            f"output [{i}, {j}] reaches {total} at k = {k}, outside the {kind.bits}-bit accumulator "
            f"({kind.low} to {kind.high})"
        )


def check_integers(a: Format, b: Format, kind: IntegerAccumulator) -> None:
    """ValueError for operands that are no integers, or sums that leave 64 bits before overflow is looked at."""
    if a.kind != "int" or b.kind != "int" or a.bias or b.bias:
        raise ValueError(f"an IntegerAccumulator takes integer operands, got {a.name} x {b.name}")
    if kind.overflow == "wrap" and kind.step_bits is None:
        return
    step = largest_product(a, b) * kind.step
    clamped = step if kind.step_bits is None else min(step, 1 << (kind.step_bits - 1))
    if step >= 1 << 63 or clamped + kind.high >= 1 << 63:
        raise ValueError(
            f"{kind.step} products of {a.name} x {b.name} and a {kind.bits}-bit accumulator do not fit the 64 bits "
            "they are added in; allowed: fewer bits or products per step, or overflow='wrap'"
        )


def largest_product(a: Format, b: Format) -> int:
    return int(max(abs(a.min), a.max)) * int(max(abs(b.min), b.max))


def integer_plan(kind: IntegerAccumulator) -> products.Integer:
    step_bits = kind.step_bits or 64
    return products.Integer(
        low=kind.low,
        high=kind.high,
        overflow=("wrap", "saturate", "error").index(kind.overflow),
        step=kind.step,
        step_low=-(1 << (step_bits - 1)),
        step_high=(1 << (step_bits - 1)) - 1,
    )


def wrap(c: Array, kind: IntegerAccumulator) -> None:
    """c modulo 2**bits, in place."""
    if kind.bits < 8 * c.itemsize:
        spare = 64 - kind.bits
        c[...] = (c.astype(np.int64) << spare) >> spare


def settle(c: Array, part: Array, kind: IntegerAccumulator) -> None:
    """c += part as one addition of the accumulator, in place. OverflowError where overflow="error"."""
    total = c.astype(np.int64) + part.astype(np.int64)
    bad = np.argwhere((total < kind.low) | (total > kind.high))
    if len(bad) and kind.overflow == "error":
        i, j = (int(v) for v in bad[0])
        raise OverflowError(
            f"output [{i}, {j}] reaches {total[i, j]}, outside the {kind.bits}-bit accumulator "
            f"({kind.low} to {kind.high})"
        )
    c[...] = total if kind.overflow == "wrap" else np.clip(total, kind.low, kind.high)
    wrap(c, kind)


def _exact(a: Array, b: Array, c: Array) -> None:
    """c += a @ b modulo 2**32 or 2**64, the width of c."""
    run = products.integer_wrap if c.dtype == np.int32 else products.integer_wrap_wide
    rows(lambda i, j: run(a, b, c, i, j), c, a.shape[1])
