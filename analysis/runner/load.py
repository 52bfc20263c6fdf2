"""A diffusers pipeline from a directory, the hub, or the ones embedded in this package.

What can be wrong with a directory is looked at before diffusers reads it, so that each mistake is one line that names
the file. Weights are read from safetensors only (pickles run code), in the dtype asked for: left to themselves,
transformers keeps a checkpoint's float16 while diffusers loads float32, and the two meet in the first layer.
"""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

#: Components that a quantization scheme speaks of, in the order they are looked for.
DENOISERS = ("unet", "transformer")


def load(source: str | Path, dtype: "torch.dtype | None" = None, device: str = "cpu") -> "DiffusionPipeline":
    """The pipeline at `source`: an embedded name ("shapes-sd"), a local directory, or a hub id ("owner/name").

    dtype : of all weights; float32 by default.

    Raises ValueError, one line, for a directory that is no pipeline, a truncated checkpoint, a component of an unknown
    class, a pipeline without a denoiser, and a hub id that cannot be fetched.
    """
    import torch
    from diffusers import DiffusionPipeline

    import analysis.runner.plugin  # noqa: F401 - registers the backend that saved quantized pipelines name

    if "/" not in str(source) and not Path(source).exists():
        embedded = _embedded(str(source), device)
        return embedded if dtype is None else embedded.to(dtype)
    folder = located(source)
    check_directory(folder)
    try:
        pipe = DiffusionPipeline.from_pretrained(str(folder), dtype=dtype or torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load {source}: {' '.join(str(error).split())}") from error
    denoiser_name(pipe)
    return pipe.to(device)


def located(source: str | Path) -> Path:
    """The directory of a pipeline: itself, or where the hub's cache keeps a hub id ("owner/name"), fetched if need be.

    Raises ValueError for a directory that is not there and for a hub id that cannot be fetched.
    """
    if Path(source).exists():
        return Path(source)
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise ValueError(
            f"{source} does not exist; give a pipeline directory, a hub id (owner/name) or an embedded name"
        )
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(str(source), use_safetensors=True))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load {source}: {' '.join(str(error).split())}") from error


def denoiser_name(pipe: "DiffusionPipeline") -> str:
    """The name of the component that is quantized, "unet" or "transformer". ValueError if there is none."""
    for name in DENOISERS:
        if getattr(pipe, name, None) is not None:
            return name
    parts = ", ".join(name for name, part in getattr(pipe, "components", {}).items() if part is not None)
    raise ValueError(
        f"{type(pipe).__name__} has no denoiser to quantize: a 'unet' or 'transformer' component is needed "
        f"(it has: {parts})"
    )


def check_directory(folder: Path) -> None:
    """Raise ValueError, naming the file, unless `folder` is a complete pipeline directory."""
    from safetensors import SafetensorError, safe_open

    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ValueError(f"{folder} is not a pipeline directory: it has no model_index.json")
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{index_file} is not JSON: {error}") from None
    if not isinstance(index, dict) or "_class_name" not in index:
        raise ValueError(f"{index_file} names no pipeline class (key _class_name)")
    for component, entry in index.items():
        if component.startswith("_") or not isinstance(entry, list) or not any(entry):
            continue
        _check_component(folder, component, [part for part in entry if part is not None])
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} is truncated or corrupt: {error}; copy the checkpoint again") from None


def _check_component(folder: Path, component: str, entry: list[str]) -> None:
    """A component is [library, class] or, for newer transformers parts, [class]; its files lie in its own folder."""
    libraries, name = ([entry[0]], entry[1]) if len(entry) == 2 else (["transformers", "diffusers"], entry[0])
    known = [library for library in libraries if library.isidentifier() and find_spec(library) is not None]
    # An unknown library may be one of diffusers' own pipeline modules: diffusers judges that itself.
    if known and not any(hasattr(import_module(library), name) for library in known):
        raise ValueError(
            f"{folder}: component {component!r} is a {name}, which {' and '.join(known)} here does not have; "
            "a newer version may"
        )
    if not (folder / component).is_dir():
        raise ValueError(f"{folder}: component {component!r} is listed in model_index.json but its folder is missing")


def _embedded(name: str, device: str) -> Any:
    """The embedded pipeline called `name`. ValueError, naming the nearest, for an unknown one."""
    embedded: Any = import_module("analysis.models.embedded")
    return embedded.load(name, device=device)
