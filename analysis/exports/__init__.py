"""Quantized pipelines in files that others read: one module per layout, named after it (underscores for hyphens).

A saved pipeline (`save_pretrained`) comes back to the bit, whatever was quantized how, but only this package reads it.
A layout here is one that diffusers 0.42 itself reads, and holds less. What diffusers can read of FP8 and NVFP4:

=================  ==========================================  ========================================================
read by            with                                        what it holds
=================  ==========================================  ========================================================
bfl-fp8r           `from_single_file`, `BFLQuantizationConfig`  Linear: E4M3, a float32 scale per row; inputs as they
                   (classes that have it: U-Nets, SD3, FLUX)   are, or E4M3 per token on FP8 GPUs
bfl-nvfp4          the same                                    Linear: E2M1, an E4M3 scale per 16, a float32 scale; a
                                                               calibrated float32 scale of the input (Blackwell)
torchao-fp8        `from_pretrained`, torchao >= 0.16           Linear: E4M3 per row or tensor; inputs as they are, or
                                                               E4M3 per token or tensor with scales at run time
torchao-nvfp4      the same                                    Linear: as above; inputs as they are, or NVFP4 with
                                                               scales at run time
(ModelOpt)         `NVIDIAModelOptConfig`, nvidia-modelopt      not written: diffusers restores modelopt_state.pth, a
                                                               pickle of ModelOpt's own modules
=================  ==========================================  ========================================================

Every layout stores codes and scales, not values, so the weights that the loader multiplies are the same bits (checked
with diffusers 0.42.1 and torchao 0.18.0 in a process without this package: U-Nets of Stable Diffusion and SDXL, PixArt,
SD3, FLUX). What it does not hold is refused, in one line that names the layer: convolutions, zero points, other
exponent splits, transforms, side branches, split concatenations, attention products, and static scales of FP8 inputs,
which none of them has. With ``rest="values"`` plain layers among these are written as the values of their codes
instead: the weights keep their bits, at full size, and their inputs are not quantized any more. Transforms that were
folded into the layer before, and so are none any more, do not matter.

compressed-tensors, the layout of vLLM, and ModelOpt's own safetensors are read by others than diffusers; ModelOpt's
NVFP4 has the tensors of bfl-nvfp4.

To add a layout, copy `bfl_fp8r.py`. File names, tensors and header are its own; this file writes them.
"""

import json
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fpsim._names import unknown

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from analysis.runner.calibrate import Calibration
    from fpsim.nn.layer import QuantizedLayer

#: What becomes of layers that a layout does not hold.
Rest = Literal["refuse", "values"]

