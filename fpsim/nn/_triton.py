"""Fake quantization on an NVIDIA GPU: the arithmetic of `functional.round_` and `scaling.find`, one launch per tensor.

Written as torch operations a static fake quantization is eight launches and eight passes over memory, more than the
convolution behind it takes. Here it is one launch that reads float32, float16 or bfloat16 once and writes once; where
the scales come from the tensor itself (MX and NVFP4 blocks, tokens) a program holds whole groups in registers and finds
their scales on the way. NVFP4's scale above the blocks needs one more pass before.

Every operation is the IEEE one that torch uses: divisions are `div_rn` (Triton's `/` is off by an ulp), no product is
fused with a sum, and comparisons instead of minimum and maximum let NaN through.
"""

# Triton compiles these functions from their source: they stay free of annotations, and the module is imported lazily.
# mypy: ignore-errors

import os

import torch
import triton
import triton.language as tl

BLOCK = 1024  #: elements per program where scales are given
TILE = 1024  #: elements per program where scales are found, if groups are no longer
WIDEST = 16384  #: longest group that a program holds

#: Kernels run in Python on the CPU, for tests; nothing is compiled then.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

#: How a group's scale follows from its largest magnitude; more than one is tried as in `_host`.
LINEAR, FLOOR, TWO_LEVEL = 0, 1, 2


@triton.jit
def _round(v, LOW: tl.constexpr, HIGH: tl.constexpr, LOWEST: tl.constexpr, LIFT: tl.constexpr, UNIT: tl.constexpr):
    """`functional.round_`. LIFT 0: an integer format with steps of UNIT."""
    v = tl.where(v < LOW, LOW, tl.where(v > HIGH, HIGH, v))
    if LIFT == 0:
        v = v * (1.0 / UNIT)
        v = (v + 12582912.0) - 12582912.0  # 1.5 * 2^23
        v = v * UNIT
    else:
        field = tl.maximum(v.to(tl.int32, bitcast=True) & 0x7F800000, LOWEST) + LIFT
        constant = field.to(tl.float32, bitcast=True)
        v = (v + constant) - constant
    return v


