"""How large the sums inside a quantized model get: bounds before it runs, partial sums while it does.

A sum of K products of codes needs a register of some width. Five answers, each at most the one before:

data type   K times the largest product of the two formats, signs considered: holds for any model
weight      the weights are known: sum of max(w * low, w * high) over the activation format's range [low, high], worst
            output channel. Tight: an input of sign-matched extremes reaches it, and no order of summation exceeds it
any order   the products are known: sum of the positive ones alone, or of the negative ones; the worst order visits them
            first
in order    partial sums in the engine's own order, k ascending (tap by tap, channel by channel in a convolution)
final       the results alone: enough for a register that wraps, where overflow on the way cancels

Widths are of two's complement, the sign included. For integer codes the unit is 1. A float format is counted in units
of its smallest subnormal: its width is that of the fixed-point (Kulisch) register that adds its products without
rounding. Where scales change along K (per token in a convolution, per block) a sum is what lies between two scales.

Observed numbers are of the rows that were looked at; only the first two are guarantees.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.accumulators.registers import Register
from analysis.accumulators.registers import ends as register_ends
from fpsim.formats import Format

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fpsim.nn.layer import QuantizedLayer

#: Elements of the largest temporary.
_CHUNK = 1 << 19
_SIZES = 128  # widths a histogram tells apart


def width(low: float, high: float) -> int:
    """Bits of the narrowest two's complement register that holds `low` and `high`, whole numbers; at least 1."""
    most = max(int(high) + 1, -int(low), 1)
    return (most - 1).bit_length() + 1


def unit(row: Format) -> float:
    """What the codes' values are multiples of: 1 for integers, the smallest subnormal of a float format."""
    return 2.0**-row.bias if row.kind == "int" else row.smallest_subnormal


def ends(row: Format) -> tuple[int, int]:
    """(lowest, highest) finite value of a format, in its units."""
    return int(row.min / unit(row)), int(row.max / unit(row))


def by_data_type(a: Format, b: Format, k: int) -> int:
    """Width that holds any sum of up to `k` products of the two formats, in any order."""
    corners = [x * y for x in ends(a) for y in ends(b)]
    return width(k * min(0, *corners), k * max(corners))


