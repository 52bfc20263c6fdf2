"""A `Model` from the components of any diffusers pipeline: its directory (configurations, no weights), or itself.

What size it makes by default is looked up where the pipeline would: in the defaults of its call, in the denoiser's
configuration, times what the autoencoder compresses by.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.models import Model, Part

#: component name -> (its class by dotted name, its configuration)
Components = Mapping[str, tuple[str, Mapping[str, Any]]]

_ROLES = (("denoiser", "unet", "forward"), ("denoiser", "transformer", "forward"), ("vae-decode", "vae", "decode"))
#: denoisers whose configuration does not say how many latents wide a picture is: what their pipelines take
_LATENTS = {"FluxTransformer2DModel": 128}
#: denoisers with guidance distilled in: one row per picture, whatever its scale
DISTILLED = ("FluxTransformer2DModel", "HunyuanVideoTransformer3DModel")


def from_directory(folder: Path) -> Model:
    """The model in a pipeline's directory. ValueError for a configuration that is not JSON, or without a denoiser."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        if not isinstance(index, dict):
            raise ValueError(f"{folder}: model_index.json names no components")
        components = {}
        for name, entry in index.items():
            if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in ("diffusers", "transformers"):
                continue
            path = folder / name / "config.json"
            if path.is_file():
                components[name] = (f"{entry[0]}.{entry[1]}", json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder}: a configuration is not JSON: {error}") from error
    return from_components(folder.name, str(folder), components, str(index.get("_class_name", "")))


def from_pipeline(pipe: Any) -> Model:
    """The model of a pipeline object, of the size that `analysis.runner.sample.sized` gave it, if it did."""
    components = {}
    for name, entry in pipe.components.items():
        config = getattr(entry, "config", None)
        if config is None or not hasattr(entry, "forward"):
            continue
        values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        library = type(entry).__module__.partition(".")[0]
        if library in ("diffusers", "transformers"):
            components[name] = (f"{library}.{type(entry).__name__}", values)
    name = type(pipe).__name__
    return from_components(name, "a pipeline object", components, name, getattr(pipe, "_size", {}))


def from_components(
    title: str, source: str, components: Components, pipeline: str, size: Mapping[str, int] | None = None
) -> Model:
    """pipeline : the class of diffusers that puts them together; size: height, width, num_frames instead of its own."""
    parts: dict[str, tuple[Part, ...]] = {}
    for role, name, method in _ROLES:
        if name in components:
            cls, config = components[name]
            drop = ("encoder", "quant_conv") if method == "decode" else ()
            parts[role] = (Part(cls=cls, config=config, method=method, drop=drop),)
    encoders = []
    for name in sorted(components):
        if name.startswith("text_encoder"):
            cls, config = components[name]
            length = config.get("max_position_embeddings") or config.get("n_positions") or 77
            encoders.append(Part(cls=cls, config=config, tokens=int(length)))
    if encoders:
        parts["text-encoder"] = tuple(encoders)
    if "denoiser" not in parts:
        raise ValueError(f"{title}: no unet or transformer among its components ({', '.join(sorted(components))})")
    denoiser = parts["denoiser"][0]
    space, time = _compression(components.get("vae", ("", {}))[1])
    made = {**_latents(denoiser, space), **_defaults(pipeline), **(size or {})}
    return Model(
        title=title,
        source=source,
        height=made["height"],
        width=made["width"],
        frames=made.get("num_frames", 1),
        tokens=denoiser.config.get("max_text_seq_length") or (encoders[0].tokens or 77 if encoders else 0),
        downscale=space,
        frame_ratio=time,
        guided=denoiser.class_name not in DISTILLED,
        parts=parts,
    )


def _compression(config: Mapping[str, Any]) -> tuple[int, int]:
    """By how much an autoencoder compresses space, and time."""
    halvings = sum(map(bool, config.get("spatio_temporal_scaling") or ()))  # LTX-Video: halvings on top of patches
    if halvings:
        return config.get("patch_size", 4) * 2**halvings, config.get("patch_size_t", 1) * 2**halvings
    space = config.get("scale_factor_spatial") or config.get("spatial_compression_ratio")
    time = config.get("scale_factor_temporal") or config.get("temporal_compression_ratio") or 4
    return int(space or 2 ** (len(config.get("block_out_channels") or (1,) * 4) - 1)), int(time)


def _latents(denoiser: Part, space: int) -> dict[str, int]:
    """Pixels (and frames) of what the denoiser's configuration was made for."""
    config = denoiser.config
    side = config.get("sample_size") or _LATENTS.get(denoiser.class_name, 64)
    rows, columns = (side, side) if isinstance(side, int) else side
    rows, columns = config.get("sample_height") or rows, config.get("sample_width") or columns
    found = {"height": rows * space, "width": columns * space}
    return found | ({"num_frames": config["sample_frames"]} if "sample_frames" in config else {})


def _defaults(pipeline: str) -> dict[str, int]:
    """height, width and num_frames that a pipeline's call has as defaults."""
    import diffusers

    cls = getattr(diffusers, pipeline, None)
    if cls is None:  # a class of the user's own
        return {}
    taken = inspect.signature(cls.__call__).parameters
    given = {name: taken[name].default for name in ("height", "width", "num_frames") if name in taken}
    return {name: value for name, value in given.items() if isinstance(value, int)}