@triton.jit(do_not_specialize=["lowest", "lift"])
def _single(x, y, step, zero, n, low, high, lowest, lift):
    """A float format under one scale. No argument is a constant: it is compiled once per pair of dtypes."""
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    inside = i < n
    s, z = tl.load(step), tl.load(zero)
    v = tl.div_rn(tl.load(x + i, mask=inside, other=0.0).to(tl.float32), tl.zeros((1024,), tl.float32) + s) + z
    v = tl.where(v < low, low, tl.where(v > high, high, v))
    constant = (tl.maximum(v.to(tl.int32, bitcast=True) & 0x7F800000, lowest) + lift).to(tl.float32, bitcast=True)
    tl.store(y + i, ((((v + constant) - constant) - z) * s).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _single_integer(x, y, step, zero, n, low, high, unit, inverse):
    """The same for an integer format with steps of `unit`, 1 / `inverse`."""
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    inside = i < n
    s, z = tl.load(step), tl.load(zero)
    v = tl.div_rn(tl.load(x + i, mask=inside, other=0.0).to(tl.float32), tl.zeros((1024,), tl.float32) + s) + z
    v = tl.where(v < low, low, tl.where(v > high, high, v)) * inverse
    v = ((v + 12582912.0) - 12582912.0) * unit
    tl.store(y + i, ((v - z) * s).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _given(
    x, y, step, zero, n, size, inner,
    ZERO: tl.constexpr, SINGLE: tl.constexpr, WIDE: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, LOWEST: tl.constexpr, LIFT: tl.constexpr, UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    if SINGLE:
        s = tl.load(step)
    else:
        at = i // (size * inner) * inner + i % inner
        s = tl.load(step + at, mask=inside, other=1.0)
    v = tl.div_rn(v, tl.zeros_like(v) + s)
    if ZERO:
        if SINGLE:
            z = tl.load(zero)
        else:
            z = tl.load(zero + at, mask=inside, other=0.0)
        v = _round(v + z, LOW, HIGH, LOWEST, LIFT, UNIT) - z
    else:
        v = _round(v, LOW, HIGH, LOWEST, LIFT, UNIT)
    tl.store(y + i, (v * s).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _place(length, size, inner, groups, T: tl.constexpr, P: tl.constexpr):
    """(offsets, mask, whether a group exists) of T groups of one sample, each padded to P."""
    g = tl.program_id(0) * T + tl.arange(0, T)
    blocks = (length + size - 1) // size
    lane, block, outer = g % inner, g // inner % blocks, g // inner // blocks
    first = outer.to(tl.int64) * length * inner + block.to(tl.int64) * size * inner + lane
    r = tl.arange(0, P)
    exists = g < groups
    held = (r < size)[None, :] & (block[:, None] * size + r[None, :] < length) & exists[:, None]
    return first[:, None] + r[None, :].to(tl.int64) * inner, held, exists


@triton.jit
def _amax(v):
    """(largest magnitude per row, whether the row has NaN or Inf)."""
    magnitude = tl.abs(v)
    lost = tl.max(((v.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000).to(tl.int32), axis=1)
    return tl.max(tl.where(magnitude == magnitude, magnitude, 0.0), axis=1), lost != 0


@triton.jit
def _largest(x, whole, length, size, inner, groups, sample, T: tl.constexpr, P: tl.constexpr):
    """Per sample, the largest magnitude of the groups that are finite, as the bit pattern of a float32."""
    at, held, _ = _place(length, size, inner, groups, T, P)
    base = tl.program_id(1).to(tl.int64) * sample
    v = tl.load(x + base + at, mask=held, other=0.0).to(tl.float32)
    amax, lost = _amax(v)
    top = tl.max(tl.where(lost, 0.0, amax), axis=0)
    tl.atomic_max(whole + tl.program_id(1), top.to(tl.int32, bitcast=True))


@triton.jit
def _power(amax, lost, TOP: tl.constexpr, BY: tl.constexpr):
    """(step, its inverse): the exponent of amax less that of the largest value, moved by BY."""
    field = (amax.to(tl.int32, bitcast=True) >> 23) - TOP
    field = tl.minimum(tl.maximum(field, 0), 254)
    if BY != 0:
        field = tl.minimum(tl.maximum(field + BY, 0), 254)
    nan = tl.zeros_like(amax) + float("nan")
    s = tl.where(field == 0, 0x00400000, field << 23).to(tl.float32, bitcast=True)  # 2^-127 is a subnormal one
    inverse = tl.where(field == 254, 0x00400000, (254 - field) << 23).to(tl.float32, bitcast=True)
    return tl.where(lost, nan, s), tl.where(lost, nan, inverse)


@triton.jit
def _block_scale(amax, lost, w, TO: tl.constexpr, HIGH: tl.constexpr, LOWEST: tl.constexpr, LIFT: tl.constexpr):
    """Step under a scale above the blocks, w, which sends amax to TO."""
    s = _round(tl.div_rn(tl.div_rn(amax, tl.zeros_like(amax) + TO), w), 0.0, HIGH, LOWEST, LIFT, 1.0) * w
    s = tl.where(s == 0.0, 1.7014118346046923e38, s)  # 2^127: the block vanishes
    return tl.where(lost, tl.zeros_like(amax) + float("nan"), s)


@triton.jit
def _error(
    v, s, LOW: tl.constexpr, HIGH: tl.constexpr, LOWEST: tl.constexpr, LIFT: tl.constexpr, UNIT: tl.constexpr,
    T: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Squared error of each row, summed in float64 in ascending order: a tree of sums could decide ties otherwise."""
    step = tl.zeros_like(v) + s[:, None]
    error = (_round(tl.div_rn(v, step), LOW, HIGH, LOWEST, LIFT, UNIT) * step).to(tl.float64) - v.to(tl.float64)
    squares = error * error
    total = tl.zeros((T,), tl.float64)
    for j in tl.range(P):
        total += tl.sum(tl.where(tl.arange(0, P)[None, :] == j, squares, 0.0), axis=1)  # one term is not zero
    return total


@triton.jit
def _found(
    x, y, whole, length, size, inner, groups, sample,
    RULE: tl.constexpr, SIGNED: tl.constexpr, TOP: tl.constexpr, TRIES: tl.constexpr, BELOW: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, LOWEST: tl.constexpr, LIFT: tl.constexpr, UNIT: tl.constexpr,
    SCALE_HIGH: tl.constexpr, SCALE_LOWEST: tl.constexpr, SCALE_LIFT: tl.constexpr,
    T: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    at, held, _ = _place(length, size, inner, groups, T, P)
    base = tl.program_id(1).to(tl.int64) * sample
    v = tl.load(x + base + at, mask=held, other=0.0).to(tl.float32)
    amax, lost = _amax(v)
    nan = tl.zeros_like(amax) + float("nan")
    zero = tl.zeros_like(amax)
    top = zero + HIGH
    if RULE == 1:
        s, inverse = _power(amax, lost, TOP, 0)
        if TRIES > 1:
            least = _error(v, s, LOW, HIGH, LOWEST, LIFT, UNIT, T, P)
            half, half_inverse = _power(amax, lost, TOP, -1)
            error = _error(v, half, LOW, HIGH, LOWEST, LIFT, UNIT, T, P)
            s, inverse = tl.where(error < least, half, s), tl.where(error < least, half_inverse, inverse)
            least = tl.where(error < least, error, least)
            twice, twice_inverse = _power(amax, lost, TOP, 1)
            error = _error(v, twice, LOW, HIGH, LOWEST, LIFT, UNIT, T, P)
            s, inverse = tl.where(error < least, twice, s), tl.where(error < least, twice_inverse, inverse)
    elif RULE == 2:
        w = zero + tl.load(whole + tl.program_id(1)).to(tl.float32, bitcast=True)
        w = tl.div_rn(w, zero + HIGH * SCALE_HIGH)
        w = tl.where(w == 0.0, 1.0, w)
        s = _block_scale(amax, lost, w, HIGH, SCALE_HIGH, SCALE_LOWEST, SCALE_LIFT)
        if TRIES > 1:
            least = _error(v, s, LOW, HIGH, LOWEST, LIFT, UNIT, T, P)
            other = _block_scale(amax, lost, w, BELOW, SCALE_HIGH, SCALE_LOWEST, SCALE_LIFT)
            error = _error(v, other, LOW, HIGH, LOWEST, LIFT, UNIT, T, P)
            s = tl.where(error < least, other, s)
    elif SIGNED:
        bad = tl.max((v != v).to(tl.int32), axis=1) != 0
        inf = tl.where(lost, float("inf"), amax)
        s = tl.div_rn(tl.where(bad, nan, inf), top)
        s = tl.where(s < 1.1754943508222875e-38, 1.1754943508222875e-38, s)
    else:
        bad = tl.max((v != v).to(tl.int32), axis=1) != 0
        low = tl.min(tl.where(v < 0.0, v, 0.0), axis=1)
        s = tl.div_rn(tl.max(tl.where(v > 0.0, v, 0.0), axis=1) - low, top)
        s = tl.where(s < 1.1754943508222875e-38, 1.1754943508222875e-38, s)
        s = tl.where(bad, nan, s)
        zero = _round(tl.div_rn(-low, s), LOW, HIGH, LOWEST, LIFT, UNIT)
    if RULE == 1:  # of a power of two: the product is rounded as the quotient is
        v = v * inverse[:, None]
    else:
        v = tl.div_rn(v, tl.zeros_like(v) + s[:, None])
    if SIGNED:
        v = _round(v, LOW, HIGH, LOWEST, LIFT, UNIT)
    else:
        v = _round(v + zero[:, None], LOW, HIGH, LOWEST, LIFT, UNIT) - zero[:, None]
    tl.store(y + base + at, (v * s[:, None]).to(y.dtype.element_ty), mask=held)


class Single:
    """Launches for one given scale. Triton works out anew at each launch which machine code fits the arguments, which
    takes longer on the host than all else; with dense, aligned tensors the code is known after the first one."""

    def __init__(self, step, zero, grid, dtype):
        self.step, self.grid, self.dtype = step, grid, dtype
        self.zero = torch.zeros_like(step) if zero is None else zero
        if grid.way == "integer":
            self.kernel, self.rest = _single_integer, (grid.low, grid.high, grid.unit, 1.0 / grid.unit)
        else:
            self.kernel, self.rest = _single, (grid.low, grid.high, grid.floor, grid.lift)
        self.compiled = {}

    def __call__(self, x):
        y = torch.empty_like(x, dtype=self.dtype)
        n = x.numel()
        blocks = (-(-n // 1024), 1, 1)
        if n == 0:
            return y
        if n >= 2**31 - 1024:
            given(x, y, self.step, self.zero, 1, 1, self.grid)
        elif n % 16 or x.data_ptr() % 16 or INTERPRETED:
            self._launch(blocks, x, y, n)
        elif x.dtype in self.compiled:
            self.compiled[x.dtype][blocks](x, y, self.step, self.zero, n, *self.rest)
        else:
            self.compiled[x.dtype] = self._launch(blocks, x, y, n)
        return y

    def _launch(self, blocks, x, y, n):
        arguments = (x, y, self.step, self.zero, n, *self.rest)
        return self.kernel[blocks](*arguments, num_warps=4, enable_fp_fusion=False)


def given(x, y, step, zero, size, inner, grid):
    """Write to `y` what dense `x` becomes under given scales: element i has the scale i // (size * inner) * inner +
    i % inner of `step` and `zero`. grid : `functional.Grid` of the format."""
    n = x.numel()
    _given[(triton.cdiv(n, BLOCK),)](
        x, y, step, step if zero is None else zero, n, size, inner,
        ZERO=zero is not None, SINGLE=step.numel() == 1, WIDE=n >= 2**31 - BLOCK,
        LOW=grid.low, HIGH=grid.high, LOWEST=grid.floor, LIFT=grid.lift, UNIT=grid.unit,
        BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def found(x, y, samples, length, size, inner, grid, rule, signed, top=0, scale=None, tries=1, below=1.0):
    """Write to `y` what contiguous `x` becomes, quantized with the scales of its own groups: `size` elements along an
    axis of `length`, `inner` elements apart, in each of `samples` equal parts.

    rule  : LINEAR, FLOOR (`top`: exponent of the format's largest value) or TWO_LEVEL (`scale`: Grid of block scales)
    tries : scales per group to choose from, FLOOR 1 or 3, TWO_LEVEL 1 or 2 (`below`: the format's second largest value)
    """
    sample = x.numel() // samples
    groups = sample // length * -(-length // size)
    wide = triton.next_power_of_2(size)
    rows = max(1, TILE // wide)
    programs = (triton.cdiv(groups, rows), samples)
    shape = {"T": rows, "P": wide, "num_warps": 8 if rows * wide > TILE else 4, "enable_fp_fusion": False}
    whole = x
    if rule == TWO_LEVEL:
        whole = torch.zeros(samples, dtype=torch.int32, device=x.device)
        _largest[programs](x, whole, length, size, inner, groups, sample, **shape)
    _found[programs](
        x, y, whole, length, size, inner, groups, sample,
        RULE=rule, SIGNED=signed, TOP=top, TRIES=tries, BELOW=below,
        LOW=grid.low, HIGH=grid.high, LOWEST=grid.floor, LIFT=grid.lift, UNIT=grid.unit,
        SCALE_HIGH=1.0 if scale is None else scale.high, SCALE_LOWEST=0 if scale is None else scale.floor,
        SCALE_LIFT=0 if scale is None else scale.lift, **shape,
    )  # fmt: skip
