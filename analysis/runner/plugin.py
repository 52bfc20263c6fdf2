"""Quantized denoisers as diffusers saves and loads them: a quantization backend called "fpsim".

Importing this module registers the backend with diffusers. Then

- ``Model.from_pretrained(dir, quantization_config=FpsimConfig(scheme="fp8-w8a8+dynamic"))`` and
  ``PipelineQuantizationConfig(quant_mapping={"unet": FpsimConfig(...)})`` quantize by round to nearest while loading;
  schemes with static ranges need calibration, so they are made with `analysis.quantize` instead;
- ``save_pretrained`` of a pipeline that `analysis.quantize` made writes packed codes and scales to safetensors and the
  recipe to the component's config.json (key "quantization_config"); ``from_pretrained`` reads both back.

A float32 U-Net becomes an eighth of its size in 4-bit formats: what is on disk are the codes. They come back as they
were whatever `dtype` is asked for, which is that of the rest of the model (norms, embeddings, biases).

Codes and recipe lie in two files that mean nothing without each other, and `save_pretrained` writes one after the
other. So the header of the weights carries a digest of the recipe: if saving over an older checkpoint was interrupted,
loading says so instead of decoding codes of one format as another's.
"""

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from analysis.runner.quantize import attend, plan, warn_unused
from analysis.runner.recipes import put_blanks
from analysis.scheme import Scheme
from analysis.scheme import scheme as scheme_called
from fpsim._names import unknown
from fpsim.nn import Concatenated, QuantizedLayer
from fpsim.nn.layer import BUFFERS

if TYPE_CHECKING:
    from torch.nn import Module

#: Counts up whenever files of before would be misread. 2: every width below 8 bits is packed without gaps.
FORMAT_VERSION = 2
#: Key of the recipe's digest in the header of the safetensors file.
DIGEST_KEY = "fpsim"


class QuantizationMethod(str, Enum):  # noqa: UP042 - diffusers formats it as a plain str mixin
    """The name diffusers knows the backend by."""

    FPSIM = "fpsim"


