"""What the accumulators of a model's exact layers lose, layer by layer: `fpsim.counts`, added up per path."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from fpsim import counts
from fpsim.counts import Totals
from fpsim.nn.layer import QuantizedLayer
from fpsim.spec import MatmulSpec

#: the layer that is running and where its losses go; None while nobody counts
_RUNNING: ContextVar[tuple[dict[str, Totals], str] | None] = ContextVar("running", default=None)


@contextmanager
def counted(model: nn.Module) -> Iterator[dict[str, Totals]]:
    """While it is open, path of a layer -> the losses of its products so far, of `model`'s layers with a spec.

    Every product runs twice, the second time one output at a time: use small inputs. The outputs stay the same bits.
    Raises ValueError for a model without such layers and, when one runs, for layers on a GPU.
    """
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, QuantizedLayer) and layer.spec}
    if not layers:
        raise ValueError("nothing to count: no layer of the model runs on an engine; quantize it with an exact scheme")
    found: dict[str, Totals] = {}
    hooks = []
    for path, layer in layers.items():
        hooks.append(layer.register_forward_pre_hook(lambda *_, path=path: _RUNNING.set((found, path)) and None))
        hooks.append(layer.register_forward_hook(lambda *_: _RUNNING.set(None) and None, always_call=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def note(a: Any, b: Any, spec: MatmulSpec, sides: dict[str, Any]) -> None:
    """Count a product of the layer that is running, if anyone wants to know. a, b and sides as for `fpsim.matmul`."""
    running = _RUNNING.get()
    if running is None:
        return
    if getattr(a, "is_cuda", False):
        raise ValueError("losses are counted on the CPU; move the model there")
    found, path = running
    totals = counts.matmul(a, b, spec, **sides).totals
    found[path] = found[path] + totals if path in found else totals
