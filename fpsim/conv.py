"""Convolutions in the arithmetic of a `MatmulSpec`: windows become rows, and `matmul` does the rest."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fpsim._names import unknown
from fpsim.codec import Array, as_codes
from fpsim.formats import container
from fpsim.gemm import chosen_backend, matmul, result_dtype
from fpsim.spec import MatmulSpec


def conv2d(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    spec: MatmulSpec,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pad_code: int = 0,
    order: str = "channel-row-column",
    backend: str | None = None,
) -> Any:
    """Two-dimensional cross-correlation as one matrix product per group, in the arithmetic of `spec`.

    x : codes of spec.a, (N, C, H, W). w : codes of spec.b, (O, C / groups, KH, KW).
    padding : rows and columns of `pad_code` on each side (a zero; the zero point of asymmetric integers).
    order : the order of k, which changes the bits: "channel-row-column" or "row-column-channel" (channels last).
    backend : as for `matmul`; contiguous arrays on a GPU are convolved there.
    Returns (N, O, H', W') in the output's dtype. A library convolution's own order and tiling are not claimed.

    Raises ValueError for shapes that do not fit, or what `matmul` raises.
    """
    device = chosen_backend(backend, x, w) == "device"
    images: Any
    weights: Any
    images, weights = (x, w) if device else (as_codes(x, spec.a, "x"), as_codes(w, spec.b, "w"))
    form = geometry(tuple(images.shape), tuple(weights.shape), stride, padding, dilation, groups, order)
    as_codes(np.asarray(pad_code), spec.a, "pad_code")
    if device:
        from fpsim._cuda import entry  # only where it is asked for: it needs a driver

        kernel_last = order == "channel-row-column"
        place = (*form[:4], groups, pad_code, kernel_last)
        return entry.conv2d(x, w, spec, *place, result_dtype(container(spec.accumulator.output).name))
    parts = as_products(images, weights, form, pad_code, order)
    return as_images([matmul(rows, matrix, spec, backend=backend) for rows, matrix in parts], len(images), form)


class Geometry(NamedTuple):
    """A convolution's sizes, checked: each a pair (rows, columns), and the groups."""

    size: tuple[int, int]  #: of the output
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def geometry(
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    groups: int,
    order: str,
) -> Geometry:
    """Check the shapes of images and weights against each other; ValueError as in `conv2d`."""
    if len(x) != 4 or len(w) != 4:
        raise ValueError(f"x must be (N, C, H, W) and w (O, C/groups, KH, KW), got {x} and {w}")
    if order not in CONV_ORDERS:
        raise unknown("order", order, CONV_ORDERS)
    (_, channels, height, width), (outputs, depth, kh, kw) = x, w
    if groups < 1 or channels != depth * groups or outputs % groups:
        raise ValueError(
            f"x has {channels} channels and w is {w} with groups={groups}: "
            "C must be groups * w.shape[1], and O a multiple of groups"
        )
    (sh, sw), (ph, pw), (dh, dw) = _pair(stride, "stride"), _pair(padding, "padding", 0), _pair(dilation, "dilation")
    rows, columns = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    if min(rows, columns) < 1:
        raise ValueError(
            f"the padded input {(height + 2 * ph, width + 2 * pw)} is smaller than the dilated kernel of w {w}"
        )
    return Geometry((rows, columns), (sh, sw), (ph, pw), (dh, dw), groups)


def as_products(
    images: Array, weights: Array, form: Geometry, pad_code: int, order: str
) -> Iterator[tuple[Array, Array]]:
    """Per group, the windows as rows (N * H' * W', K) and the weights as a matrix (K, O / groups)."""
    (outputs, depth, kh, kw), groups = weights.shape, form.groups
    (ph, pw), (sh, sw), (dh, dw) = form.padding, form.stride, form.dilation
    padded = np.pad(images, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=pad_code)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]  # (N, C, H', W', KH, KW)
    axes, kernel_axes = CONV_ORDERS[order]
    pixels, each = len(images) * math.prod(form.size), outputs // groups
    for group in range(groups):
        part = windows[:, group * depth : (group + 1) * depth]
        patches = part.transpose(0, 2, 3, *axes).reshape(pixels, depth * kh * kw)
        kernel = weights[group * each : (group + 1) * each]
        matrix = kernel.transpose(0, *kernel_axes).reshape(each, depth * kh * kw).T
        yield np.ascontiguousarray(patches), np.ascontiguousarray(matrix)


def as_images(parts: Sequence[Array], count: int, form: Geometry) -> Array:
    """The products of `as_products`, (N * H' * W', O / groups) each, as (N, O, H', W')."""
    flat = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    return np.ascontiguousarray(flat.reshape(count, *form.size, flat.shape[1]).transpose(0, 3, 1, 2))


#: order of k -> axes of the windows (N, C, H', W', KH, KW) and of the weights (O, C, KH, KW) that make it
CONV_ORDERS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "channel-row-column": ((1, 4, 5), (1, 2, 3)),
    "row-column-channel": ((4, 5, 1), (2, 3, 1)),
}


def _pair(value: int | tuple[int, int], name: str, least: int = 1) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    if min(first, second) < least:
        raise ValueError(f"{name} is {value}; allowed: {least} or more, one number or (rows, columns)")
    return first, second