class FpsimConfig(QuantizationConfigMixin):
    """What config.json says of a quantized denoiser.

    scheme  : a scheme, its name, or its dict
    layers  : path -> recipe of each quantized layer (`QuantizedLayer.recipe`); None before anything is quantized
    version : of this layout

    Raises ValueError for an unknown scheme and for a layout of another version.
    """

    def __init__(
        self,
        scheme: Scheme | str | Mapping[str, Any],
        layers: Mapping[str, Mapping[str, Any]] | None = None,
        version: int = FORMAT_VERSION,
        quant_method: str = QuantizationMethod.FPSIM.value,
    ) -> None:
        _check_version(version)
        if quant_method != QuantizationMethod.FPSIM:
            raise ValueError(f"quant_method is {quant_method!r}, not 'fpsim'")
        self.quant_method = QuantizationMethod.FPSIM
        chosen = scheme_called(scheme) if isinstance(scheme, str) else scheme
        self.scheme = chosen if isinstance(chosen, Scheme) else Scheme.from_dict(chosen)
        self.layers = layers
        self.version = version

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The config that `to_dict` wrote. Another version is named before its keys are looked at."""
        known = ("quant_method", "version", "scheme", "layers")
        _check_version(config_dict.get("version"))
        for key in config_dict:
            if key not in known:
                raise unknown("key of quantization_config", key, known)
        if "scheme" not in config_dict:
            raise ValueError("the checkpoint's quantization_config names no scheme")
        made = cls(**config_dict)
        return (made, kwargs) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return {
            "quant_method": self.quant_method.value,
            "version": self.version,
            "scheme": self.scheme.to_dict(),
            "layers": self.layers,
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: nothing has a default worth leaving out."""
        return self.to_dict()

    @property
    def digest(self) -> str:
        """Identifies scheme and recipes; the weights' file carries it."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _check_version(version: Any) -> None:
    if version != FORMAT_VERSION:
        raise ValueError(
            f"this checkpoint was saved in layout {version} of the fpsim quantization, this version reads layout "
            f"{FORMAT_VERSION}; quantize the original pipeline again"
        )


class FpsimQuantizer(DiffusersQuantizer):
    """Puts blank layers in place before the weights of a saved checkpoint arrive, or quantizes afterwards."""

    quantization_config: FpsimConfig
    pre_quantized: bool

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError for a device_map over several devices: a layer's codes and inputs must meet on one."""
        placed = kwargs.get("device_map")
        devices = {str(device) for device in placed.values()} if isinstance(placed, Mapping) else set()
        if len(devices) > 1 or "disk" in devices:
            raise ValueError(
                f"device_map spreads the denoiser over {', '.join(sorted(devices))}; fpsim's layers live on one "
                "device: give device_map={'': 'cuda'}, or none"
            )

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Any) -> list[str]:
        """Raise ValueError if the weights belong to another recipe; the keys stay as they are."""
        from safetensors import safe_open

        for file in checkpoint_files if self.pre_quantized else ():
            if not str(file).endswith(".safetensors"):
                raise ValueError(f"{file} is no safetensors file; quantized weights are read from nothing else")
            with safe_open(file, framework="pt") as opened:
                found = (opened.metadata() or {}).get(DIGEST_KEY)
            if found is not None and found != self.quantization_config.digest:
                raise ValueError(
                    f"{file} does not belong to the config.json beside it: saving was interrupted, or one of the two "
                    "was changed; save the pipeline again"
                )
        return loaded_keys

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state dict as it is, and what its file's header says. ValueError for pickles, which run code."""
        if not safe_serialization:
            raise ValueError("quantized weights are saved as safetensors only: leave safe_serialization=True")
        return state_dict, {DIGEST_KEY: self.quantization_config.digest}

    def _process_model_before_weight_loading(self, model: "Module", **kwargs: Any) -> None:
        if self.pre_quantized:
            put_blanks(model, self.quantization_config.layers)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> "Module":
        scheme = self.quantization_config.scheme
        if self.pre_quantized:
            for path, layer in model.named_modules():
                if isinstance(layer, QuantizedLayer):
                    _finish(path, layer)
                    if layer.clock is not None:
                        layer.clock.attach(model)
            attend(model, scheme)
            return model
        from analysis.methods import Request, rtn

        layers, _, unused = plan(model, scheme)
        warn_unused(scheme, unused, type(model).__name__)
        made = rtn.quantize(Request(pipe=model, layers=layers))
        for path, replacement in made.items():
            model.set_submodule(path, replacement)
        attend(model, scheme)
        self.quantization_config = _described(model, scheme)
        model.register_to_config(quantization_config=self.quantization_config)
        return model

    def check_if_quantized_param(
        self, model: "Module", param_value: Any, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        """Codes, scales, transforms and side branches are ours to set; biases and everything else are ordinary."""
        return self.pre_quantized and _owner(model, param_name) is not None

    def create_quantized_param(
        self, model: "Module", param_value: Any, param_name: str, target_device: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Put one tensor in place, as it was saved: its dtype is part of the format."""
        found = _owner(model, param_name)
        if found is None:
            raise ValueError(f"{param_name} belongs to no quantized layer")
        path, layer, name = found
        value = _original(args, param_name, param_value).to(target_device)
        if name in BUFFERS:
            try:
                layer.load(name, value)
            except ValueError as error:
                raise ValueError(f"layer {path}: {error}") from None
            return
        inner, _, last = name.rpartition(".")
        module: Any = layer.get_submodule(inner)
        wanted = getattr(module, last).shape
        if value.shape != wanted:
            raise ValueError(f"layer {path}: {name} has shape {tuple(value.shape)}, its recipe says {tuple(wanted)}")
        if last in module._parameters:
            value = torch.nn.Parameter(value, requires_grad=False)
        setattr(module, last, value)

    def check_quantized_param_shape(self, *args: Any, **kwargs: Any) -> bool:
        """Shapes are checked when codes are unpacked."""
        return True

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _owner(model: "Module", name: str) -> "tuple[str, Any, str] | None":
    """(path, layer, name inside) of a tensor of a quantized layer, None for its bias and for all others."""
    path, inside = name, ""
    while path:
        path, _, last = path.rpartition(".")
        inside = f"{last}.{inside}" if inside else last
        layer = model.get_submodule(path)
        if isinstance(layer, QuantizedLayer):
            return None if inside == "bias" else (path, layer, inside)
    return None


def _finish(path: str, layer: QuantizedLayer) -> None:
    """Compute what is not stored. ValueError, naming the layer, for tensors that are missing or do not fit."""
    for name in BUFFERS:
        value = getattr(layer, name)
        stored = name not in layer._non_persistent_buffers_set
        if stored and value is not None and (value.numel() == 0 or value.device.type == "meta"):
            raise ValueError(f"the checkpoint has no {name} for layer {path}")
    for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
        if value.device.type == "meta":
            raise ValueError(f"the checkpoint has no {name} for layer {path}")
    try:
        layer.refresh()
    except RuntimeError as error:
        raise ValueError(f"layer {path}: codes and scales do not fit each other: {error}") from None


def _original(args: tuple[Any, ...], name: str, value: Any) -> Any:
    """The tensor as it is in the file: the loader has already cast floats to the model's dtype."""
    state = next((item for item in args if isinstance(item, Mapping)), {})
    return state.get(name, value)


def remember(denoiser: Any, scheme: Scheme) -> None:
    """Make a quantized denoiser one that diffusers knows as such, as if it had been loaded.

    `save_pretrained` writes its recipe, and a cast to another dtype, which would change its scales, is refused.
    """
    config = _described(denoiser, scheme)
    denoiser.register_to_config(quantization_config=config)
    denoiser.hf_quantizer = FpsimQuantizer(config, pre_quantized=True)
    denoiser.is_quantized = True
    denoiser.quantization_method = config.quant_method


def _described(denoiser: "Module", scheme: Scheme) -> FpsimConfig:
    """The config of a quantized denoiser. ValueError, naming the layer, for one that cannot be described."""
    outer = [path for path, layer in denoiser.named_modules() if isinstance(layer, Concatenated)]
    recipes = {}
    for path, layer in denoiser.named_modules():
        if path.startswith(tuple(f"{one}." for one in outer)):
            continue
        if isinstance(layer, (QuantizedLayer, Concatenated)):
            try:
                recipes[path] = layer.recipe()
            except ValueError as error:
                raise ValueError(f"layer {path}: {error}") from None
    return FpsimConfig(scheme=scheme, layers=recipes)


def register() -> None:
    """Make diffusers know the backend. Doing it twice changes nothing."""
    auto.AUTO_QUANTIZER_MAPPING[QuantizationMethod.FPSIM.value] = FpsimQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QuantizationMethod.FPSIM.value] = FpsimConfig


register()
