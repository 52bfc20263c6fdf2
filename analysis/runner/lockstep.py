"""Calls of a model that run side by side and wait for each other before and after some modules of it.

Quantizing in the order of execution asks, unit after unit, what every stored call is when it gets there. Running each
call from the beginning for each unit takes time that grows with the square of the depth. Here every call is run once,
in a thread that stops where it is told to and holds what it has computed so far, while others catch up and the unit
that all have reached is replaced by its quantized version. Only one thread runs at any time, so results are those of
one call after the other. The memory is what the calls hold half way through a model.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import Module

from analysis.runner.samples import Call, first


class Lockstep:
    """`calls` through `model`, stopping before and after each of `paths`; a context manager.

    Modules may be replaced in `model` while calls wait before them: a replaced one computes what goes on.
    """

    def __init__(self, model: Module, calls: Sequence[Call], paths: Sequence[str]) -> None:
        self.model = model
        self.handles: list[Any] = []
        self.runs = [_Run(model, call) for call in calls]
        for path in paths:
            module = model.get_submodule(path)
            self.handles.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._after(path, module), with_kwargs=True))

    def before(self, path: str) -> list[Call]:
        """What the module at `path` is called with, one entry per call that gets there; all wait."""
        return [run.seen for run in self._at(path, "before")]

    def after(self, path: str) -> list[torch.Tensor]:
        """What the module at `path` makes of it, in the same order; all wait."""
        return [run.seen for run in self._at(path, "after")]

    def _at(self, path: str, when: str) -> "list[_Run]":
        for run in self.runs:
            run.go_on(path, when)
        return [run for run in self.runs if run.place == (path, when)]

    def _before(self, path: str) -> Any:
        def stop(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            run = _Run.running()
            if run is not None:
                run.wait((path, "before"), Call(args=args, kwargs=kwargs, images=_images(args, kwargs)))

        return stop

    def _after(self, path: str, module: Module) -> Any:
        def stop(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
            run = _Run.running()
            if run is None:
                return None
            now = self.model.get_submodule(path)
            made = output if now is module else now(*args, **kwargs)
            run.wait((path, "after"), first(made))
            return made

        return stop

    def __enter__(self) -> "Lockstep":
        return self

    def __exit__(self, *_: Any) -> None:
        for run in self.runs:
            run.end()
        for handle in self.handles:
            handle.remove()


class _Ended(BaseException):
    """The rest of a call is not wanted; BaseException so that no library code takes it for a failure."""


class _Run(threading.Thread):
    """One call; it moves only between `go_on` and the next `wait`."""

    def __init__(self, model: Module, call: Call) -> None:
        super().__init__(daemon=True)
        self.model, self.call = model, call
        self.place: tuple[str, str] | None = None  # where it waits; None before the beginning and after the end
        self.seen: Any = None
        self.error: BaseException | None = None
        self.done = self.unwanted = False
        self.mine, self.others = threading.Semaphore(0), threading.Semaphore(0)

    @staticmethod
    def running() -> "_Run | None":
        """The run that this thread is; None in others, such as the one that looks on."""
        here = threading.current_thread()
        return here if isinstance(here, _Run) else None

    def go_on(self, path: str, when: str) -> None:
        """Move to the next stop if that may be the one: to what comes before a module from behind another, to what
        comes after it from right before it. A call that leaves a module out waits before the next."""
        ready = self.place is None or self.place[1] == "after" if when == "before" else self.place == (path, "before")
        if ready and not self.done:
            self._move()

    def _move(self) -> None:
        if self.ident is None:
            self.start()
        self.mine.release()
        self.others.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def wait(self, place: tuple[str, str], seen: Any) -> None:
        """Stop here and let others run."""
        self.place, self.seen = place, seen
        self.others.release()
        self.mine.acquire()
        self.seen = None
        if self.unwanted:
            raise _Ended

    def run(self) -> None:
        self.mine.acquire()
        try:
            if not self.unwanted:
                with torch.no_grad():
                    self.model(*self.call.args, **self.call.kwargs)
        except _Ended:
            pass
        except BaseException as error:  # handed to the thread that waits for this one
            self.error = error
        finally:
            self.done, self.place, self.seen = True, None, None
            self.others.release()

    def end(self) -> None:
        """Drop the rest of the call."""
        self.unwanted = True
        if self.ident is not None and not self.done:
            self.mine.release()
        if self.ident is not None:
            self.join()


def _images(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Images in a call: the length of its first tensor that has one."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim:
            return len(value)
    return 1
