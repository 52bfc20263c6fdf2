"""Watches a torch module run and writes down every operation that takes time, with the layer it belongs to.

Two hooks, one inside the other.  A `TorchFunctionMode` sees calls as the model's author wrote them, so a linear layer,
a convolution, an attention or a norm is one operation with its real shape (`CALLS`).  Whatever is not in that table is
seen by a `TorchDispatchMode` one level down, as the ATen operations that would be launched; those fall into a few
families (`classify`): views cost nothing, everything PyTorch tags as pointwise is one kernel, reductions, copies and
gathers move their elements.  An operation of no known family is recorded as movement and reported by name.

On the meta device nothing is computed and no memory is taken, so a 12 B parameter model takes about a second.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwmodels.ops import Attention, Conv2d, ConvNd, Elementwise, Gemm, Move, Norm, Op, Reduction, Softmax

NAMES = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float64: "f64",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
    torch.complex64: "complex64",
    torch.complex128: "complex128",
    torch.int16: "int16",
}

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


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REDUCTIONS = _words(
    "mean sum amax amin max min var std var_mean norm linalg_vector_norm prod argmax argmin any all cumsum logsumexp"
)
_MOVES = _words(
    """
    cat stack clone copy_ repeat repeat_interleave roll flip tril triu im2col col2im pixel_shuffle pixel_unshuffle
    index index_select index_put index_put_ index_add index_copy gather scatter scatter_ scatter_add masked_select
    embedding one_hot nonzero topk sort select_scatter slice_scatter unfold_copy lift_fresh_copy fill_ zero_
    constant_pad_nd reflection_pad1d reflection_pad2d replication_pad2d replication_pad3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d max_pool2d_with_indices
    """
)
_FILLS = _words(
    """
    zeros ones full arange linspace eye scalar_tensor zeros_like ones_like full_like new_zeros new_ones new_full
    randn rand randn_like bernoulli
    """
)
_FREE = _words("empty empty_like empty_strided new_empty new_empty_strided detach alias lift_fresh _local_scalar_dense")


def _tensors(value: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]


def _numel(value: Any) -> int:
    return sum(t.numel() for t in tree_leaves(value) if isinstance(t, torch.Tensor))


def _layout(operands: list[torch.Tensor], out: Any) -> str:
    """How the operands lie beside the result (`hwmodels.ops.LAYOUTS`).

    Kernels run at full width where every operand has the result's shape and strides (single numbers aside) and no gaps;
    a result whose neighbouring elements lie far apart in an operand of its size is read in pieces of one element.
    """
    if not isinstance(out, torch.Tensor):
        return ""
    wide = [t for t in operands if t.numel() > 1]
    if not wide or out.numel() == 1:
        return ""
    inner = next((d for d in reversed(range(out.dim())) if out.shape[d] > 1), None)
    for t in wide:
        same = t.shape == out.shape
        if same and inner is not None and t.numel() == out.numel() and t.stride(inner) > 8 and out.stride(inner) == 1:
            return "transposed"
    dense = all(t.shape == out.shape and _strides(t) == _strides(out) for t in wide)
    return "" if dense and _dense(out) else "strided"


def _strides(t: torch.Tensor) -> list[int]:
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def _dense(t: torch.Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order of the axes."""
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


#: moves whose kernels compute an index per element, however their operands lie
_INDEXED = _words(
    """
    index index_select gather embedding scatter scatter_ upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_bilinear2d _upsample_nearest_exact2d constant_pad_nd reflection_pad2d replication_pad2d
    replication_pad3d roll flip repeat repeat_interleave
    """
)


def _moved(name: str, args: Any, out: Any) -> str:
    tensors = _tensors(args)
    if name in ("cat", "stack"):
        return "" if all(t.is_contiguous() for t in tensors) else "transposed"
    if name in _INDEXED:
        return "strided"
    target, sources = (tensors[0], tensors[1:]) if name == "copy_" else (out, tensors)
    return _layout(sources, target)


