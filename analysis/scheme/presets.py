"""Schemes by name: a table of presets, and variants after plus signs.

Every one speaks of all Linear and Conv2d layers of the denoiser, first and last included.

- scalar formats : weights per output channel; activations per tensor with static, calibrated ranges
- block formats  : weights and activations in blocks along the input channels, scales taken at run time
- 16 bits        : casts, no scales
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from analysis.scheme.core import Scheme
from analysis.scheme.rule import Rule
from analysis.scheme.variants import VARIANTS
from fpsim._names import unknown
from fpsim.formats import BlockFormat
from fpsim.formats import format as format_row
from fpsim.nn.quantizer import Granularity, Quantizer

_PRESETS: tuple[tuple[str, str, str | None], ...] = (
    ("bf16", "bf16", "bf16"),
    ("fp16", "f16", "f16"),
    ("fp8-w8a8", "e4m3", "e4m3"),
    ("fp8-e5m2-w8a8", "e5m2", "e5m2"),
    ("fp8-e3m4-w8a8", "e3m4", "e3m4"),
    ("int8-w8a8", "int8", "int8"),
    ("fp6-w6a6", "e2m3", "e2m3"),
    ("fp6-e3m2-w6a6", "e3m2", "e3m2"),
    ("fp4-w4a8", "e2m1", "e4m3"),
    ("int4-w4a8", "int4", "int8"),
    ("fp4-w4a4", "e2m1", "e2m1"),
    ("int4-w4a4", "int4", "int4"),
    ("mxfp8", "mxfp8", "mxfp8"),
    ("mxfp6", "mxfp6", "mxfp6"),
    ("mxfp4", "mxfp4", "mxfp4"),
    ("nvfp4", "nvfp4", "nvfp4"),
    ("mxfp4-w4a8", "mxfp4", "mxfp8"),
    ("w8a16", "int8", None),
    ("w4a16", "int4", None),
    ("fp8-w8a16", "e4m3", None),
    ("fp4-w4a16", "e2m1", None),
)


def _operand(name: str, granularity: Granularity) -> Quantizer:
    """A scalar format at `granularity`, a block format in its blocks, a wide format as a cast."""
    if isinstance(format_row(name), BlockFormat):
        return Quantizer(format=name, granularity="block")
    made = Quantizer(format=name)
    return made if made.is_cast else replace(made, granularity=granularity)


def _activation(name: str) -> Quantizer:
    made = _operand(name, "tensor")
    return replace(made, range="dynamic") if made.is_block else made


def _preset(name: str, weight: str, activation: str | None) -> Scheme:
    rule = Rule(
        weight=_operand(weight, "channel"),
        activation=None if activation is None else _activation(activation),
    )
    return Scheme(name=name, rules=(rule,))


#: name -> preset. "fp32" keeps every layer as it is; its one rule says so.
SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "fp32": Scheme(name="fp32", rules=(Rule(),), rest="f32"),
        **{name: _preset(name, weight, activation) for name, weight, activation in _PRESETS},
    }
)


def scheme(name: str) -> Scheme:
    """The preset called `name`, with variants after plus signs: "fp4-w4a8", "int8-w8a8+dynamic+keep-edges".

    Raises ValueError for an unknown name, with the nearest known one.
    """
    base, *variants = name.split("+")
    if base not in SCHEMES:
        raise ValueError(unknown("scheme", base, tuple(SCHEMES)))
    made = SCHEMES[base]
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(unknown("scheme variant", variant, tuple(VARIANTS)))
        made = replace(VARIANTS[variant](made), name=f"{made.name}+{variant}")
    return made
