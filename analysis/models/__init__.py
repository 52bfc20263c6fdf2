"""Diffusion architectures at full size: configurations only, no weights.

One file per architecture; the file's name is its registry name (`sdxl_base.py` is `sdxl-base`, `wan21_1__3b.py` is
`wan21-1.3b`) and it defines `MODEL`, a frozen `Model`: the class of each part as diffusers or transformers name it, its
published configuration, and the size an image of that model has by default.  Nothing here imports torch until a part
is built.

To add an architecture, copy the nearest neighbour and change its configuration.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

PARTS = ("denoiser", "vae-decode", "text-encoder")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What one call works on: rows, pixels, frames, text tokens, pixels per latent along height and width.

    frame_ratio: frames per latent one after the first, where the denoiser's configuration does not say
    """

    batch: int
    height: int
    width: int
    frames: int = 1
    tokens: int = 0
    downscale: int = 8
    frame_ratio: int = 4

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width", "frames"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: an integer of at least 1")
        for name in ("height", "width"):
            if getattr(self, name) % self.downscale:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: multiples of {self.downscale}")

    @property
    def rows(self) -> int:
        """Latent height."""
        return self.height // self.downscale

    @property
    def columns(self) -> int:
        """Latent width."""
        return self.width // self.downscale


@dataclass(frozen=True, kw_only=True)
class Input:
    """Shape and type of one input tensor; `dtype` is a torch name, "" the type the model is traced in."""

    shape: tuple[int, ...]
    dtype: str = ""


Inputs: TypeAlias = Mapping[str, Any]  # Input, a nested mapping of them, or a plain value
InputRule: TypeAlias = Callable[[Mapping[str, Any], Size], Inputs]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One module of a pipeline: its class by dotted name, its configuration, how it is called.

    method: "forward", or another one ("decode" of an autoencoder); drop: submodules that call does not need.
    inputs: from (configuration, size) to the inputs; None: the rule for its class in `_inputs.py`.
    tokens: text tokens of this part where they are not the model's.
    """

    cls: str
    config: Mapping[str, Any]
    method: str = "forward"
    drop: tuple[str, ...] = ()
    inputs: InputRule | None = None
    tokens: int | None = None

    @property
    def class_name(self) -> str:
        return self.cls.rpartition(".")[2]

    def example_inputs(self, size: Size) -> Inputs:
        """Shapes of the inputs of one call; ValueError if no rule is known for the class."""
        from analysis.models._inputs import INPUTS

        rule = self.inputs or INPUTS.get((self.class_name, self.method))
        if rule is None:
            known = sorted({name for name, _ in INPUTS})
            raise ValueError(
                f"no inputs known for {self.class_name}; pass inputs= yourself (known: {', '.join(known)})"
            )
        return rule(self.config, size)

    def build(self, device: str = "meta") -> torch.nn.Module:
        """The module, unweighted; on "meta" it takes no memory."""
        import torch

        module_name, _, class_name = self.cls.rpartition(".")
        cls = getattr(importlib.import_module(module_name), class_name)
        with torch.device(device), torch.no_grad():
            if hasattr(cls, "from_config") and hasattr(cls, "config_name"):
                module = cls.from_config(dict(self.config))
            else:
                module = cls(cls.config_class(**dict(self.config)))
            for name in self.drop:
                if getattr(module, name, None) is not None:
                    setattr(module, name, None)
        return module.eval()


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pipeline's parts with the size it makes by default.

    source: where the configurations are published.  guided: classifier-free guidance doubles the rows of a call.
    steps: sampling steps its authors suggest.
    """

    title: str
    source: str
    height: int
    width: int
    parts: Mapping[str, tuple[Part, ...]]
    tokens: int = 0
    frames: int = 1
    downscale: int = 8
    frame_ratio: int = 4
    guided: bool = True
    steps: int = 50

    def part(self, name: str = "denoiser") -> tuple[Part, ...]:
        """The modules of one part; ValueError lists those the model has."""
        if name not in self.parts:
            raise ValueError(f"{self.title} has no part {name!r}; allowed: {', '.join(self.parts)}")
        return self.parts[name]

    def size(
        self,
        batch: int = 1,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        tokens: int | None = None,
    ) -> Size:
        """The default size with what is given put in."""
        return Size(
            batch=batch,
            height=self.height if height is None else height,
            width=self.width if width is None else width,
            frames=self.frames if frames is None else frames,
            tokens=self.tokens if tokens is None else tokens,
            downscale=self.downscale,
            frame_ratio=self.frame_ratio,
        )


def registry_name(module: str) -> str:
    """`sdxl_base` is `sdxl-base`; a point, which a module name cannot have, is written as two underscores."""
    return module.replace("__", ".").replace("_", "-")


class _Models(Mapping[str, Model]):
    """The files of this folder; each is imported on first use of its name."""

    def __init__(self, folder: Path) -> None:
        found = pkgutil.iter_modules([str(folder)])
        self._modules = {
            registry_name(row.name): row.name for row in found if not row.ispkg and not row.name.startswith("_")
        }

    def __getitem__(self, name: str) -> Model:
        found = importlib.import_module(f"{__name__}.{self._modules[name]}").MODEL
        if not isinstance(found, Model):
            raise ValueError(f"analysis/models/{self._modules[name]}.py: MODEL is {found!r}; allowed: a Model")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


MODELS: Mapping[str, Model] = _Models(Path(__file__).parent)


def model(name: str, others: Iterable[str] = ()) -> Model:
    """The architecture called `name`; ValueError, with the nearest known one, for an unknown name.

    others: names the caller knows beside these, for that message.
    """
    key = name.lower()
    if key in MODELS:
        return MODELS[key]
    known = [*MODELS, *others]
    near = get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown model {name!r}{hint} (known: {', '.join(known)})")
