"""Calls as the model's author wrote them: which functions of torch are one operation, and of what shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from hwmodels.ops import Attention, Conv2d, ConvNd, Gemm, Norm

Arguments: TypeAlias = dict[str, Any]
Maker: TypeAlias = Callable[[Arguments, Any], list[dict[str, Any]]]


def _rows(x: torch.Tensor) -> int:
    return math.prod(x.shape[:-1])


def _linear(a: Arguments, out: Any) -> list[dict[str, Any]]:
    x, weight = a["input"], a["weight"]
    return [{"op": Gemm, "m": _rows(x), "n": weight.shape[0], "k": weight.shape[1], "bias": a["bias"] is not None}]


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) and len(value) == axes else (_first(value),) * axes


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value)


def _conv(a: Arguments, out: torch.Tensor) -> list[dict[str, Any]]:
    x, weight = a["input"], a["weight"]
    axes = weight.dim() - 2
    if x.dim() == axes + 1:
        x, out = x.unsqueeze(0), out.unsqueeze(0)
    row = {
        "batch": x.shape[0],
        "in_channels": x.shape[1],
        "out_channels": weight.shape[0],
        "groups": a["groups"],
        "bias": a["bias"] is not None,
        "layout": "channels_first",
    }
    stride, padding, dilation = a["stride"], a["padding"], a["dilation"]
    square = axes == 2 and not isinstance(padding, str) and len(set(_per_axis(stride, 2))) == 1
    if square and len(set(_per_axis(dilation, 2))) == 1:
        kernel, pads = tuple(weight.shape[2:]), _per_axis(padding, 2)
        row |= {"op": Conv2d, "height": x.shape[2], "width": x.shape[3], "kernel": kernel[0]}
        row |= {"stride": _first(stride), "padding": pads[0], "dilation": _first(dilation)}
        if kernel[0] != kernel[1] or pads[0] != pads[1]:
            row |= {"kernel_width": kernel[1], "padding_width": pads[1]}
        return [row]
    row |= {"op": ConvNd, "size": tuple(x.shape[2:]), "kernel": tuple(weight.shape[2:]), "output": tuple(out.shape[2:])}
    return [row]


def _attention(a: Arguments, out: torch.Tensor) -> list[dict[str, Any]]:
    q, k, v = a["query"], a["key"], a["value"]
    heads, kv_heads = (q.shape[-3], k.shape[-3]) if q.dim() > 2 else (1, 1)
    row = {
        "op": Attention,
        "batch": math.prod(q.shape[:-3]),
        "heads": heads,
        "queries": q.shape[-2],
        "keys": k.shape[-2],
        "head_dim": q.shape[-1],
        "causal": bool(a["is_causal"]),
        "mask": a["attn_mask"] is not None,
        "library": "torch",
    }
    if v.shape[-1] != q.shape[-1]:
        row["value_dim"] = v.shape[-1]
    if kv_heads != heads:
        row["kv_heads"] = kv_heads
    return [row]


def _affine(a: Arguments) -> int:
    return sum(a[name].numel() for name in ("weight", "bias") if a.get(name) is not None)


def _layer_norm(a: Arguments, out: torch.Tensor) -> list[dict[str, Any]]:
    x, columns = a["input"], math.prod(a["normalized_shape"])
    variant = "rms" if "bias" not in a else "layer"
    return [{"op": Norm, "rows": x.numel() // columns, "columns": columns, "variant": variant, "affine": _affine(a)}]


def _group_norm(a: Arguments, out: torch.Tensor) -> list[dict[str, Any]]:
    x = a["input"]
    rows = x.shape[0] * a["num_groups"]
    return [{"op": Norm, "rows": rows, "columns": x.numel() // rows, "variant": "group", "affine": _affine(a)}]


def _batch_norm(a: Arguments, out: torch.Tensor) -> list[dict[str, Any]]:
    x = a["input"]
    row = {"rows": x.shape[1], "columns": x.numel() // x.shape[1], "variant": "batch", "affine": _affine(a)}
    return [{"op": Norm, **row}]


def _signature(*names: str, **defaults: Any) -> tuple[tuple[str, ...], Arguments]:
    return (*names, *defaults), defaults


_CONV = _signature("input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
_F = torch.nn.functional

#: function -> (its parameters in order, their defaults), what it records
CALLS: dict[Any, tuple[tuple[tuple[str, ...], Arguments], Maker]] = {
    _F.linear: (_signature("input", "weight", bias=None), _linear),
    torch.conv1d: (_CONV, _conv),
    torch.conv2d: (_CONV, _conv),
    torch.conv3d: (_CONV, _conv),
    _F.scaled_dot_product_attention: (
        _signature("query", "key", "value", attn_mask=None, dropout_p=0.0, is_causal=False, scale=None),
        _attention,
    ),
    _F.layer_norm: (_signature("input", "normalized_shape", weight=None, bias=None, eps=0.0), _layer_norm),
    _F.rms_norm: (_signature("input", "normalized_shape", weight=None, eps=None), _layer_norm),
    _F.group_norm: (_signature("input", "num_groups", weight=None, bias=None, eps=0.0), _group_norm),
    _F.batch_norm: (_signature("input", "running_mean", "running_var", weight=None, bias=None), _batch_norm),
}
