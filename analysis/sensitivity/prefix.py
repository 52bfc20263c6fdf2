"""A denoiser run again and again with one layer changed, without computing twice what comes before that layer.

Changing a layer changes nothing that ended before it began. `Prefix` runs a call once in full precision and remembers
the result of every module together with the order in which modules began and ended; a later run with another module at
one place answers from memory where it can, and computes the rest as always. What is answered is a copy of what was
computed, storage and strides included, so results are those of running everything, bit for bit, at about half the cost.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from analysis.runner.quantize import replaced
from analysis.runner.samples import Call, first

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

BUDGET = 1 << 30  # bytes of results remembered of a call; modules beyond are computed again


class Prefix:
    """Runs of one denoiser that share their beginning. The denoiser is not touched.

    model  : a copy of its module tree, which shares its parameters; attach hooks to this one
    budget : bytes to remember at most
    """

    def __init__(self, denoiser: "Module", budget: int = BUDGET) -> None:
        self.model = replaced(denoiser, {})
        self.budget = budget
        self._names = {module: name for name, module in self.model.named_modules()}
        self._call: Call | None = None
        self._began: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._results: dict[str, Any] = {}

    def record(self, call: Call) -> "Tensor":
        """Run a call as it is; `changed` repeats this one."""
        import torch

        self._call, self._began, self._ended, self._results = call, {}, {}, {}
        clock = iter(range(1 << 62))
        room = self.budget
        repeated: set[str] = set()

        def begin(module: "Module", args: tuple[Any, ...]) -> None:
            name = self._names[module]
            if name in self._began:
                repeated.add(name)
            self._began.setdefault(name, next(clock))

        def end(module: "Module", args: tuple[Any, ...], output: Any) -> None:
            nonlocal room
            name = self._names[module]
            self._ended[name] = next(clock)
            size = _bytes(output)
            if name and size is not None and size <= room:
                room -= size
                self._results[name] = copy.deepcopy(output)

        handles = [module.register_forward_pre_hook(begin) for module in self._names]
        handles += [module.register_forward_hook(end) for module in self._names]
        try:
            with torch.no_grad():
                output = first(self.model(*call.args, **call.kwargs))
        finally:
            for handle in handles:
                handle.remove()
        for name in repeated:  # one answer would not do for two calls
            self._results.pop(name, None)
        return output

    def ran(self, path: str) -> bool:
        """Whether the module at `path` took part in the recorded call."""
        return path in self._began

    def changed(self, path: str, module: "Module") -> "Tensor":
        """The output of the recorded call with `module` in the place of the one at `path`.

        Raises ValueError before any call was recorded.
        """
        import torch

        if self._call is None:
            raise ValueError("nothing to repeat: record a call first")
        answers = {name: self._results[name] for name in self._finished(path)}
        with torch.no_grad(), _put(self.model, path, module), _answered(self.model, answers):
            return first(self.model(*self._call.args, **self._call.kwargs))

    def _finished(self, path: str) -> Iterator[str]:
        """Remembered modules that ended before the one at `path` began."""
        start = self._began.get(path, 1 << 62)
        return (name for name in self._results if self._ended[name] < start)


@contextmanager
def _put(model: "Module", path: str, module: "Module") -> Iterator[None]:
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    before = getattr(owner, name)
    setattr(owner, name, module)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _answered(model: "Module", answers: Mapping[str, Any]) -> Iterator[None]:
    """Modules give an answer instead of computing it. Those right inside of another such module are never asked."""
    changed: list[tuple[dict[str, Any], Any]] = []
    try:
        for name, result in answers.items():
            if name.rpartition(".")[0] not in answers:
                own = model.get_submodule(name).__dict__
                changed.append((own, own.get("forward")))
                own["forward"] = _answer(result)
        yield
    finally:
        for own, before in changed:
            own.pop("forward")
            if before is not None:
                own["forward"] = before


def _answer(result: Any) -> Callable[..., Any]:
    """Copied anew for every asking: the code around a module may write into what it returned."""
    return lambda *args, **kwargs: copy.deepcopy(result)


def _bytes(value: Any) -> int | None:
    """Size of a module's result; None for one that is more than tensors in tuples, lists and dicts."""
    if value is None:
        return 0
    if hasattr(value, "untyped_storage"):
        return int(value.untyped_storage().nbytes())
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, tuple | list):
        return None
    sizes = [_bytes(entry) for entry in value]
    return None if None in sizes else sum(size for size in sizes if size is not None)
