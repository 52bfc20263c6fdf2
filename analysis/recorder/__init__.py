"""Watches a torch module run and writes down every operation that takes time, with the layer it belongs to.

Two hooks, one inside the other.  A `TorchFunctionMode` sees calls as the model's author wrote them, so a linear layer,
a convolution, an attention or a norm is one operation with its real shape (`CALLS`).  Whatever is not in that table is
seen by a `TorchDispatchMode` one level down, as the ATen operations that would be launched; those fall into a few
families (`classify`): views cost nothing, everything PyTorch tags as pointwise is one kernel, reductions, copies and
gathers move their elements.  An operation of no known family is recorded as movement and reported by name.

On the meta device nothing is computed and no memory is taken, so a 12 B parameter model takes about a second.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from analysis.recorder.calls import CALLS
from analysis.recorder.kernels import classify, numel
from hwmodels.ops import Op

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
            recorder.unknown[unknown] = recorder.unknown.get(unknown, 0) + numel(out)
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