def classify(func: Any, args: Any, out: Any) -> tuple[list[dict[str, Any]], str]:
    """(operations, name if of no known family) of one ATen call whose result shares no memory with its inputs."""
    name = func.overloadpacket.__name__
    if name in _FREE:
        return [], ""
    writes, reads = _numel(out), _numel(args)
    if writes == 0:
        return [], ""
    if name == "_to_copy":
        return [{"op": Elementwise, "elements": writes, "function": "cast", "layout": _layout(_tensors(args), out)}], ""
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        a, b = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)][-2:]
        return [
            {
                "op": Gemm,
                "batch": math.prod(a.shape[:-2]),
                "m": a.shape[-2],
                "n": b.shape[-1],
                "k": a.shape[-1],
                "parameter": isinstance(b, torch.nn.Parameter),
            }
        ], ""
    if name in ("_softmax", "_safe_softmax", "_log_softmax"):
        return [{"op": Softmax, "rows": writes // out.shape[-1], "columns": out.shape[-1]}], ""
    if name in _FILLS:
        return [{"op": Move, "writes": writes, "function": "fill"}], ""
    if name in _MOVES:
        # a gather reads what it writes, not the whole table it picks from
        row = {"op": Move, "writes": writes, "reads": min(reads, writes), "function": name.strip("_")}
        return [{**row, "layout": _moved(name, args, out)}], ""
    if name in _REDUCTIONS:
        return [{"op": Reduction, "elements": max(reads, 1), "outputs": writes, "function": name}], ""
    if torch.Tag.pointwise in func.tags:
        row = {"op": Elementwise, "elements": writes, "reads": reads, "function": name.rstrip("_")}
        return [{**row, "layout": _layout(_tensors(args), out)}], ""
    return [{"op": Move, "writes": writes, "reads": reads, "function": name}], name


class _Live:
    """Bytes of the tensors alive at once: storages seen as results, until their last tensor goes."""

    def __init__(self, permanent: set[int]) -> None:
        self.permanent = permanent
        self.holders: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.watch: dict[int, weakref.ref[torch.Tensor]] = {}
        self.now = self.peak = 0

    def add(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, torch.Tensor) or id(tensor) in self.watch:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.permanent:
                continue
            if key not in self.holders:
                self.sizes[key] = storage.nbytes()
                self.now += self.sizes[key]
            self.holders[key] = self.holders.get(key, 0) + 1
            self.watch[id(tensor)] = weakref.ref(tensor, self._release(id(tensor), key))
        self.peak = max(self.peak, self.now)

    def _release(self, identity: int, key: int) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            self.watch.pop(identity, None)
            self.holders[key] -= 1
            if not self.holders[key]:
                del self.holders[key]
                self.now -= self.sizes.pop(key)

        return gone


class _Functions(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = CALLS.get(func)
        if known is None:
            return func(*args, **kwargs)
        (names, defaults), make = known
        self.recorder.muted += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self.recorder.muted -= 1
        values = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        self.recorder.record(make(values, out), values.get("input", values.get("query")), out)
        return out


class _Kernels(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = self.recorder
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            recorder.asked += 1
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        out = func(*args, **(kwargs or {}))
        if recorder.muted:
            return out
        first = next((t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)), None)
        if first is not None and _shares(first, out) and not func._schema.is_mutable:
            recorder.live.add(out)
            return out
        rows, unknown = classify(func, (args, kwargs), out)
        recorder.record(rows, first, out)
        if unknown:
            recorder.unknown[unknown] = recorder.unknown.get(unknown, 0) + _numel(out)
        return out


def _shares(x: torch.Tensor, out: Any) -> bool:
    """Whether the (first) result is a view of x."""
    found = next((t for t in tree_leaves(out) if isinstance(t, torch.Tensor)), None)
    return found is not None and found.untyped_storage()._cdata == x.untyped_storage()._cdata


class Recorder:
    """Records what `module` does while `watch()` is open.

    ops: operations in order; unknown: elements written by operations of no known family, by name; live: memory.
    asked: how often the model looked at a value on the meta device, where there is none; it was told 1 (True).
    base: the floating-point type that needs no mention because it is the one the module runs in.
    """

    def __init__(self, module: torch.nn.Module, base: torch.dtype, prefix: str = "") -> None:
        self.module, self.base, self.prefix = module, base, prefix
        self.ops: list[Op] = []
        self.unknown: dict[str, int] = {}
        self.muted = 0
        self.asked = 0
        self.stack: list[str] = []
        weights = [*module.parameters(), *module.buffers()]
        self.live = _Live({t.untyped_storage()._cdata for t in weights})

    def record(self, rows: list[dict[str, Any]], first: Any, out: Any) -> None:
        """Add operations at the current layer; types are kept where they differ from `base`."""
        self.live.add(out)
        source = self._name(first)
        result = self._name(next((t for t in tree_leaves(out) if isinstance(t, torch.Tensor)), None))
        for row in rows:
            op = row.pop("op")
            if source or result:
                row |= {"dtype": source or NAMES[self.base], "out_dtype": result or NAMES[self.base]}
            self.ops.append(op(path=self.stack[-1] if self.stack else self.prefix, **row))

    def _name(self, tensor: Any) -> str:
        if not isinstance(tensor, torch.Tensor) or tensor.dtype == self.base:
            return ""
        return NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))

    @contextmanager
    def watch(self) -> Iterator[Recorder]:
        """Record everything torch does inside."""
        handles = []
        for name, layer in self.module.named_modules():
            path = ".".join(part for part in (self.prefix, name) if part)
            handles.append(layer.register_forward_pre_hook(self._enter(path)))
            handles.append(layer.register_forward_hook(self._leave, always_call=True))
        try:
            with _Kernels(self), _Functions(self):
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Callable[[Any, Any], None]:
        def enter(layer: Any, args: Any) -> None:
            self.stack.append(path)

        return enter

    def _leave(self, layer: Any, args: Any, out: Any) -> None:
        self.stack.pop()
