"""Makes diffusers know the quantization backend as soon as diffusers looks for backends, and not before.

`import analysis` must stay quick, so it cannot import diffusers (and torch) only to register. `announce` waits instead:
when `diffusers.quantizers.auto`, which holds the list of backends, is imported, `analysis.runner.plugin` is too. After
`import analysis` saved quantized pipelines therefore load with plain diffusers:
`DiffusionPipeline.from_pretrained(directory)`.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

BACKENDS = "diffusers.quantizers.auto"
PLUGIN = "analysis.runner.plugin"


class _Waiting(MetaPathFinder):
    """Finds nothing by itself; lends the real finder's spec a loader that registers afterwards."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != BACKENDS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """The loader of diffusers' list of backends, which ends by adding ours."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        importlib.import_module(PLUGIN)


def announce() -> None:
    """Register now if diffusers' backends are imported already, else when they are. Twice changes nothing."""
    if BACKENDS in sys.modules:
        importlib.import_module(PLUGIN)
    elif PLUGIN not in sys.modules and not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())
