"""Fake quantization on the CPU: the arithmetic of `functional.round_` and `scaling.find` in one pass over float32.

The counterpart of `_triton.py`, with the same two functions. As torch operations a static fake quantization is eight
passes over a tensor that does not stay in the cache between them; here a run of elements that share a scale is read,
rounded and written once. Loops are plain enough for LLVM to use the vector unit: the scale is the same, or lies as
densely as the elements.
"""

# numba infers the types of these functions: they stay free of annotations.
# mypy: ignore-errors

import numpy as np
import torch

from fpsim._jit import kernel, parallel

WIDEST = 1 << 40  #: a group may be as long as it likes
GRAIN = 1 << 16  #: elements that are worth a thread

#: How a group's scale follows from its largest magnitude. Where more than one scale is tried, the first with the
#: smallest squared error is taken: FLOOR's, half and twice of it; TWO_LEVEL's for the format's largest value and for
#: the one `below`.
LINEAR, FLOOR, TWO_LEVEL = 0, 1, 2

_FIELD = np.int32(0x7F800000)
_THREE_HALVES = np.float32(1.5 * 2**23)
_TINY = np.float32(2.0**-126)
_VAST = np.float32(2.0**127)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_NAN = np.float32(np.nan)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_NONE = np.empty(0, np.float32)


@kernel
def _round(v, low, high, lowest, lift, unit):
    """`functional.round_` of one value. lift 0: an integer format with steps of `unit`."""
    held = low if v < low else (high if v > high else v)
    if lift == 0:
        return ((np.divide(held, unit) + _THREE_HALVES) - _THREE_HALVES) * unit
    field = np.int32(np.float32(held).view(np.int32) & _FIELD)
    lifted = np.int32((field if field > lowest else lowest) + lift)
    constant = np.int32(lifted).view(np.float32)
    return (held + constant) - constant


@kernel
def _same(x, y, begin, end, s, z, low, high, lowest, lift, unit):
    """A run of elements with one scale."""
    if lift == 0:
        for i in range(begin, end):
            v = np.divide(x[i], s) + z
            y[i] = (_round(v, low, high, lowest, 0, unit) - z) * s
    else:
        for i in range(begin, end):
            v = np.divide(x[i], s) + z
            y[i] = (_round(v, low, high, lowest, lift, unit) - z) * s


@kernel
def _beside(x, y, begin, end, s, z, at, low, high, lowest, lift, unit):
    """A run of elements with a scale each, from `at` on; no zero points: z is empty."""
    shifted = len(z) > 0
    for i in range(begin, end):
        step = s[at + i - begin]
        zero = z[at + i - begin] if shifted else _ZERO
        v = np.divide(x[i], step) + zero
        y[i] = (_round(v, low, high, lowest, lift, unit) - zero) * step


