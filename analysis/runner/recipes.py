"""Blank layers from what a checkpoint's config.json says of them.

A checkpoint may come from anywhere, so nothing in it is taken on trust: a recipe is plain values that choose among
formats, engines and shapes this package has, every key is known, and counts are checked against the layer that is
replaced before anything is allocated. No name in it is imported, evaluated or opened.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fpsim._names import unknown
from fpsim.nn import Concatenated, QuantizedConv2d, QuantizedLinear
from fpsim.nn.concat import sliced
from fpsim.nn.layer import BUFFERS, QuantizedLayer

if TYPE_CHECKING:
    from torch.nn import Module

_KEYS = ("weight", "activation", "spec", "transform", "rank", "clock", "buffers")
_KINDS: Mapping[type, type[QuantizedLayer]] = {torch.nn.Linear: QuantizedLinear, torch.nn.Conv2d: QuantizedConv2d}


def put_blanks(model: "Module", recipes: Any) -> None:
    """Replace the layers of `model` that `recipes` (path -> recipe) speaks of by ones without codes.

    Raises ValueError, naming the layer, for a recipe that no layer of this model could have.
    """
    if not isinstance(recipes, Mapping):
        raise ValueError("the checkpoint's quantization_config lists no layers; it was not saved by this package")
    for path, recipe in recipes.items():
        try:
            source = model.get_submodule(path)
        except AttributeError:
            raise ValueError(
                f"the checkpoint quantizes layer {path}, which this {type(model).__name__} does not have"
            ) from None
        try:
            model.set_submodule(path, blank(source, recipe))
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise ValueError(f"layer {path}: its recipe in config.json makes no sense: {error}") from None


def blank(source: Any, recipe: Mapping[str, Any]) -> "Module":
    """A layer without codes in the place of `source`. ValueError (or what a wrong type raises) for a bad recipe."""
    kind = next((made for known, made in _KINDS.items() if isinstance(source, known)), None)
    if kind is None or not isinstance(recipe, Mapping):
        raise ValueError(f"a {type(source).__name__} is not a layer that is quantized")
    if "parts" not in recipe:
        _check(source, recipe)
        return kind.blank(source, recipe)
    parts, start = [], 0
    for part in recipe["parts"]:
        stop = start + _count("channels", part["channels"], source.weight.shape[1] - start)
        cut = sliced(source, start, stop)
        _check(cut, {key: value for key, value in part.items() if key != "channels"})
        parts.append(kind.blank(cut, part))
        start = stop
    if start != source.weight.shape[1] or len(recipe) != 1:
        raise ValueError(f"its parts have {start} input channels, the layer has {source.weight.shape[1]}")
    return Concatenated(parts)


def _check(source: Any, recipe: Mapping[str, Any]) -> None:
    for key in recipe:
        if key not in _KEYS:
            raise unknown("key", key, _KEYS)
    for name in recipe["buffers"]:
        if name not in BUFFERS:
            raise unknown("buffer", name, BUFFERS)
    if "weight_codes" not in recipe["buffers"]:
        raise ValueError("it has no weight_codes")
    if recipe["rank"] is not None:
        _count("rank", recipe["rank"], min(source.weight.shape[0], source.weight[0].numel()))
    for bound in recipe["clock"] or ():
        if not isinstance(bound, (int, float)):
            raise ValueError(f"clock bound {bound!r} is no timestep")
    for part in recipe["transform"] or ():
        if part != 0:
            _count("transform", part, source.weight.shape[1])


def _count(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name}={value!r} must be a whole number from 1 to {most}")
    return value
