"""The range axis: scales of weights and of static activations, and which format where there is a choice."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from fpsim.formats import BlockFormat, Format
    from fpsim.nn.quantizer import Quantizer
    from fpsim.nn.scaling import Scales

Ranges = Literal["max-abs", "tensor-error", "output-error"]

_ROWS = 256  # input rows that the output error of an activation range is measured on
#: Bits from which on a searched range of activations holds everything that calibration saw. A search goes by a sample,
#: and clipping trades a few large errors for many small ones. With 8 bits there is little to win and much to lose: on
#: the embedded transformer, FP8 per tensor, a sample of the latents ended at 2.9 where others reach 6.3, and the clip
#: chosen by it cost 12 dB at the denoiser's output; clipping in all layers saves 0.9 dB of their inputs' errors.
_WHOLE_BITS = 8
_HISTOGRAM = 1 << 16  # values of a tensor with one scale above which a histogram stands for them


def of_weight(
    quantizer: "Quantizer", weight: "Tensor", ranges: Ranges, split: bool, gram: "Tensor | None"
) -> "tuple[Quantizer, Scales | None]":
    """Scales for a weight, and the quantizer with the split that was chosen.

    gram : of the inputs, for "output-error"; without one, and for scales per block, the error is the tensor's own
    Block formats with weights="max-abs" keep their own rule for block scales, as casts do.
    """
    from analysis.runner.statistics import as_matrix
    from fpsim.formats import BlockFormat
    from fpsim.nn import functional, scaling, search

    row = quantizer.row
    if ranges == "max-abs" or quantizer.is_cast:
        return quantizer, scaling.find(weight, quantizer, 1)
    if isinstance(row, BlockFormat):
        return quantizer, _block_scales(weight, row, gram if ranges == "output-error" else None)
    rows = search.splits(row.bits, signed=row.signed) if split and row.kind == "float" else (row,)
    gram = gram if ranges == "output-error" else None
    if quantizer.block is not None:
        parts = functional.blocked(weight, quantizer.block, 1).movedim(2, -1)
        found = search.best_split(parts.reshape(-1, quantizer.block), rows, quick=True)
        scales = _shaped(found.scales, lambda one: one.reshape(parts.shape[:-1]).unsqueeze(2))
    elif quantizer.granularity == "channel":
        found = search.best_split(as_matrix(weight), rows, gram=gram, quick=True)
        scales = _shaped(found.scales, lambda one: one.reshape(-1, *(1,) * (weight.ndim - 1)))
    else:
        if gram is None and weight.numel() > _HISTOGRAM:
            centres, counts = search.histogram(weight)
            found = search.best_split(centres[None], rows, counts=counts, quick=True)
        else:
            found = search.best_split(as_matrix(weight), rows, gram=gram, shared=True, quick=True)
        scales = _shaped(found.scales, lambda one: one.reshape(()))
    return replace(quantizer, format=found.format.name), scales


#: Block scales that are tried, relative to the format's own rule. Powers of two: that of the OCP rule and its
#: neighbours. Floats: the largest magnitude on 6 and on 4 ("four over six") and between, and some clipping.
_POWERS = (1, 0, -1)
_FACTORS = (1.5, 1.25, 1.125, 1.0625, 1.0, 0.9375, 0.875, 0.8125, 0.75)


def _block_scales(weight: "Tensor", row: "BlockFormat", gram: "Tensor | None") -> "Scales":
    """The scale of each block of a weight (input channels on axis 1) with the least error.

    The error of a block is that of the outputs as far as the block alone makes it, d G d^T with G the inputs' Gram
    matrix of its channels, or d d^T without `gram`.
    """
    import torch

    from fpsim.nn import functional, scaling

    _, codes, tensor = functional.block_scales(weight, row, 1)
    blocks = functional.blocked(weight, row.block, 1)  # (out, blocks, block, *taps)
    size, channels, taps = row.block, weight.shape[1], weight[0, 0].numel()
    inside = None
    if gram is not None:
        whole = torch.nn.functional.pad(
            gram.view(taps, channels, taps, channels).diagonal(dim1=0, dim2=2),
            (0, 0, 0, -channels % size, 0, -channels % size),
        )  # (channels, channels, taps)
        count = whole.shape[0] // size
        inside = whole.view(count, size, count, size, taps).diagonal(dim1=0, dim2=2)  # (size, size, taps, blocks)
    best: Any = None
    chosen = codes
    for trial in _trials(codes, row):
        step = functional.block_step(trial, tensor, row, 1)
        change = scaling.rounded(blocks, scaling.Scales(step=step), row.element) - blocks
        flat = change.flatten(3) if change.ndim > 3 else change.unsqueeze(-1)
        if inside is None:
            error = flat.square().sum(2)
        else:
            error = torch.einsum("obit,ijtb,objt->obt", flat, inside, flat)
        error = error.view(codes.shape)
        if best is None:
            best, chosen = error, trial
            continue
        chosen, best = torch.where(error < best, trial, chosen), torch.minimum(error, best)
    return scaling.Scales(step=functional.block_step(chosen, tensor, row, 1), codes=chosen, tensor=tensor)


def _trials(codes: "Tensor", row: "BlockFormat") -> "list[Tensor]":
    """Codes of block scales around `codes`, those first."""
    import torch

    from fpsim.formats import alike
    from fpsim.nn import functional

    if row.rule in alike("floor"):
        moved = [(codes.int() + power).clamp(0, 254).to(torch.uint8) for power in _POWERS]
        return [codes] + [one for power, one in zip(_POWERS, moved, strict=True) if power]
    value = functional.decode(codes, row.scale)
    found = [functional.encode(value * factor, row.scale) for factor in _FACTORS if factor != 1]
    return [codes] + [torch.where(one == 0, codes, one) for one in found]  # a scale of 0 would drop the block


def _shaped(scales: "Scales", shape: "object") -> "Scales":
    return replace(scales, step=shape(scales.step), zero=None if scales.zero is None else shape(scales.zero))  # type: ignore[operator]


def of_activation(
    quantizer: "Quantizer",
    rows: "Tensor",
    ranges: Ranges,
    split: bool,
    weight: "Tensor",
    seen: "tuple[tuple[float, float], ...]",
) -> "tuple[Quantizer, Scales | None]":
    """Scales for static activations (None for dynamic ones), and the quantizer with the format that was chosen.

    rows   : (n, K) sample of the inputs; weight : (out, K), for "output-error"
    seen   : (lowest, highest) of all inputs, one per timestep group

    A quantizer with a `one_sided` format gets the one of the two that loses less; with "max-abs" its own rule decides.
    Timestep groups share the searched format, and the searched ends relative to the seen ones.
    """
    import torch

    from fpsim.nn import scaling, search

    low, high = min(one[0] for one in seen), max(one[1] for one in seen)
    if ranges == "max-abs" or quantizer.is_block or quantizer.is_cast:
        chosen = quantizer.seen(low, high)
        return chosen, static(chosen, seen, rows) if chosen.is_static and not chosen.is_block else None
    rows_of = _candidates(quantizer, split)
    if not quantizer.is_static:
        chosen = min(
            (replace(quantizer, format=row.name, one_sided=None) for row in rows_of),
            key=lambda one: float(
                (scaling.fake_quantize(rows, one, scaling.find(rows, one, -1, 0), -1) - rows).square().sum()
            ),
        )
        return chosen, None
    keep = (low, high) if rows_of[0].bits >= _WHOLE_BITS else None
    if ranges == "output-error":
        found = search.best_split(rows[:_ROWS], rows_of, gram=weight.T @ weight, shared=True, quick=True, keep=keep)
    else:
        centres, counts = search.histogram(rows)
        found = search.best_split(centres[None], rows_of, counts=counts, quick=True, keep=keep)
    chosen = replace(quantizer, format=found.format.name, one_sided=None)
    step = found.scales.step[0]
    if quantizer.steps == 1:
        return chosen, scaling.Scales(step=step, zero=None if found.scales.zero is None else found.scales.zero[0])
    whole = static(replace(chosen, steps=1), ((low, high),), rows)
    shrunk = step / whole.step
    ends = torch.tensor(seen, dtype=torch.float32, device=rows.device).T * shrunk
    return chosen, scaling.from_range(ends[0], ends[1], found.format)


def static(quantizer: "Quantizer", seen: "tuple[tuple[float, float], ...]", like: "Tensor") -> "Scales":
    """Scales of static activations from (lowest, highest) in each timestep group, on the device of `like`."""
    import torch

    from fpsim.formats import Format
    from fpsim.nn import scaling

    row = quantizer.row
    if not isinstance(row, Format):
        raise ValueError(f"static activations take scalar formats, not {quantizer.format!r}")
    ends = torch.tensor(seen, dtype=torch.float32, device=like.device).T
    found = scaling.from_range(ends[0], ends[1], row)
    if quantizer.steps > 1:
        return found
    return replace(found, step=found.step[0], zero=None if found.zero is None else found.zero[0])


def _candidates(quantizer: "Quantizer", split: bool) -> "tuple[Format, ...]":
    """The formats a search may choose from."""
    from fpsim.formats import Format
    from fpsim.nn import search
    from fpsim.nn.quantizer import resolve

    names = [quantizer.format] + ([] if quantizer.one_sided is None else [quantizer.one_sided])
    found: list[Format] = []
    for name in names:
        row = resolve(name)
        if isinstance(row, Format):
            found += search.splits(row.bits, signed=row.signed) if split and row.kind == "float" else (row,)
    return tuple(found)