@kernel
def _given(x, y, s, z, size, inner, begin, end, low, high, lowest, lift, unit):
    """Elements begin .. end, a multiple of size * inner (or any range under a single scale)."""
    shifted = len(z) > 0
    if len(s) == 1:
        _same(x, y, begin, end, s[0], z[0] if shifted else _ZERO, low, high, lowest, lift, unit)
    elif inner == 1:
        for run in range(begin // size, end // size):
            zero = z[run] if shifted else _ZERO
            _same(x, y, run * size, run * size + size, s[run], zero, low, high, lowest, lift, unit)
    else:
        for start in range(begin, end, inner):
            _beside(x, y, start, start + inner, s, z, start // (size * inner) * inner, low, high, lowest, lift, unit)


@kernel
def _scale(pattern, rule, top, trial, below, high, whole, scale_high, scale_lowest, scale_lift):
    """Step of a group from the bit pattern of its largest magnitude; NaN in the group, and Inf in blocks, gives NaN."""
    lost = pattern >= _FIELD
    amax = np.int32(pattern).view(np.float32)
    if rule == FLOOR:
        wanted = np.int32((pattern >> 23) - top)
        floor = np.int32(0) if wanted < 0 else (np.int32(254) if wanted > 254 else wanted)
        moved = np.int32(floor + (trial == 2) - (trial == 1))
        field = np.int32(0) if moved < 0 else (np.int32(254) if moved > 254 else moved)
        step = np.int32(0x00400000 if field == 0 else field << 23)
        return _NAN if lost else np.int32(step).view(np.float32)
    if rule == TWO_LEVEL:
        ratio = np.divide(np.divide(amax, below if trial else high), whole)
        found = _round(ratio, _ZERO, scale_high, scale_lowest, scale_lift, _ONE) * whole
        return _NAN if lost else (_VAST if found == _ZERO else found)
    linear = np.divide(amax, high)
    return _TINY if linear < _TINY else linear


@kernel
def _error(x, begin, end, s, low, high, lowest, lift, unit):
    """Squared error of a run of elements with one scale, summed in float64 in ascending order."""
    total = np.float64(0)
    for i in range(begin, end):
        error = np.float64(_round(np.divide(x[i], s), low, high, lowest, lift, unit) * s) - np.float64(x[i])
        total += error * error
    return total


@kernel
def _amax(x, begin, end):
    """Bit pattern of the largest magnitude; NaN is larger than Inf, Inf than all others."""
    most = np.int32(0)
    for i in range(begin, end):
        pattern = np.int32(np.float32(x[i]).view(np.int32) & _MAGNITUDE)
        most = pattern if pattern > most else most
    return most


@kernel
def _affine(x, begin, end, low, high, lowest, lift, unit):
    """(step, zero point) of a group of an unsigned format, from its lowest and highest value."""
    if _amax(x, begin, end) > _FIELD:
        return _NAN, _NAN
    least, most = _ZERO, _ZERO
    for i in range(begin, end):
        least = x[i] if x[i] < least else least
        most = x[i] if x[i] > most else most
    wide = np.divide(most - least, high)
    step = _TINY if wide < _TINY else wide
    return step, _round(np.divide(-least, step), low, high, lowest, lift, unit)


@kernel
def _rows(
    x, y, whole, sample, length, size, begin, end, rule, signed, top, tries, below,
    low, high, lowest, lift, unit, scale_high, scale_lowest, scale_lift,
):  # fmt: skip
    """Rows begin .. end of `length` elements, each in groups of `size` consecutive ones."""
    for row in range(begin, end):
        for first in range(row * length, row * length + length, size):
            last = min(first + size, row * length + length)
            if signed:
                w = whole[row * length // sample]
                pattern = _amax(x, first, last)
                s = _scale(pattern, rule, top, 0, below, high, w, scale_high, scale_lowest, scale_lift)
                least = _error(x, first, last, s, low, high, lowest, lift, unit) if tries > 1 else 0.0
                for trial in range(1, tries):
                    other = _scale(pattern, rule, top, trial, below, high, w, scale_high, scale_lowest, scale_lift)
                    error = _error(x, first, last, other, low, high, lowest, lift, unit)
                    if error < least:
                        s, least = other, error
                _same(x, y, first, last, s, _ZERO, low, high, lowest, lift, unit)
            else:
                s, z = _affine(x, first, last, low, high, lowest, lift, unit)
                _same(x, y, first, last, s, z, low, high, lowest, lift, unit)


@kernel
def _errors(x, begin, end, steps, errors, low, high, lowest, lift, unit):
    """`_error` of groups that lie side by side, one step each."""
    errors[:] = 0
    for start in range(begin, end, len(steps)):
        for lane in range(len(steps)):
            step, value = steps[lane], x[start + lane]
            made = _round(np.divide(value, step), low, high, lowest, lift, unit) * step
            error = np.float64(made) - np.float64(value)
            errors[lane] += error * error


@kernel
def _planes(
    x, y, whole, sample, length, size, inner, begin, end, rule, top, tries, below,
    low, high, lowest, lift, unit, scale_high, scale_lowest, scale_lift,
):  # fmt: skip
    """Groups of `size` elements that lie `inner` apart: `inner` groups side by side. Signed formats."""
    patterns, steps, none = np.empty(inner, np.int32), np.empty(inner, np.float32), np.empty(0, np.float32)
    others, errors, least = np.empty(inner, np.float32), np.empty(inner), np.empty(inner)
    blocks = (length + size - 1) // size
    for block in range(begin, end):
        first = (block // blocks * length + block % blocks * size) * inner
        last = min(first + size * inner, (block // blocks + 1) * length * inner)
        patterns[:] = 0
        for start in range(first, last, inner):
            for lane in range(inner):
                pattern = np.int32(np.float32(x[start + lane]).view(np.int32) & _MAGNITUDE)
                patterns[lane] = pattern if pattern > patterns[lane] else patterns[lane]
        w = whole[first // sample]
        for lane in range(inner):
            steps[lane] = _scale(patterns[lane], rule, top, 0, below, high, w, scale_high, scale_lowest, scale_lift)
        if tries > 1:
            _errors(x, first, last, steps, least, low, high, lowest, lift, unit)
        for trial in range(1, tries):
            for lane in range(inner):
                others[lane] = _scale(
                    patterns[lane], rule, top, trial, below, high, w, scale_high, scale_lowest, scale_lift
                )
            _errors(x, first, last, others, errors, low, high, lowest, lift, unit)
            for lane in range(inner):
                if errors[lane] < least[lane]:
                    steps[lane], least[lane] = others[lane], errors[lane]
        for start in range(first, last, inner):
            _beside(x, y, start, start + inner, steps, none, 0, low, high, lowest, lift, unit)


@kernel
def _largest(x, sample, length, size, inner, high, scale_high):
    """Per sample: the largest magnitude of its finite groups over high * scale_high, or 1 if that is 0."""
    made = np.empty(len(x) // sample, np.float32)
    patterns = np.empty(inner, np.int32)
    blocks = (length + size - 1) // size
    for one in range(len(made)):
        top = np.int32(0)
        for block in range(sample // (length * inner) * blocks):
            first = one * sample + (block // blocks * length + block % blocks * size) * inner
            last = min(first + size * inner, one * sample + (block // blocks + 1) * length * inner)
            if inner == 1:
                most = _amax(x, first, last)
                top = most if top < most < _FIELD else top
                continue
            patterns[:] = 0
            for start in range(first, last, inner):
                for lane in range(inner):
                    pattern = np.int32(np.float32(x[start + lane]).view(np.int32) & _MAGNITUDE)
                    patterns[lane] = pattern if pattern > patterns[lane] else patterns[lane]
            for lane in range(inner):
                top = patterns[lane] if top < patterns[lane] < _FIELD else top
        ratio = np.divide(np.int32(top).view(np.float32), np.float32(high * scale_high))
        made[one] = _ONE if ratio == _ZERO else ratio
    return made


class Single:
    """Calls with one given scale: what they have in common is made once."""

    def __init__(self, step, zero, grid, dtype):
        self.step, self.zero, self.dtype = _flat(step), _NONE if zero is None else _flat(zero), dtype
        self.constants = _constants(grid)

    def __call__(self, x):
        values = x.float()
        y = torch.empty_like(values)
        source, made = _flat(values), _flat(y)

        def run(start, stop):
            _given(source, made, self.step, self.zero, 1, 1, start, stop, *self.constants)

        if len(source) <= GRAIN:
            run(0, len(source))
        else:
            parallel(run, len(source), GRAIN)
        return y.to(self.dtype)


def given(x, y, step, zero, size, inner, grid):
    """Write to `y` what `x` becomes under given scales; arguments as for `_triton.given`, on the CPU, float32."""
    source, made, steps = _flat(x), _flat(y), _flat(step)
    zeros = _NONE if zero is None else _flat(zero)
    constants = _constants(grid)
    unit = 1 if len(steps) == 1 else size * inner

    def run(start, stop):
        _given(source, made, steps, zeros, size, inner, start * unit, stop * unit, *constants)

    parallel(run, len(source) // unit, -(-GRAIN // unit))


def found(x, y, samples, length, size, inner, grid, rule, signed, top=0, scale=None, tries=1, below=1.0):
    """Write to `y` what `x` becomes with scales of its own; as `_triton.found`, on the CPU, float32.

    Groups of an unsigned format must be consecutive elements.
    """
    source, made = _flat(x), _flat(y)
    sample = len(source) // samples
    constants = _constants(grid)
    above = (_ONE, np.int32(0), np.int32(0)) if scale is None else _constants(scale)[1:4]
    if rule == TWO_LEVEL:
        whole = _largest(source, sample, length, size, inner, constants[1], above[0])
    else:
        whole = np.ones(samples, np.float32)

    def rows(start, stop):
        where = (sample, length, size, start, stop, rule, signed, top, tries, np.float32(below))
        _rows(source, made, whole, *where, *constants, *above)

    def planes(start, stop):
        where = (sample, length, size, inner, start, stop, rule, top, tries, np.float32(below))
        _planes(source, made, whole, *where, *constants, *above)

    if inner == 1:
        parallel(rows, len(source) // length, -(-GRAIN // length))
    else:
        parallel(planes, len(source) // (length * inner) * -(-length // size), -(-GRAIN // (size * inner)))


def _flat(x):
    """The elements of a dense tensor in the order of memory, as a numpy array over the same memory."""
    return x.detach().as_strided((x.numel(),), (1,)).numpy()


def _constants(grid):
    return np.float32(grid.low), np.float32(grid.high), np.int32(grid.floor), np.int32(grid.lift), np.float32(grid.unit)
