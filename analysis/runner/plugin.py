"""Quantized denoisers as diffusers saves and loads them: a quantization backend called "fpsim".

Importing this module registers the backend with diffusers. Then

- ``Model.from_pretrained(dir, quantization_config=FpsimConfig(scheme="fp8-w8a8+dynamic"))`` and
  ``PipelineQuantizationConfig(quant_mapping={"unet": FpsimConfig(...)})`` quantize by round to nearest while loading;
  schemes with static ranges need calibration, so they are made with `analysis.quantize` instead;
- ``save_pretrained`` of a pipeline that `analysis.quantize` made writes packed codes and scales to safetensors and the
  recipe to the component's config.json (key "quantization_config"); ``from_pretrained`` reads both back.

A float32 U-Net becomes an eighth of its size in 4-bit formats: what is on disk are the codes.
"""

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from analysis.runner.quantize import attend, plan
from analysis.scheme import Scheme
from analysis.scheme import scheme as scheme_called
from fpsim.nn import Concatenated, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from fpsim.nn.concat import sliced
from fpsim.nn.layer import BUFFERS

if TYPE_CHECKING:
    from torch.nn import Module

FORMAT_VERSION = 1


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
        if version != FORMAT_VERSION:
            raise ValueError(
                f"this checkpoint was saved in layout {version} of the fpsim quantization, this version reads layout "
                f"{FORMAT_VERSION}; quantize the original pipeline again"
            )
        if quant_method != QuantizationMethod.FPSIM:
            raise ValueError(f"quant_method is {quant_method!r}, not 'fpsim'")
        self.quant_method = QuantizationMethod.FPSIM
        chosen = scheme_called(scheme) if isinstance(scheme, str) else scheme
        self.scheme = chosen if isinstance(chosen, Scheme) else Scheme.from_dict(chosen)
        self.layers = layers
        self.version = version

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


class FpsimQuantizer(DiffusersQuantizer):
    """Puts blank layers in place before the weights of a saved checkpoint arrive, or quantizes afterwards."""

    quantization_config: FpsimConfig
    pre_quantized: bool

    def _process_model_before_weight_loading(self, model: "Module", **kwargs: Any) -> None:
        if not self.pre_quantized:
            return
        recipes = self.quantization_config.layers
        if recipes is None:
            raise ValueError("the checkpoint's quantization_config lists no layers; it was not saved by this package")
        for path, recipe in recipes.items():
            model.set_submodule(path, _blank(model.get_submodule(path), recipe))

    def _process_model_after_weight_loading(self, model: "Module", **kwargs: Any) -> "Module":
        if self.pre_quantized:
            for path, layer in model.named_modules():
                if isinstance(layer, QuantizedLayer):
                    if layer.weight_codes.device.type == "meta":
                        raise ValueError(f"the checkpoint has no codes for layer {path}")
                    layer.refresh()
                    if layer.clock is not None:
                        layer.clock.attach(model)
            attend(model, self.quantization_config.scheme)
            return model
        from analysis.methods import Request, rtn

        layers, _, _ = plan(model, self.quantization_config.scheme)
        made = rtn.quantize(Request(pipe=model, layers=layers))
        for path, layer in made.items():
            model.set_submodule(path, layer)
        attend(model, self.quantization_config.scheme)
        remember(model, self.quantization_config.scheme)
        return model

    def check_if_quantized_param(
        self, model: "Module", param_value: Any, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        """Codes and scales are ours to set; biases and everything else are ordinary."""
        path, _, name = param_name.rpartition(".")
        return self.pre_quantized and name in BUFFERS and isinstance(model.get_submodule(path), QuantizedLayer)

    def create_quantized_param(
        self, model: "Module", param_value: Any, param_name: str, target_device: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Put one buffer in place, as it was saved: its dtype is part of the format."""
        path, _, name = param_name.rpartition(".")
        layer: Any = model.get_submodule(path)
        try:
            layer.load(name, _original(args, param_name, param_value).to(target_device))
        except ValueError as error:
            raise ValueError(f"layer {path}: {error}") from None

    def check_quantized_param_shape(self, *args: Any, **kwargs: Any) -> bool:
        """Shapes are checked when codes are unpacked."""
        return True

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _original(args: tuple[Any, ...], name: str, value: Any) -> Any:
    """The tensor as it is in the file: the loader has already cast floats to the model's dtype."""
    state = next((item for item in args if isinstance(item, Mapping)), {})
    return state.get(name, value)


def _blank(source: Any, recipe: Mapping[str, Any]) -> "Module":
    """A layer without codes in the place of `source`."""
    kind = QuantizedLinear if isinstance(source, torch.nn.Linear) else QuantizedConv2d
    if "parts" not in recipe:
        return kind.blank(source, recipe)
    halves, start = [], 0
    for part in recipe["parts"]:
        stop = start + part["channels"]
        halves.append(kind.blank(sliced(source, start, stop), part))
        start = stop
    return Concatenated(halves)


def remember(denoiser: Any, scheme: Scheme) -> None:
    """Write the recipe of a quantized denoiser into its config, so that `save_pretrained` saves it.

    A denoiser with a layer that cannot be described (a free MatmulSpec) is left alone; saving it would lose it.
    """
    outer = [path for path, layer in denoiser.named_modules() if isinstance(layer, Concatenated)]
    recipes = {
        path: layer.recipe()
        for path, layer in denoiser.named_modules()
        if isinstance(layer, (QuantizedLayer, Concatenated)) and not path.startswith(tuple(f"{one}." for one in outer))
    }
    denoiser.register_to_config(quantization_config=FpsimConfig(scheme=scheme, layers=recipes))


def register() -> None:
    """Make diffusers know the backend. Doing it twice changes nothing."""
    auto.AUTO_QUANTIZER_MAPPING[QuantizationMethod.FPSIM.value] = FpsimQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QuantizationMethod.FPSIM.value] = FpsimConfig


register()