def reach(weights: npt.NDArray[np.float64], low: int, high: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(lowest, highest) sum of each output channel for inputs in [low, high], as whole numbers of unlimited size.

    weights : (outputs, K) whole numbers; low <= 0 <= high
    """
    if not low <= 0 <= high:
        raise ValueError(f"activations reach from {low} to {high}; 0 must be among them, it pads convolutions")
    positive = np.maximum(weights, 0).sum(-1).astype(np.int64).astype(object)  # exact: whole numbers below 2**53
    negative = np.maximum(-weights, 0).sum(-1).astype(np.int64).astype(object)
    return low * positive - high * negative, high * positive - low * negative


def by_weight(weights: npt.NDArray[np.float64], low: int, high: int) -> int:
    """Width that holds any sum over these weights, for any inputs in [low, high] and in any order."""
    lows, highs = reach(weights, low, high)
    return width(min(0, *lows.tolist()), max(0, *highs.tolist()))


def adversary(weights: npt.NDArray[np.float64], low: int, high: int) -> npt.NDArray[np.float64]:
    """(2, K): the inputs in [low, high] that take the channel with the longest reach to its highest and lowest sum."""
    lows, highs = reach(weights, low, high)
    top, bottom = weights[int(np.argmax(highs))], weights[int(np.argmin(lows))]
    return np.stack([np.where(top >= 0, high, low), np.where(bottom >= 0, low, high)]).astype(np.float64)


@dataclass(kw_only=True)
class Observed:
    """Largest sums seen so far, in units; `sizes[p]`: outputs whose sums in order need p bits."""

    any_order: tuple[float, float] = (0.0, 0.0)
    in_order: tuple[float, float] = (0.0, 0.0)
    final: tuple[float, float] = (0.0, 0.0)
    sizes: npt.NDArray[np.int64]

    @property
    def outputs(self) -> int:
        return int(self.sizes.sum())

    def beyond(self, bits: int) -> int:
        """Outputs with a partial sum that a register of `bits` does not hold."""
        return int(self.sizes[bits + 1 :].sum())


def nothing() -> Observed:
    """What is known before anything is seen."""
    return Observed(sizes=np.zeros(_SIZES, np.int64))


def observe(seen: Observed, a: "Tensor", b: "Tensor", stretch: int | None = None) -> None:
    """Add the sums of a @ b.T to `seen`. a (M, K), b (N, K): whole numbers in units, in a float type that holds sums.

    stretch : products per sum; each stretch starts from zero. None: all of K
    """
    for low, high, total, below, above in sums(a, b, stretch):
        seen.final = _wider(seen.final, total, total)
        seen.in_order = _wider(seen.in_order, low, high)
        seen.any_order = _wider(seen.any_order, below, above)
        seen.sizes += _sizes(low, high)


def sums(a: "Tensor", b: "Tensor", stretch: int | None = None) -> "Iterator[tuple[Tensor, ...]]":
    """Per stretch and run of rows, each (rows, N): lowest and highest partial sum in order, the sum itself, the sums of
    the negative and of the positive products. The empty sum, 0, is a partial sum."""
    import torch

    depth, count = a.shape[1], len(b)
    step = max(1, min(16, depth))
    rows = max(1, _CHUNK // (step * count))
    for start in range(0, depth, stretch or depth):
        stop = min(start + (stretch or depth), depth)
        x_all, y = a[:, start:stop], b[:, start:stop]
        up, down = y.clamp(min=0), y.clamp(max=0)
        for first in range(0, len(a), rows):
            x = x_all[first : first + rows]
            above = x.clamp(min=0) @ up.T + x.clamp(max=0) @ down.T
            below = x.clamp(min=0) @ down.T + x.clamp(max=0) @ up.T
            total = torch.zeros_like(above)
            low, high = total.clone(), total.clone()
            for k in range(0, stop - start, step):
                part = (x[:, k : k + step, None] * y.T[None, k : k + step]).cumsum_(1)
                high = torch.maximum(high, total + part.amax(1))
                low = torch.minimum(low, total + part.amin(1))
                total = total + part[:, -1]
            yield low, high, total, below, above


def beyond(a: "Tensor", b: "Tensor", register: Register, stretch: int | None = None, most: int = 0) -> int:
    """Outputs of a @ b.T with a partial sum, in order, that `register` does not hold; counting stops beyond `most`.

    Exact, and quick where few come near: only outputs whose positive or negative products alone would not fit are
    added up one by one.
    """
    import torch

    exact_in_float32 = float(a.abs().max()) * float(b.abs().sum(-1).max()) < 1 << 24
    a, b = (one.to(torch.float32 if exact_in_float32 else torch.float64) for one in (a, b))
    bad = torch.zeros(len(a), len(b), dtype=torch.bool, device=a.device)
    for start in range(0, a.shape[1], stretch or a.shape[1]):
        stop = min(start + (stretch or a.shape[1]), a.shape[1])
        results = []
        for k in range(start, stop, register.tile or stop - start):
            part = slice(k, min(k + (register.tile or stop), stop))
            _mark(bad, a[:, part], b[:, part], register.bits, most)
            if int(bad.sum()) > most:
                return int(bad.sum())
            results.append(a[:, part] @ b[:, part].T)
        if register.outer is not None:
            low, high = register_ends(register.outer)
            running = torch.stack(results).cumsum_(0)
            bad |= ((running < low) | (running > high)).any(0)
    return int(bad.sum())


def _mark(bad: "Tensor", x: "Tensor", y: "Tensor", bits: int, most: int) -> None:
    """Set `bad` where x @ y.T leaves a register of `bits` on its way; stops when it has more than `most`."""
    import torch

    low, high = register_ends(bits)
    up, down = y.clamp(min=0).T, y.clamp(max=0).T
    above = x.clamp(min=0) @ up + x.clamp(max=0) @ down > high
    below = x.clamp(min=0) @ down + x.clamp(max=0) @ up < low
    rows, columns = torch.nonzero((above | below) & ~bad, as_tuple=True)
    step = max(1, _CHUNK // x.shape[1])
    for first in range(0, len(rows), step):
        i, j = rows[first : first + step], columns[first : first + step]
        running = (x[i] * y[j]).cumsum_(1)
        bad[i, j] = (running.amin(1) < low) | (running.amax(1) > high)
        if int(bad.sum()) > most:
            return


def _wider(before: tuple[float, float], low: "Tensor", high: "Tensor") -> tuple[float, float]:
    return min(before[0], float(low.min())), max(before[1], float(high.max()))


def _sizes(low: "Tensor", high: "Tensor") -> npt.NDArray[np.int64]:
    """How many outputs need each width."""
    import torch

    most = torch.maximum(high.double() + 1, -low.double()).clamp(min=1)
    fraction, exponent = torch.frexp(most)
    bits = exponent + (fraction > 0.5).int()  # ceil(log2) and the sign
    return torch.bincount(bits.flatten().cpu(), minlength=_SIZES).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# In a model


@dataclass(frozen=True, kw_only=True)
class LayerSums:
    """One quantized layer: what its register must hold. Widths in bits, see the module.

    path, kind; a, b : formats of activation and weight codes; products : per sum (K, or between two scales)
    macs : multiply-accumulates seen, all rows counted; observed : of the rows that were looked at
    """

    path: str
    kind: str
    a: str
    b: str
    products: int
    macs: int
    data_type: int
    weight: int
    observed: Observed

    @property
    def any_order(self) -> int:
        return width(*self.observed.any_order)

    @property
    def in_order(self) -> int:
        return width(*self.observed.in_order)

    @property
    def final(self) -> int:
        return width(*self.observed.final)


@contextmanager
def watched(model: "Module", rows: int | None = 128, seed: int = 0) -> "Iterator[Callable[[], list[LayerSums]]]":
    """While it is open, sums of `model`'s quantized layers are looked at; calling what it gives says what was seen.

    rows : random rows (tokens, pixels) of each call of a layer; None: all of them

    Raises ValueError for a model without layers whose codes are multiplied by codes.
    """
    import torch

    from fpsim.nn.layer import QuantizedLayer

    layers = {
        path: layer for path, layer in model.named_modules() if isinstance(layer, QuantizedLayer) and _counts(layer)
    }
    if not layers:
        raise ValueError("no layer multiplies codes by codes: quantize weights and activations below 16 bits first")
    found = {
        path: _Watch(layer, rows, torch.Generator().manual_seed(seed + i))
        for i, (path, layer) in enumerate(layers.items())
    }
    handles = [layer.register_forward_pre_hook(found[path]) for path, layer in layers.items()]
    try:
        yield lambda: [watch.result(path) for path, watch in found.items() if watch.macs]
    finally:
        for handle in handles:
            handle.remove()


def _counts(layer: "QuantizedLayer") -> bool:
    quantizers = (layer.weight_quantizer, layer.activation_quantizer)
    return all(one is not None and not one.is_cast for one in quantizers) and not layer.weight_quantizer.has_zero


class _Watch:
    """A forward-pre-hook that adds the sums of one layer's calls."""

    def __init__(self, layer: "QuantizedLayer", rows: int | None, generator: Any) -> None:
        from fpsim.nn.layer import element_format

        if layer.activation_quantizer is None:
            raise ValueError("activations are not quantized: they have no codes")
        self.layer, self.rows, self.generator = layer, rows, generator
        self.a, self.b = element_format(layer.activation_quantizer), element_format(layer.weight_quantizer)
        self.weights = matrix(layer)
        self.stretch = stretch(layer)
        self.macs = 0
        self.seen = nothing()

    def __call__(self, _: Any, args: tuple[Any, ...]) -> None:
        import torch

        rows = input_rows(self.layer, args[0])
        self.macs += len(rows) * self.weights.numel()
        if self.rows is not None and self.rows < len(rows):
            rows = rows[torch.randperm(len(rows), generator=self.generator)[: self.rows].to(rows.device)]
        # float32 is exact below 2**24 units, float64 below 2**53
        dtype = torch.float32 if by_data_type(self.a, self.b, self.products) <= 24 else torch.float64
        observe(self.seen, units(rows, self.a).to(dtype), self.weights.to(rows.device, dtype), self.stretch)

    @property
    def products(self) -> int:
        return min(self.stretch or self.weights.shape[1], self.weights.shape[1])

    def result(self, path: str) -> LayerSums:
        parts = self.weights.cpu().numpy()
        if self.stretch is not None:
            pieces = [parts[:, i : i + self.stretch] for i in range(0, parts.shape[1], self.stretch)]
        else:
            pieces = [parts]
        return LayerSums(
            path=path,
            kind="Linear" if len(self.layer.shape) == 2 else "Conv2d",
            a=self.a.name,
            b=self.b.name,
            products=self.products,
            macs=self.macs,
            data_type=by_data_type(self.a, self.b, self.products),
            weight=max(by_weight(piece, *ends(self.a)) for piece in pieces),
            observed=self.seen,
        )


def matrix(layer: "QuantizedLayer") -> "Tensor":
    """float64 (outputs, K): the values of a layer's weight codes in units, K in the order products are added in."""
    from analysis.runner.statistics import as_matrix
    from fpsim.nn.layer import element_format

    return units(as_matrix(layer.weight_codes), element_format(layer.weight_quantizer))


def input_rows(layer: "QuantizedLayer", x: "Tensor") -> "Tensor":
    """(rows, K): the codes that an input becomes, a row for each output pixel or token."""
    values = x if layer.transform is None else layer.transform(x.float())
    codes = layer.encode_input(values.detach().float())[0]
    windows: Any = getattr(layer, "windows", None)
    return codes.reshape(-1, codes.shape[-1]) if windows is None else windows(codes).flatten(1)


def row_codes(layer: "QuantizedLayer", rows: "Tensor") -> "Tensor":
    """float64 (R, K): the codes of input rows as `analysis.runner.statistics` draws them.

    Padding counts as the value 0: with a zero point that is another code than the 0 that the engine pads with.
    Raises ValueError for activations whose scale is not known from a row alone.
    """
    from fpsim.nn import scaling
    from fpsim.nn.layer import element_format

    quantizer, channels = layer.activation_quantizer, layer.shape[1]
    values = rows.reshape(len(rows), -1, channels)
    if quantizer is None or quantizer.steps > 1 or (layer.input_step is None and quantizer.granularity == "tensor"):
        raise ValueError(
            f"the codes of single rows need one static scale, or one per token or block, not activations {quantizer}"
        )
    scales = layer.input_scales(values) if layer.input_step is not None else scaling.find(values, quantizer, -1, 0)
    return units(scaling.encode(values, quantizer, scales, -1).flatten(1), element_format(quantizer))


def units(codes: "Tensor", row: Format) -> "Tensor":
    """float64 whole numbers: the values of codes over the format's unit, which is a power of two."""
    from fpsim.nn import functional

    return functional.decode(codes, row).double() / unit(row)


def stretch(layer: "QuantizedLayer") -> int | None:
    """Products between two scales; None where scales do not change along K."""
    channels, quantizers = layer.shape[1], (layer.weight_quantizer, layer.activation_quantizer)
    blocks = [one.block for one in quantizers if one is not None and one.block is not None]
    taps = math.prod(layer.shape[2:])
    per_pixel = taps > 1 and any(one is not None and one.granularity == "token" for one in quantizers)
    if not blocks and not per_pixel:
        return None
    return min([*blocks, channels])