#: Layout names, by walking this folder.
LAYOUTS: tuple[str, ...] = tuple(
    sorted(row.name.replace("_", "-") for row in pkgutil.iter_modules(__path__) if not row.name.startswith("_"))
)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One layer in a layout.

    tensors : name below the layer -> tensor; note : what the header says of the weight, if anything
    """

    tensors: "Mapping[str, Tensor]"
    note: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Export:
    """What `export` wrote.

    held : paths of the layers whose codes are in the file; values : those written as values
    file : the denoiser's weights; bytes : its size; loading : Python that loads the pipeline
    """

    layout: str
    held: tuple[str, ...]
    values: tuple[str, ...]
    file: Path
    bytes: int
    loading: str


class Layout(Protocol):
    """What a module of this package offers.

    FILE : name of the weights' file in the denoiser's folder
    """

    FILE: str

    def check(self, denoiser: "Module") -> None:
        """Raise ValueError for a denoiser that the loader does not load."""

    def pack(self, layer: "QuantizedLayer", span: "tuple[float, float] | None") -> Packed:
        """One plain Linear layer; `span`: its calibrated inputs, if known. ValueError for what is not held."""

    def header(self, notes: Mapping[str, Mapping[str, Any]], names: list[str]) -> dict[str, str]:
        """The safetensors header, from the notes of the layers held and the names of all parameters."""

    def config(self, layers: "list[QuantizedLayer]") -> dict[str, Any] | None:
        """The key "quantization_config" of config.json, None for none."""

    def loading(self, folder: str, component: str, denoiser: str) -> str:
        """Python that loads the pipeline in `folder`, whose `component` is of the class `denoiser`."""


def layout(name: str) -> Layout:
    """The module of the layout called `name`. Raises ValueError, naming the nearest, for an unknown one."""
    if name not in LAYOUTS:
        raise unknown("layout", name, LAYOUTS)
    module: Any = import_module(f"{__name__}.{name.replace('-', '_')}")
    return module


def export(
    pipe: "DiffusionPipeline",
    directory: str | Path,
    layout: str,
    *,
    calibration: "Calibration | None" = None,
    rest: Rest = "refuse",
) -> Export:
    """Write a quantized pipeline to `directory`, its denoiser in `layout`; whole, or not at all.

    calibration : ranges of the full-precision pipeline, for layouts that store a scale of the inputs (bfl-nvfp4)
    rest        : layers that the layout does not hold: "refuse" them, or write the "values" of their codes

    The result says how to load it. Raises ValueError for a pipeline that is not quantized, an unknown layout, a
    denoiser that the loader does not load, and, naming the first layer, what the layout does not hold.
    """
    from safetensors.torch import save_file

    from analysis.runner.load import denoiser_name
    from analysis.runner.quantize import whole

    chosen = globals()["layout"](layout)
    if rest not in ("refuse", "values"):
        raise unknown("rest", rest, ("refuse", "values"))
    component = denoiser_name(pipe)
    denoiser = getattr(pipe, component)
    chosen.check(denoiser)
    layers = _layers(denoiser)
    if not layers:
        raise ValueError(f"the {component} of this {type(pipe).__name__} is not quantized: analysis.quantize it first")
    packed, values = _packed(chosen, layout, layers, calibration, rest)
    tensors = _parameters(denoiser, layers)
    for path in values:
        tensors[f"{path}.weight"] = layers[path].weight
    names = [*tensors, *(f"{path}.weight" for path in packed)]
    for path, one in packed.items():
        tensors |= {f"{path}.{name}": value for name, value in one.tensors.items()}
    notes = {f"{path}.weight": one.note for path, one in packed.items() if one.note is not None}
    folder = Path(directory)
    with whole(folder) as part:
        pipe.save_pretrained(part)
        place = part / component
        for file in place.glob("*.safetensors*"):
            file.unlink()
        data = json.loads((place / "config.json").read_text(encoding="utf-8"))
        data.pop("quantization_config", None)
        written = chosen.config([layers[path] for path in packed])
        if written is not None:
            data["quantization_config"] = written
        (place / "config.json").write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(plain, place / chosen.FILE, metadata={"format": "pt", **chosen.header(notes, names)})
    file = folder / component / chosen.FILE
    return Export(
        layout=layout,
        held=tuple(packed),
        values=tuple(values),
        file=file,
        bytes=file.stat().st_size,
        loading=chosen.loading(str(directory), component, type(denoiser).__name__),
    )


def _layers(denoiser: "Module") -> dict[str, Any]:
    """The quantized layers by path, a split concatenation as one. ValueError for quantized attention products."""
    from fpsim.nn import Concatenated, QuantizedLayer
    from fpsim.nn.attention import Products

    found: dict[str, Any] = {}
    for path, module in denoiser.named_modules():
        if isinstance(getattr(module, "processor", None), Products):
            raise ValueError(
                f"{path}: no layout holds quantized attention products; leave 'attention' out of the scheme"
            )
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, (QuantizedLayer, Concatenated)) and not inside:
            found[path] = module
    return found


def _packed(
    chosen: Layout, name: str, layers: Mapping[str, Any], calibration: "Calibration | None", rest: Rest
) -> tuple[dict[str, Packed], list[str]]:
    """(layers that the layout holds, paths of those to write as values)."""
    from analysis.exports._weights import check_plain, check_values

    held, values = {}, []
    for path, layer in layers.items():
        try:
            check_plain(layer)
            span = None if calibration is None else calibration.range(path)
            held[path] = chosen.pack(layer, span)
        except ValueError as error:
            if rest == "refuse":
                raise ValueError(
                    f"layer {path}: {name} does not hold it: {error}; leave the layer out of the scheme, or export "
                    "with rest='values'"
                ) from None
            try:
                check_values(layer)
            except ValueError as worse:
                raise ValueError(f"layer {path}: {name} does not hold it, not even as values: {worse}") from None
            values.append(path)
    if not held:
        raise ValueError(f"{name} holds none of the {len(layers)} quantized layers; see the layouts of `fpsim list`")
    return held, values


def _parameters(denoiser: "Module", layers: Mapping[str, Any]) -> "dict[str, Tensor]":
    """Everything that is not a quantized weight: norms, embeddings, biases."""
    found = {}
    for name, value in denoiser.state_dict().items():
        owner = next((path for path in layers if name.startswith(f"{path}.")), None)
        if owner is None:
            found[name] = value
        elif name.endswith(".bias") and ".branch." not in name:
            found[f"{owner}.bias"] = value  # a split concatenation keeps it in its last part
    return found
